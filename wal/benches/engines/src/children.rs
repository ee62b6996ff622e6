//! Starting child processes and taking their one line of JSON.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

/// This program.
pub fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// The program that is linked with RocksDB.
pub fn rocksdb_program() -> PathBuf {
    this_program().with_file_name("rocksdb-engine")
}

/// RocksDB's version, or why there is none.
pub fn rocksdb_version() -> Result<String, String> {
    let output = Command::new(rocksdb_program())
        .arg("version")
        .output()
        .map_err(|error| format!("rocksdb-engine cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// Runs a child to its end and reads the last line of what it printed.
///
/// # Errors
/// It failed, or did not end in time and was killed: an engine that hangs must not hold up the
/// others.
pub fn ask<T: DeserializeOwned>(
    program: &Path,
    arguments: &[&str],
    time: Duration,
) -> Result<T, String> {
    let mut child = start(program, arguments);
    let deadline = Instant::now() + time;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("did not end within {time:?}"));
        }
        // Seldom, because the child is being measured.
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        return Err(format!("ended with {status}"));
    }
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let last = lines.map_while(Result::ok).last().unwrap_or_default();
    serde_json::from_str(&last).map_err(|error| format!("printed `{last}`: {error}"))
}

/// Runs a child until it prints a line, then kills it in the middle of what it does.
pub fn kill_after_a_line(program: &Path, arguments: &[&str]) {
    let mut child = start(program, arguments);
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!line.is_empty(), "{arguments:?} ended before it printed a line");
}

fn start(program: &Path, arguments: &[&str]) -> Child {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()))
}
