//! Metric envelopes.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use storage::{Dimension, IdScheme, MetricId, Series};

use super::json::{
    Number, Text, TimeMs, check_not_empty, compact, duplicate, parse, scalar_text, text,
};
use super::{DecodeError, Notes};

/// Longest `value_meta`, in characters of compact JSON; upstream keeps the value and drops what is longer.
const VALUE_META_CHARACTERS_MAX: usize = 2048;

/// One metric, borrowed from its message.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricView<'a> {
    /// Region; empty when absent.
    pub region: Cow<'a, str>,
    /// Tenant; empty when absent.
    pub tenant_id: Cow<'a, str>,
    /// Metric name; never empty.
    pub name: Cow<'a, str>,
    /// Names and values sorted by name, each name once. A tab in a *name* has become a space: the stored list
    /// separates name and value by the first tab.
    pub dimensions: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// When it was measured, milliseconds since the epoch.
    pub time_ms: i64,
    /// The value; finite.
    pub value: f64,
    /// Compact JSON text; empty when absent, null, `{}` or too long.
    pub value_meta: Cow<'a, str>,
    /// What was odd.
    pub notes: Notes,
}

impl MetricView<'_> {
    /// Id of the series it belongs to.
    #[must_use]
    pub fn id(&self, scheme: IdScheme) -> MetricId {
        let dimensions =
            self.dimensions.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        storage::metric_id::metric_id(scheme, &self.region, &self.tenant_id, &self.name, dimensions)
    }

    /// The series it belongs to, owned.
    #[must_use]
    pub fn to_series(&self, id: MetricId) -> Series {
        let dimensions = self.dimensions.iter().map(|(name, value)| Dimension {
            name: name.as_ref().to_owned(),
            value: value.as_ref().to_owned(),
        });
        Series {
            id,
            region: self.region.as_ref().to_owned(),
            tenant_id: self.tenant_id.as_ref().to_owned(),
            name: self.name.as_ref().to_owned(),
            dimensions: dimensions.collect(),
        }
    }
}

/// Calls `each` once per metric of the message, with its index: 0 for a bare envelope. A bad element of an array
/// never hides its neighbours; a message that cannot be read at all is one error with index 0.
pub fn metrics<'a>(
    payload: &'a [u8],
    mut each: impl FnMut(usize, Result<MetricView<'a>, DecodeError>),
) {
    let text = match text(payload) {
        Ok(text) => text,
        Err(error) => return each(0, Err(error)),
    };
    if !text.trim_start().starts_with('[') {
        return each(0, envelope(text));
    }
    match parse::<Vec<&RawValue>>(text) {
        Err(error) => each(0, Err(error)),
        Ok(elements) if elements.is_empty() => {
            each(
                0,
                Err(DecodeError::new("EMPTY_ARRAY", "the message is an array without any metric")),
            );
        }
        Ok(elements) => {
            for (index, element) in elements.into_iter().enumerate() {
                each(index, envelope(element.get()));
            }
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    metric: Body<'a>,
    #[serde(borrow, default)]
    meta: Option<Meta<'a>>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow, default)]
    dimensions: Option<Dimensions<'a>>,
    timestamp: TimeMs,
    value: Number,
    #[serde(borrow, default)]
    value_meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "tenantId")]
    tenant_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    region: Option<Text<'a>>,
}

struct Dimensions<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Dimensions<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DimensionsVisitor;
        impl<'de> Visitor<'de> for DimensionsVisitor {
            type Value = Vec<(Cow<'de, str>, Cow<'de, str>)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of dimensions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
                    let raw: &'de RawValue = map.next_value()?;
                    let Some(value) = scalar_text(raw) else {
                        return Err(A::Error::custom(format_args!(
                            "dimension `{name}` is not a string"
                        )));
                    };
                    let name = if name.contains('\t') {
                        Cow::Owned(name.replace('\t', " "))
                    } else {
                        name
                    };
                    pairs.push((name, value));
                }
                pairs.sort_unstable();
                for pair in pairs.windows(2) {
                    if let [(one, _), (other, _)] = pair
                        && one == other
                    {
                        return Err(duplicate("dimension", one));
                    }
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(DimensionsVisitor).map(Self)
    }
}

fn envelope(text: &str) -> Result<MetricView<'_>, DecodeError> {
    let Envelope { metric, meta } = parse(text)?;
    check_not_empty::<serde_json::Error>("metric.name", &metric.name.0)
        .map_err(|error| DecodeError::new("MISSING_FIELD", error.to_string()))?;
    let mut notes = Notes::default();
    let (tenant_id, region) = meta.map_or((None, None), |meta| (meta.tenant_id, meta.region));
    let tenant_id = tenant_id.unwrap_or_default().0;
    if tenant_id.is_empty() {
        notes.add(Notes::TENANT_MISSING);
    }
    let region = region.unwrap_or_default().0;
    if region.is_empty() {
        notes.add(Notes::REGION_MISSING);
    }
    Ok(MetricView {
        region,
        tenant_id,
        name: metric.name.0,
        dimensions: metric.dimensions.map(|dimensions| dimensions.0).unwrap_or_default(),
        time_ms: metric.timestamp.0,
        value: metric.value.0,
        value_meta: value_meta(metric.value_meta, &mut notes)?,
        notes,
    })
}

fn value_meta<'a>(
    raw: Option<&'a RawValue>,
    notes: &mut Notes,
) -> Result<Cow<'a, str>, DecodeError> {
    let Some(raw) = raw else { return Ok(Cow::Borrowed("")) };
    match raw.get().as_bytes().first() {
        Some(b'n') => return Ok(Cow::Borrowed("")),
        Some(b'{') => {}
        _ => return Err(DecodeError::new("WRONG_TYPE", "metric.value_meta is not an object")),
    }
    let text = compact(raw.get());
    if text == "{}" {
        return Ok(Cow::Borrowed(""));
    }
    // Counting characters of a short text is not needed.
    if text.len() > VALUE_META_CHARACTERS_MAX && text.chars().count() > VALUE_META_CHARACTERS_MAX {
        notes.add(Notes::VALUE_META_TOO_LONG);
        return Ok(Cow::Borrowed(""));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
