//! The text of a configuration file into a tree, with every mistake in it: unknown keys and wrong types.

use serde_json::{Map, Value};

use super::Config;
use super::load::nearest;

/// Mistakes that are named at a time.
const MISTAKES_MAX: usize = 50;

/// What a file gives, and no defaults.
///
/// # Errors
/// What is wrong with it, each with line and column.
pub(super) fn parse(text: &str) -> Result<Value, Vec<String>> {
    let is_comment = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_comment) {
        return Ok(Value::Object(Map::new()));
    }
    let mut reasons = Vec::new();
    let mut lines: Vec<&str> = text.lines().collect();
    // The parser stops at the first mistake: it is left out, its place kept, and the rest is looked at.
    while let Err(error) = serde_saphyr::from_str::<Config>(&lines.join("\n")) {
        // Without the lines around the place: somebody may have written a password into one of them.
        reasons.push(with_suggestion(&error.without_snippet().to_string()));
        let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
        let left_out = line.is_some_and(|line| leave_out(&mut lines, line.saturating_sub(1)));
        if !left_out || reasons.len() >= MISTAKES_MAX || lines.iter().all(|line| is_comment(line)) {
            break;
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    // Once more as a tree, which knows what was given and what was not.
    serde_saphyr::from_str(text).map_err(|error| vec![error.without_snippet().to_string()])
}

/// Empties a line with what is indented below it, and the line above that has nothing below it then. False: the line
/// is empty already, or does not begin with a key.
fn leave_out(lines: &mut [&str], at: usize) -> bool {
    let indent = |line: &str| line.len().saturating_sub(line.trim_start().len());
    let Some(first) = lines.get(at).copied() else { return false };
    if first.trim().is_empty() || !first.contains(':') {
        return false;
    }
    let depth = indent(first);
    let is_below = |line: &&mut &str| line.trim().is_empty() || indent(line) > depth;
    for line in lines.iter_mut().skip(at.saturating_add(1)).take_while(is_below) {
        *line = "";
    }
    if let Some(line) = lines.get_mut(at) {
        *line = "";
    }
    let is_written = |line: &&str| !line.trim().is_empty();
    let above = lines.iter().take(at).rposition(is_written);
    let next = lines.iter().skip(at).find(|line| is_written(line));
    let (Some(above), next) = (above, next.map_or(0, |line| indent(line))) else { return true };
    if lines.get(above).is_some_and(|line| indent(line) < depth && next <= indent(line)) {
        leave_out(lines, above);
    }
    true
}

/// Appends the nearest known key to a message about an unknown one.
fn with_suggestion(message: &str) -> String {
    let unknown = message.split_once("unknown field `").and_then(|(_, rest)| rest.split_once('`'));
    let Some((unknown, rest)) = unknown else { return message.to_owned() };
    let known = rest
        .split_once("expected one of ")
        .map_or("", |(_, list)| list.lines().next().unwrap_or(""));
    match nearest(unknown, known.split(", ").map(|key| key.trim_matches('`'))) {
        Some(near) => format!("{message}\nDid you mean `{near}`?"),
        None => message.to_owned(),
    }
}
