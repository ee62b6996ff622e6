//! Where dead letters are read: a data directory, or a running persister.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use super::From;
use crate::cli::ask;
use crate::cli::running::Running;
use crate::dead_letters::{Bytes, LetterFilter, ShownLetter, read_directory};

/// One of both.
pub(super) enum Source {
    Running(Running),
    Directory(PathBuf),
}

impl Source {
    pub fn of(from: &From) -> anyhow::Result<Self> {
        if let Some(url) = &from.url {
            return Ok(Self::Running(Running::at(url, &from.token)?));
        }
        let config = from.file.load()?.config;
        let dir = crate::service::dead_letters_dir(&config);
        anyhow::ensure!(
            dir.is_dir(),
            "{} is no directory: nothing was ever kept there",
            dir.display()
        );
        Ok(Self::Directory(dir))
    }

    /// Calls `each` with every letter that is meant, repetitions collapsed, until it says false.
    pub fn each(
        &self,
        filter: &LetterFilter,
        bytes: Bytes,
        mut each: impl FnMut(&Value) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Running(running) => each_running(running, filter, bytes, each),
            Self::Directory(dir) => {
                let mut outcome = Ok(true);
                let found = read_directory(dir, |position, letter| {
                    if !filter.matches(position, &letter) {
                        return ControlFlow::Continue(());
                    }
                    outcome = serde_json::to_value(ShownLetter::of(position, letter, bytes))
                        .context("write JSON")
                        .and_then(|letter| each(&letter));
                    match outcome {
                        Ok(true) => ControlFlow::Continue(()),
                        Ok(false) | Err(_) => ControlFlow::Break(()),
                    }
                })?;
                if found.unreadable > 0 {
                    eprintln!(
                        "monasca-persister: {} records are from a newer version of this program, or damaged: left out",
                        found.unreadable
                    );
                }
                outcome.map(|_| ())
            }
        }
    }

    /// The letter at this position.
    pub fn one(&self, position: u64) -> anyhow::Result<Option<Value>> {
        match self {
            Self::Running(running) => {
                let answer = running.get(&format!("/api/v1/dead-letters/{position}"))?;
                if answer.status == 404 {
                    return Ok(None);
                }
                anyhow::ensure!(answer.status == 200, "{}", answer.body);
                serde_json::from_str(&answer.body).context("read a dead letter").map(Some)
            }
            Self::Directory(_) => {
                let filter = LetterFilter { positions: vec![position], ..LetterFilter::default() };
                let mut found = None;
                self.each(&filter, Bytes::Lossless, |letter| {
                    found = Some(letter.clone());
                    Ok(false)
                })?;
                Ok(found)
            }
        }
    }
}

fn each_running(
    running: &Running,
    filter: &LetterFilter,
    bytes: Bytes,
    mut each: impl FnMut(&Value) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let wanted = query(filter, bytes);
    let mut seen = BTreeSet::new();
    let mut next = 0_u64;
    loop {
        let answer =
            running.get(&format!("/api/v1/dead-letters?from={next}&limit=1000{wanted}"))?;
        anyhow::ensure!(answer.status == 200, "{}", answer.body);
        let page: Value = serde_json::from_str(&answer.body).context("read dead letters")?;
        let letters = page.get("dead_letters").and_then(Value::as_array);
        for letter in letters.into_iter().flatten() {
            let code = letter.get("code").and_then(Value::as_str).unwrap_or_default();
            // The path takes one code only.
            let is_meant =
                filter.codes.is_empty() || filter.codes.iter().any(|meant| meant == code);
            if is_meant && seen.insert(key(letter)) && !each(letter)? {
                return Ok(());
            }
        }
        let after = page.get("next").and_then(Value::as_u64).unwrap_or(next);
        let more = page.get("more").and_then(Value::as_bool).unwrap_or(false);
        if !more || after <= next {
            return Ok(());
        }
        next = after;
    }
}

/// What repetitions have in common.
fn key(letter: &Value) -> String {
    let fields = ["topic", "partition", "offset", "element", "timestamp_ms", "payload"];
    let mut key = String::new();
    for field in fields {
        // Writing to a String does not fail.
        let _infallible = write!(key, "{},", letter.get(field).unwrap_or(&Value::Null));
    }
    key
}

fn query(filter: &LetterFilter, bytes: Bytes) -> String {
    let mut query = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _infallible = write!(query, "&{name}={}", ask::encoded(&value));
        }
    };
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    if let [code] = &filter.codes[..] {
        add("code", Some(code.clone()));
    }
    add("topic", filter.topic.clone());
    add("partition", filter.partition.map(|partition| partition.to_string()));
    add("offset_from", number(filter.offset_from));
    add("offset_to", number(filter.offset_to));
    add("since_before_ms", number(filter.since_before_ms));
    add("bytes", (bytes == Bytes::Lossless).then(|| "true".to_owned()));
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_a_query() {
        let filter = LetterFilter {
            codes: vec!["A&B".to_owned()],
            topic: Some("metrics.1".to_owned()),
            offset_from: Some(3),
            ..LetterFilter::default()
        };
        let wanted = "&code=A%26B&topic=metrics.1&offset_from=3&bytes=true";
        assert_eq!(query(&filter, Bytes::Lossless), wanted);
        assert_eq!(query(&LetterFilter::default(), Bytes::Readable), "");
    }
}
