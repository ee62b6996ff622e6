//! Alarm-transitioned events.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use storage::{AlarmTransition, Stamp};

use super::json::{Text, TimeMs, compact, parse, text};
use super::{DecodeError, Notes};

/// A column's JSON is replaced by `[]` from this length on, in characters, as upstream does.
const COLUMN_CHARACTERS_END: usize = 65_000 / 4;
const STATES: [&str; 3] = ["UNDETERMINED", "OK", "ALARM"];
/// Keys that readers of the stored JSON expect in snake case.
const RENAMED: [(&str, &str); 4] = [
    ("subAlarmExpression", "sub_alarm_expression"),
    ("subAlarmState", "sub_alarm_state"),
    ("currentValues", "current_values"),
    ("metricDefinition", "metric_definition"),
];

/// One alarm transition, ready to be stamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlarmView<'a> {
    tenant_id: Cow<'a, str>,
    alarm_id: Cow<'a, str>,
    time_ms: i64,
    metric: Cow<'a, str>,
    old_state: Cow<'a, str>,
    new_state: Cow<'a, str>,
    reason: Cow<'a, str>,
    sub_alarms: String,
    /// What was odd.
    pub notes: Notes,
}

impl AlarmView<'_> {
    /// The row, owned.
    #[must_use]
    pub fn into_transition(self, stamp: Stamp) -> AlarmTransition {
        AlarmTransition {
            tenant_id: self.tenant_id.into_owned(),
            alarm_id: self.alarm_id.into_owned(),
            time_ms: self.time_ms,
            metric: self.metric.into_owned(),
            old_state: self.old_state.into_owned(),
            new_state: self.new_state.into_owned(),
            reason: self.reason.into_owned(),
            reason_data: "{}".to_owned(),
            sub_alarms: self.sub_alarms,
            stamp,
        }
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, rename = "alarm-transitioned")]
    event: Event<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    #[serde(borrow, default)]
    tenant_id: Text<'a>,
    #[serde(borrow)]
    alarm_id: Text<'a>,
    #[serde(borrow, default)]
    metrics: Option<&'a RawValue>,
    #[serde(borrow)]
    old_state: Text<'a>,
    #[serde(borrow)]
    new_state: Text<'a>,
    #[serde(borrow, default)]
    state_change_reason: Text<'a>,
    #[serde(default)]
    sub_alarms: Option<Value>,
    timestamp: TimeMs,
}

/// Reads an alarm-transitioned event.
///
/// # Errors
/// [`DecodeError`]: the message can never be stored.
pub fn alarm(payload: &[u8]) -> Result<AlarmView<'_>, DecodeError> {
    let Message { event } = parse(text(payload)?)?;
    for (field, state) in [("oldState", &event.old_state.0), ("newState", &event.new_state.0)] {
        if !STATES.contains(&state.as_ref()) {
            return Err(DecodeError::new("BAD_STATE", format!("{field} is `{state}`")));
        }
    }
    if event.alarm_id.0.is_empty() {
        return Err(DecodeError::new("MISSING_FIELD", "alarmId is empty"));
    }
    let mut notes = Notes::default();
    if event.tenant_id.0.is_empty() {
        notes.add(Notes::TENANT_MISSING);
    }
    let metric = match event.metrics {
        Some(raw) if raw.get() != "null" => compact(raw.get()),
        _ => Cow::Borrowed("[]"),
    };
    let mut sub_alarms =
        event.sub_alarms.filter(|list| !list.is_null()).unwrap_or_else(|| Value::Array(Vec::new()));
    rename_keys(&mut sub_alarms);
    Ok(AlarmView {
        tenant_id: event.tenant_id.0,
        alarm_id: event.alarm_id.0,
        time_ms: event.timestamp.0,
        metric: column(metric, Notes::METRIC_LIST_TOO_LONG, &mut notes),
        old_state: event.old_state.0,
        new_state: event.new_state.0,
        reason: event.state_change_reason.0,
        sub_alarms: column(sub_alarms.to_string().into(), Notes::SUB_ALARMS_TOO_LONG, &mut notes)
            .into_owned(),
        notes,
    })
}

fn column<'a>(text: Cow<'a, str>, note: Notes, notes: &mut Notes) -> Cow<'a, str> {
    if text.len() >= COLUMN_CHARACTERS_END && text.chars().count() >= COLUMN_CHARACTERS_END {
        notes.add(note);
        return Cow::Borrowed("[]");
    }
    text
}

/// Renames the four keys wherever they are keys of the structure; names of dimensions are nobody's structure.
fn rename_keys(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(rename_keys),
        Value::Object(fields) => {
            for (old, new) in RENAMED {
                if let Some(field) = fields.remove(old) {
                    fields.insert(new.to_owned(), field);
                }
            }
            for (key, field) in fields.iter_mut() {
                if key != "dimensions" {
                    rename_keys(field);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { write_time_us: 1, ttl_s: 1 };
    const FULL: &str = r#"{"alarm-transitioned": {"tenantId": "t", "alarmId": "a-1", "alarmDefinitionId": "d",
      "metrics": [{"id": "", "name": "cpu", "dimensions": {"subAlarmState": "x y"}}],
      "alarmName": "CPU", "oldState": "OK", "newState": "ALARM", "actionsEnabled": true,
      "stateChangeReason": "Thresholds", "severity": "LOW", "link": null, "lifecycleState": null,
      "subAlarms": [{"subAlarmExpression": {"function": "AVG",
         "metricDefinition": {"name": "cpu", "dimensions": {"currentValues": "kept"}}, "threshold": 10.0},
         "subAlarmState": "ALARM", "currentValues": [5.2]}],
      "timestamp": 1405630174123}}"#;

    #[test]
    fn a_full_event_gives_every_column() {
        let row = alarm(FULL.as_bytes()).unwrap().into_transition(STAMP);
        assert_eq!((row.tenant_id.as_str(), row.alarm_id.as_str()), ("t", "a-1"));
        assert_eq!((row.old_state.as_str(), row.new_state.as_str()), ("OK", "ALARM"));
        assert_eq!((row.reason.as_str(), row.reason_data.as_str()), ("Thresholds", "{}"));
        assert_eq!(row.time_ms, 1_405_630_174_123);
        assert_eq!(row.metric, r#"[{"id":"","name":"cpu","dimensions":{"subAlarmState":"x y"}}]"#);
    }

    #[test]
    fn keys_of_sub_alarms_become_snake_case_and_names_of_dimensions_do_not() {
        let row = alarm(FULL.as_bytes()).unwrap().into_transition(STAMP);
        let sub_alarms: Value = serde_json::from_str(&row.sub_alarms).unwrap();
        assert_eq!(sub_alarms[0]["sub_alarm_state"], "ALARM");
        assert_eq!(sub_alarms[0]["current_values"][0], 5.2);
        let definition = &sub_alarms[0]["sub_alarm_expression"]["metric_definition"];
        assert_eq!(definition["dimensions"]["currentValues"], "kept");
        assert!(!row.sub_alarms.contains("subAlarmState"));
    }

    #[test]
    fn absent_lists_are_empty_lists() {
        let payload = r#"{"alarm-transitioned":{"tenantId":"t","alarmId":"a","oldState":"OK","newState":"OK","timestamp":1,"stateChangeReason":null}}"#;
        let row = alarm(payload.as_bytes()).unwrap().into_transition(STAMP);
        assert_eq!(
            (row.metric.as_str(), row.sub_alarms.as_str(), row.reason.as_str()),
            ("[]", "[]", "")
        );
    }

    #[test]
    fn lists_that_are_too_long_are_replaced_and_noted() {
        let long = "x".repeat(16_250);
        let payload = FULL.replace(
            "\"name\": \"cpu\", \"dimensions\": {\"subAlarmState\"",
            &format!("\"name\": \"{long}\", \"dimensions\": {{\"subAlarmState\""),
        );
        let view = alarm(payload.as_bytes()).unwrap();
        assert!(
            view.notes.contains(Notes::METRIC_LIST_TOO_LONG)
                && !view.notes.contains(Notes::SUB_ALARMS_TOO_LONG)
        );
        assert_eq!(view.metric, "[]");
        let payload = FULL.replace("\"AVG\"", &format!("\"{long}\""));
        let view = alarm(payload.as_bytes()).unwrap();
        assert!(view.notes.contains(Notes::SUB_ALARMS_TOO_LONG));
        assert_eq!(view.sub_alarms, "[]");
    }

    #[test]
    fn a_list_is_stored_up_to_16249_characters() {
        let without_name = alarm(FULL.as_bytes()).unwrap().metric.len() - "cpu".len();
        for (characters, is_stored) in [(16_249, true), (16_250, false)] {
            // Characters, not bytes.
            let name = "\u{e9}".repeat(characters - without_name);
            let payload = FULL.replace(
                r#""name": "cpu", "dimensions": {"sub"#,
                &format!(r#""name": "{name}", "dimensions": {{"sub"#),
            );
            let view = alarm(payload.as_bytes()).unwrap();
            assert_eq!(view.metric != "[]", is_stored, "{characters} characters");
            assert_ne!(view.notes.contains(Notes::METRIC_LIST_TOO_LONG), is_stored);
        }
    }

    #[test]
    fn what_cannot_be_stored_is_named_by_its_code() {
        for (from, to, code) in [
            ("\"oldState\": \"OK\"", "\"oldState\": \"ok\"", "BAD_STATE"),
            ("\"newState\": \"ALARM\"", "\"newState\": \"BROKEN\"", "BAD_STATE"),
            ("\"alarmId\": \"a-1\"", "\"alarmId\": \"\"", "MISSING_FIELD"),
            ("\"alarmId\": \"a-1\",", "", "MISSING_FIELD"),
            ("1405630174123", "null", "WRONG_TYPE"),
            ("alarm-transitioned", "other", "MISSING_FIELD"),
            ("}}", "", "NOT_JSON"),
        ] {
            let error = alarm(FULL.replace(from, to).as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{from} -> {to}: {error}");
        }
    }
}
