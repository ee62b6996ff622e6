//! The JSON Schema of the configuration, made of the very structs that are read.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// How a time is written.
pub struct DurationText;

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^\s*([0-9]+\s*[a-zA-Z]+\s*)+$",
            "examples": ["500ms", "1m 30s", "45d"],
        })
    }
}

/// How a number of bytes is written.
pub struct SizeText;

impl JsonSchema for SizeText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*[a-zA-Z]*\s*$",
            "minimum": 0,
            "examples": ["64 KiB", "10 GiB", 1_048_576],
        })
    }
}

/// The schema of a configuration file.
#[must_use]
pub fn json_schema() -> Schema {
    let mut schema = schemars::schema_for!(super::Config);
    schema.insert("title".to_owned(), "Configuration of monasca-persister".into());
    schema
}
