//! `check-config` and `config print`.

use std::process::ExitCode;

use super::ConfigFile;

pub(super) fn check(file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let loaded = file.load()?;
    match &loaded.file {
        Some(path) => println!("{} can be used", path.display()),
        None => println!("no file given; the defaults can be used"),
    }
    for variable in &loaded.variables {
        println!("overridden by {variable}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn print(file: &ConfigFile) -> anyhow::Result<ExitCode> {
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
    Ok(ExitCode::SUCCESS)
}
