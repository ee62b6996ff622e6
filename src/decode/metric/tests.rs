//! One test per rule of the message format.

use super::*;

fn decode(payload: &[u8]) -> Vec<(usize, Result<MetricView<'_>, DecodeError>)> {
    let mut all = Vec::new();
    metrics(payload, |index, metric| all.push((index, metric)));
    all
}

fn one(payload: &str) -> Result<MetricView<'_>, DecodeError> {
    let mut all = decode(payload.as_bytes());
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0, 0);
    all.remove(0).1
}

fn code(payload: &str) -> &'static str {
    one(payload).unwrap_err().code
}

fn with(fields: &str) -> String {
    format!(
        r#"{{"metric":{{"name":"m","timestamp":1,"value":1{fields}}},"meta":{{"tenantId":"t","region":"r"}}}}"#
    )
}

const FULL: &str = r#"{"metric": {"name": "cpu.idle_perc", "dimensions": {"service": "monitoring", "hostname": "node-1"},
  "timestamp": 1405630174123, "value": 97.5, "value_meta": {"status_code": "500"}},
  "meta": {"tenantId": "a1b2c3", "region": "RegionOne"}, "creation_time": 1405630174, "extra": [1, {}]}"#;

#[test]
fn a_full_envelope_gives_every_field_with_dimensions_sorted() {
    let metric = one(FULL).unwrap();
    assert_eq!(metric.name, "cpu.idle_perc");
    assert_eq!((metric.tenant_id.as_ref(), metric.region.as_ref()), ("a1b2c3", "RegionOne"));
    assert_eq!((metric.time_ms, metric.value), (1_405_630_174_123, 97.5));
    assert_eq!(metric.value_meta, r#"{"status_code":"500"}"#);
    let pairs: Vec<_> =
        metric.dimensions.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect();
    assert_eq!(pairs, [("hostname", "node-1"), ("service", "monitoring")]);
    assert_eq!(metric.notes, Notes::default());
    assert!(matches!(metric.name, Cow::Borrowed(_)), "plain text is borrowed");
}

#[test]
fn an_array_gives_each_element_and_a_bad_one_hides_no_neighbour() {
    let payload = format!("[{FULL}, 7, {FULL}]");
    let all = decode(payload.as_bytes());
    let fine: Vec<bool> = all.iter().map(|(_, metric)| metric.is_ok()).collect();
    assert_eq!(fine, [true, false, true]);
    assert_eq!(all.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(code(" [ ] "), "EMPTY_ARRAY");
}

#[test]
fn timestamps_may_be_floats_and_are_cut_off() {
    let time = |text: &str| {
        one(&with("").replace("\"timestamp\":1", &format!("\"timestamp\":{text}")))
            .map(|metric| metric.time_ms)
    };
    assert_eq!(time("1405630174123.9").unwrap(), 1_405_630_174_123);
    assert_eq!(time("0").unwrap(), 0);
    assert_eq!(time("-0.5").unwrap(), 0);
    assert_eq!(time("-1").unwrap_err().code, "BAD_TIMESTAMP");
    assert_eq!(time("253402300800000").unwrap_err().code, "BAD_TIMESTAMP");
    assert_eq!(time("1e300").unwrap_err().code, "BAD_TIMESTAMP");
    assert_eq!(time("\"1\"").unwrap_err().code, "WRONG_TYPE");
    assert_eq!(time("null").unwrap_err().code, "WRONG_TYPE");
}

#[test]
fn values_may_be_numeric_strings_and_must_be_finite() {
    let value = |text: &str| {
        one(&with("").replace("\"value\":1", &format!("\"value\":{text}")))
            .map(|metric| metric.value)
    };
    assert_eq!(value("\"0.5\"").unwrap(), 0.5);
    assert_eq!(value("-3").unwrap(), -3.0);
    for not_finite in ["\"NaN\"", "\"inf\"", "1e999", "\"x\""] {
        assert_eq!(value(not_finite).unwrap_err().code, "NOT_FINITE", "{not_finite}");
    }
    assert_eq!(value("NaN").unwrap_err().code, "NOT_JSON");
    assert_eq!(value("true").unwrap_err().code, "WRONG_TYPE");
}

#[test]
fn absent_or_null_dimensions_and_meta_are_empty() {
    for fields in
        ["", r#","dimensions":null,"value_meta":null"#, r#","dimensions":{},"value_meta":{}"#]
    {
        let payload = with(fields);
        let metric = one(&payload).unwrap();
        assert!(metric.dimensions.is_empty() && metric.value_meta.is_empty(), "{fields}");
    }
}

#[test]
fn numbers_and_booleans_as_dimension_values_keep_their_text() {
    let payload = with(r#","dimensions":{"a":1.50,"b":true,"c":"x\u0041\"y"}"#);
    let metric = one(&payload).unwrap();
    let values: Vec<&str> = metric.dimensions.iter().map(|(_, value)| value.as_ref()).collect();
    assert_eq!(values, ["1.50", "true", "xA\"y"]);
    assert_eq!(code(&with(r#","dimensions":{"a":{}}"#)), "WRONG_TYPE");
    assert_eq!(code(&with(r#","dimensions":{"a":null}"#)), "WRONG_TYPE");
    assert_eq!(code(&with(r#","dimensions":["a"]"#)), "WRONG_TYPE");
}

#[test]
fn a_missing_tenant_or_region_is_noted_and_stored_empty() {
    let payload = r#"{"metric":{"name":"m","timestamp":1,"value":1},"meta":{"region":"r"}}"#;
    let metric = one(payload).unwrap();
    assert!(
        metric.notes.contains(Notes::TENANT_MISSING)
            && !metric.notes.contains(Notes::REGION_MISSING)
    );
    let metric = one(r#"{"metric":{"name":"m","timestamp":1,"value":1}}"#).unwrap();
    assert!(
        metric.notes.contains(Notes::TENANT_MISSING)
            && metric.notes.contains(Notes::REGION_MISSING)
    );
    assert_eq!((metric.tenant_id.as_ref(), metric.region.as_ref()), ("", ""));
}

#[test]
fn a_value_meta_over_2048_characters_is_dropped_and_its_value_kept() {
    let of_length =
        |length: usize| with(&format!(r#","value_meta":{{"k":"{}"}}"#, "ä".repeat(length - 8)));
    let payload = of_length(2048);
    assert_eq!(one(&payload).unwrap().value_meta.chars().count(), 2048);
    let payload = of_length(2049);
    let metric = one(&payload).unwrap();
    assert_eq!(metric.value_meta, "");
    assert!(metric.notes.contains(Notes::VALUE_META_TOO_LONG));
    assert_eq!(code(&with(r#","value_meta":"x""#)), "WRONG_TYPE");
}

#[test]
fn keys_given_twice_are_refused() {
    assert_eq!(code(&with(r#","value":2"#)), "DUPLICATE_KEY");
    assert_eq!(code(&with(r#","dimensions":{"a":"1","a":"2"}"#)), "DUPLICATE_KEY");
    // As a tab in a name is stored as a space, these two would be one.
    assert_eq!(code(&with(r#","dimensions":{"a\tb":"1","a b":"2"}"#)), "DUPLICATE_KEY");
}

#[test]
fn a_tab_in_a_dimension_name_cannot_corrupt_the_stored_list() {
    let payload = with(r#","dimensions":{"a\tb":"c\td"}"#);
    let metric = one(&payload).unwrap();
    let series = metric.to_series(metric.id(IdScheme::Sha256));
    assert_eq!(series.dimension_list(), ["a b\tc\td"]);
    assert_eq!(series.dimension_list()[0].split_once('\t'), Some(("a b", "c\td")));
}

#[test]
fn what_is_no_message_is_named_by_its_code() {
    for (payload, expected) in [
        ("", "NOT_JSON"),
        ("{", "NOT_JSON"),
        ("garbage", "NOT_JSON"),
        ("{} x", "MISSING_FIELD"),
        ("{}", "MISSING_FIELD"),
        ("7", "WRONG_TYPE"),
        (r#"{"metric":{"name":"","timestamp":1,"value":1}}"#, "MISSING_FIELD"),
        (r#"{"metric":{"timestamp":1,"value":1}}"#, "MISSING_FIELD"),
        (r#"{"metric":{"name":5,"timestamp":1,"value":1}}"#, "WRONG_TYPE"),
    ] {
        assert_eq!(code(payload), expected, "{payload}");
    }
    assert_eq!(decode(b"\xff\xfe")[0].1.as_ref().unwrap_err().code, "NOT_UTF8");
}

#[test]
fn ten_megabytes_of_brackets_are_refused_at_once() {
    let payload = "[".repeat(10 << 20);
    let begun = std::time::Instant::now();
    assert_eq!(code(&payload), "TOO_DEEP");
    assert!(begun.elapsed() < std::time::Duration::from_millis(50), "{:?}", begun.elapsed());
}

#[test]
fn the_id_depends_on_every_part_of_the_series() {
    let id = |payload: &str| one(payload).unwrap().id(IdScheme::Sha256);
    let base = id(FULL);
    assert_eq!(base, id(&FULL.replace("97.5", "1")), "not on the value");
    for (from, to) in [
        ("cpu.idle_perc", "x"),
        ("node-1", "x"),
        ("a1b2c3", "x"),
        ("RegionOne", "x"),
        ("hostname", "x"),
    ] {
        assert_ne!(base, id(&FULL.replace(from, to)), "{from}");
    }
}

proptest::proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        name in "\\PC{1,20}",
        pairs in proptest::collection::btree_map("[^\t]{0,8}", "\\PC{0,8}", 0..5),
        time_ms in 0_i64..253_402_300_799_999,
        value in -1e300_f64..1e300,
    ) {
        let payload = serde_json::json!({
            "metric": {"name": name, "dimensions": pairs, "timestamp": time_ms, "value": value},
            "meta": {"tenantId": "t", "region": "r"},
        })
        .to_string();
        let metric = one(&payload).unwrap();
        proptest::prop_assert_eq!(metric.name.as_ref(), name.as_str());
        proptest::prop_assert_eq!(metric.time_ms, time_ms);
        proptest::prop_assert_eq!(metric.value, value);
        let found: std::collections::BTreeMap<String, String> =
            metric.dimensions.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        proptest::prop_assert_eq!(found, pairs);
    }

    #[test]
    fn a_damaged_message_never_panics(at in 0_usize..300, byte: u8) {
        let mut payload = FULL.as_bytes().to_vec();
        let at = at % payload.len();
        payload[at] = byte;
        let _damaged = decode(&payload);
        payload.truncate(at);
        let _cut = decode(&payload);
    }
}
