//! What the documents say is what the program does.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use monasca_persister::config::{self, Config};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_example_configuration_is_valid_and_shows_the_defaults() {
    let path: PathBuf = root().join("docs/config.example.yaml");
    let loaded = config::load(Some(&path), std::iter::empty()).unwrap();
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn the_example_configuration_names_every_key() {
    fn keys(value: &serde_json::Value, into: &mut BTreeSet<String>) {
        if let Some(fields) = value.as_object() {
            for (key, field) in fields {
                into.insert(key.clone());
                keys(field, into);
            }
        }
    }
    let mut names = BTreeSet::new();
    keys(&serde_json::to_value(Config::default()).unwrap(), &mut names);
    let text = read("docs/config.example.yaml");
    let missing: Vec<&String> =
        names.iter().filter(|name| !text.contains(&format!("{name}:"))).collect();
    assert!(missing.is_empty(), "docs/config.example.yaml lacks {missing:?}");
}

#[test]
fn every_metric_name_is_documented() {
    let source = read("src/http/prometheus.rs");
    let text = read("docs/metrics.md");
    // Names stand in quotes, in snake case, before their help text.
    let mut names = BTreeSet::new();
    for quoted in source.split('"').skip(1).step_by(2) {
        let is_name =
            quoted.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !quoted.is_empty();
        if is_name && quoted != "monasca_persister" && quoted != "failing" {
            names.insert(quoted.to_owned());
        }
    }
    assert!(names.len() > 25, "{names:?}");
    let missing: Vec<&String> =
        names.iter().filter(|name| !text.contains(&format!("`monasca_persister_{name}"))).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
}

#[test]
fn errors_of_the_database_are_documented_as_the_program_decides() {
    let text = storage::cassandra::verdicts::document();
    if std::env::var_os("WRITE_DOCUMENTS").is_some() {
        std::fs::write(root().join("docs/errors.md"), &text).unwrap();
    }
    assert!(
        read("docs/errors.md") == text,
        "docs/errors.md is not what the table says: WRITE_DOCUMENTS=1 cargo test --test documents"
    );
}

#[test]
fn every_code_of_the_database_in_the_sources_is_documented() {
    fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    sources(&root().join("src"), &mut paths);
    sources(&root().join("storage/src"), &mut paths);
    let text = read("docs/errors.md");
    let mut codes = BTreeSet::new();
    for path in paths {
        let source = std::fs::read_to_string(&path).unwrap();
        for rest in source.split("\"DB_").skip(1) {
            codes.insert(format!("DB_{}", rest.split('"').next().unwrap()));
        }
    }
    // Of tests.
    codes.remove("DB_TEST");
    assert!(codes.len() > 15, "{codes:?}");
    let missing: Vec<&String> =
        codes.iter().filter(|code| !text.contains(&format!("| `{code}` |"))).collect();
    assert!(missing.is_empty(), "docs/errors.md lacks {missing:?}");
}

#[test]
fn commands_named_in_the_readme_exist() {
    let help =
        Command::new(env!("CARGO_BIN_EXE_monasca-persister")).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let readme = read("README.md");
    for part in readme.split("`monasca-persister ").skip(1) {
        let command = part.split(['`', ' ']).next().unwrap();
        assert!(
            help.contains(&format!("\n  {command}")),
            "README.md names `{command}`, --help does not"
        );
    }
    let makefile = read("Makefile");
    for part in readme.split("`make ").skip(1) {
        let goal = part.split(['`', ' ']).next().unwrap();
        assert!(
            makefile.contains(&format!("\n{goal}:")),
            "README.md names `make {goal}`, the Makefile does not"
        );
    }
}

#[test]
fn a_configuration_that_cannot_be_used_ends_with_code_78_and_names_the_key() {
    let output = Command::new(env!("CARGO_BIN_EXE_monasca-persister"))
        .args(["check-config"])
        .env("MONASCA_PERSISTER__METRICS__WRITERS", "0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("metrics.writers"), "{said}");
}
