//! `check-config` and `config print`.

use super::ConfigFile;
use crate::exit;

pub(super) fn check(file: &ConfigFile) -> anyhow::Result<u8> {
    let loaded = file.load()?;
    match &loaded.file {
        Some(path) => println!("{} can be used", path.display()),
        None => println!("no file given; the defaults can be used"),
    }
    for variable in &loaded.variables {
        println!("overridden by {variable}");
    }
    Ok(exit::OK)
}

pub(super) fn print(file: &ConfigFile) -> anyhow::Result<u8> {
    // Passwords are in files of their own; librdkafka's may be among the properties.
    let mut config = file.load()?.config;
    for (property, value) in &mut config.kafka.properties {
        if property.contains("password")
            || property.contains("secret")
            || property.contains("key.pem")
        {
            "***".clone_into(value);
        }
    }
    super::print_json(&config)?;
    Ok(exit::OK)
}
