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
fn every_reason_of_the_status_is_documented_with_a_next_step() {
    let mut codes = BTreeSet::new();
    let quoted = |text: &str| text.split('"').nth(1).map(str::to_owned);
    for rest in read("src/inspect.rs").split("reason(\n").skip(1) {
        let argument = rest.trim_start();
        if argument.starts_with('"') {
            codes.extend(quoted(argument));
        }
    }
    for path in ["src/kafka_trouble.rs", "src/kafka_gap.rs", "src/kafka/group.rs"] {
        for rest in read(path).split("\"KAFKA_").skip(1) {
            codes.insert(format!("KAFKA_{}", rest.split('"').next().unwrap()));
        }
    }
    assert!(codes.len() > 20, "{codes:?}");
    let text = read("docs/status.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<String> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, code, meaning, next, _] = cells[..] else { panic!("{row}") };
            assert!(meaning.len() > 20 && next.len() > 10, "{row}");
            code.trim_matches('`').to_owned()
        })
        .collect();
    assert_eq!(codes, documented, "docs/status.md does not have the codes of the sources");
}

#[test]
fn the_schema_of_the_configuration_takes_what_the_program_takes() {
    let text = serde_json::to_string_pretty(&config::json_schema()).unwrap() + "\n";
    if std::env::var_os("WRITE_DOCUMENTS").is_some() {
        std::fs::write(root().join("docs/config.schema.json"), &text).unwrap();
    }
    assert!(
        read("docs/config.schema.json") == text,
        "docs/config.schema.json is not what the structs say: WRITE_DOCUMENTS=1 cargo test --test documents"
    );
    let schema = serde_json::from_str(&text).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let of_yaml = |text: &str| serde_saphyr::from_str::<serde_json::Value>(text).unwrap();
    let example = of_yaml(&read("docs/config.example.yaml"));
    let errors: Vec<String> = validator
        .iter_errors(&example)
        .map(|error| format!("{error} at {}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    for wrong in [
        "metrics: {writrs: 3}",
        "metrics: {writers: many}",
        "retention: 45",
        "metric_id_scheme: md5",
        "kafka: {security: {sasl: {mechanism: magic}}}",
        "kafka: {security: {sasl: {password: x}}}",
    ] {
        assert!(!validator.is_valid(&of_yaml(wrong)), "{wrong}");
    }
}

/// Examples in help texts are commands that work, as far as nobody needs to answer them.
#[test]
fn every_command_has_help_and_its_examples_can_be_understood() {
    let program = env!("CARGO_BIN_EXE_monasca-persister");
    let help = |path: &[String]| {
        let output = Command::new(program).args(path).arg("--help").output().unwrap();
        assert!(output.status.success(), "{path:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut left = vec![Vec::<String>::new()];
    let (mut commands, mut examples) = (0, Vec::new());
    while let Some(path) = left.pop() {
        let text = help(&path);
        commands += 1;
        let mut in_commands = false;
        for line in text.lines() {
            in_commands = line == "Commands:" || in_commands && line.starts_with("  ");
            let name = line.split_whitespace().next().unwrap_or_default();
            if in_commands && line.starts_with("  ") && !line.starts_with("   ") && name != "help" {
                left.push([&path[..], &[name.to_owned()]].concat());
            }
            if let Some(example) = line.strip_prefix("  monasca-persister ") {
                examples.push(example.to_owned());
            }
        }
    }
    assert!(commands > 30 && examples.len() > 20, "{commands} commands, {examples:?}");
    for example in examples {
        // What is behind a pipe or an arrow is the shell's.
        let own = example.split([';', '|', '>']).next().unwrap();
        let arguments: Vec<&str> = own.split_whitespace().collect();
        let parsed = monasca_persister::cli::understands(&arguments);
        assert!(parsed.is_ok(), "`{example}`: {}", parsed.unwrap_err());
    }
}

#[test]
fn commands_that_ask_nobody_do_what_their_help_says() {
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_monasca-persister")).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text, _) =
        run(&["size", "--rate", "1000", "--hours", "10", "--record-bytes", "100"]);
    // 36 million records of 100 bytes are 80 % of it.
    assert!(code == Some(0) && text.contains("4.2 GiB") && text.contains("10h"), "{text}");
    let (_, text, _) =
        run(&["size", "--rate", "1000", "--bytes", "4500MB", "--record-bytes", "100", "--json"]);
    let size: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(size["outage_s"], 36_000.0);
    assert_eq!(run(&["size", "--hours", "10"]).0, Some(64));
    for shell in ["bash", "zsh", "fish"] {
        let (code, text, _) = run(&["completions", shell]);
        assert!(code == Some(0) && text.contains("dead-letters"), "{shell}");
    }
    let (code, text, _) = run(&["man"]);
    assert!(code == Some(0) && text.starts_with(".ie") && text.contains("Exit codes"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&["man", "--to", dir.path().to_str().unwrap()]).0, Some(0));
    assert!(dir.path().read_dir().unwrap().count() > 20);
    let (code, text, _) = run(&["config", "schema"]);
    assert!(code == Some(0) && text.trim_end() == read("docs/config.schema.json").trim_end());
    for command in ["status", "backlog", "healthcheck", "top"] {
        assert_eq!(run(&[command, "--url", "http://127.0.0.1:1"]).0, Some(69), "{command}");
    }
    let ini = dir.path().join("persister.conf");
    std::fs::write(
        &ini,
        "[kafka_metrics]\nuri = k:9092\n[cassandra]\npassword = canary\nodd = 1\n",
    )
    .unwrap();
    let (code, text, report) = run(&["config", "convert", ini.to_str().unwrap()]);
    assert!(code == Some(0) && text.contains("bootstrap_servers: [\"k:9092\"]"), "{text}");
    assert!(
        report.contains("YOURS    cassandra.password") && report.contains("dropped  cassandra.odd"),
        "{report}"
    );
    assert!(!text.contains("canary") && !report.contains("canary"));
    let new = dir.path().join("new.yaml");
    std::fs::write(&new, &text).unwrap();
    std::fs::write(&ini, "nothing").unwrap();
    assert_eq!(run(&["config", "convert", ini.to_str().unwrap()]).0, Some(78));
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
