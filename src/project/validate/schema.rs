//! The shape of a configuration: sections, fields, types and ranges. Meaning is checked elsewhere in [`super`].
//!
//! [`clean`] reports what does not fit and gives back what does, so that the checks of meaning see the rest. A `null` is an
//! absent field, except where any value may stand.

use serde_json::{Map, Value};

use super::{Report, nearest};

pub(super) enum Shape {
    /// Text of at most so many characters.
    Text(usize),
    Bool,
    Integer(u64, u64),
    Number(f64, f64),
    Any,
    /// A name or a list of names.
    Names,
    /// A transform's name or the transform itself.
    Step,
    List(&'static Shape),
    Map(&'static Shape),
    Object(&'static [Field]),
}

pub(super) struct Field {
    name: &'static str,
    required: bool,
    shape: Shape,
}

const fn need(name: &'static str, shape: Shape) -> Field {
    Field { name, required: true, shape }
}

const fn may(name: &'static str, shape: Shape) -> Field {
    Field { name, required: false, shape }
}

const NAME: Shape = Shape::Text(128);
const LINE: Shape = Shape::Text(1024);
const COUNT: Shape = Shape::Integer(1, 100_000);

const TRANSFORM: Shape = Shape::Object(&[
    need("kind", NAME),
    may("from", LINE),
    may("to", LINE),
    may("prefix", LINE),
    may("suffix", LINE),
    may("default", Shape::Any),
    may("steps", Shape::List(&Shape::Step)),
    may("separators", Shape::List(&LINE)),
    may("pattern", LINE),
    may("group", Shape::Integer(0, 99)),
]);

const TEMPLATE_VAR: Shape = Shape::Object(&[may("from", NAME), may("transform", Shape::Names)]);

const QUERY: Shape = Shape::Object(&[
    need("name", NAME),
    need("adapter", NAME),
    need("template", Shape::Text(20_000)),
    may("source_id_transform", Shape::Names),
]);

const FIELD_SOURCE: Shape = Shape::Object(&[need("from", LINE), may("transform", Shape::Names)]);

const REQUIREMENT: Shape = Shape::Object(&[
    need("field", NAME),
    may("present", Shape::Bool),
    may("equals", Shape::Any),
    may("one_of", Shape::List(&Shape::Any)),
    may("not_in", Shape::List(&Shape::Any)),
    may("reached", Shape::Bool),
    may("reason", LINE),
]);

const PATCH: Shape = Shape::Object(&[
    need("match", Shape::Object(&[need("kind", NAME), need("equals", LINE)])),
    need("set", Shape::Map(&Shape::Any)),
]);

const DISCOVERY_AUTOMATION: Shape = Shape::Object(&[
    may("enabled", Shape::Bool),
    may("batch_size", Shape::Integer(1, 1_000)),
    may("stale_after_hours", Shape::Number(0.001, 87_600.0)),
    may("tick_discovery_source_limit", COUNT),
    may("tick_discovery_batch_limit", COUNT),
    may("concurrent_discovery_batch_limit", COUNT),
    may("queue_max_depth", Shape::Integer(1, 1_000_000)),
    may("claim_ttl_minutes", Shape::Integer(1, 10_080)),
]);

const EXECUTION_AUTOMATION: Shape = Shape::Object(&[
    may("enabled", Shape::Bool),
    may("archive_name", NAME),
    may("deployment_profile_name", NAME),
    may("max_sources_per_execution", Shape::Integer(1, 1_000)),
    may("min_sources_to_trigger", Shape::Integer(1, 1_000)),
    may("max_wait_minutes", Shape::Integer(0, 525_600)),
    may("tick_execution_source_limit", COUNT),
    may("tick_execution_run_limit", COUNT),
    may("concurrent_execution_run_limit", COUNT),
    may("claim_ttl_minutes", Shape::Integer(1, 10_080)),
    may("execution_rest_remote_poll_interval_seconds", Shape::Number(0.1, 86_400.0)),
    may("execution_rest_remote_poll_max_rounds", Shape::Integer(1, 10_000_000)),
    may("execution_slurm_remote_poll_interval_seconds", Shape::Number(0.1, 86_400.0)),
    may("execution_slurm_remote_poll_max_rounds", Shape::Integer(1, 10_000_000)),
]);

/// The whole configuration.
pub(super) static PROJECT: Shape = Shape::Object(&[
    need("apiVersion", NAME),
    need("kind", NAME),
    need("metadata", Shape::Object(&[need("id", NAME), may("description", Shape::Text(10_000))])),
    may("definitions", Shape::Object(&[may("transforms", Shape::Map(&TRANSFORM))])),
    may(
        "source_identity",
        Shape::Object(&[may("canonical", NAME), may("template_vars", Shape::Map(&TEMPLATE_VAR))]),
    ),
    need(
        "adapters",
        Shape::Object(&[
            may("required", Shape::List(&NAME)),
            may("casda_tap_url", LINE),
            may("vizier_tap_url", LINE),
            may("endpoints", Shape::Map(&LINE)),
            may(
                "tap",
                Shape::Object(&[
                    may("timeout_seconds", Shape::Integer(1, 3_600)),
                    may("retries", Shape::Integer(0, 10)),
                    may("fail_open", Shape::Bool),
                ]),
            ),
        ]),
    ),
    need(
        "discovery",
        Shape::Object(&[
            need("queries", Shape::List(&QUERY)),
            may("enrichments", Shape::List(&QUERY)),
            may(
                "prepare_metadata",
                Shape::Object(&[
                    may("field_map", Shape::Map(&FIELD_SOURCE)),
                    may("discovery_flags", Shape::Map(&FIELD_SOURCE)),
                    may(
                        "signature",
                        Shape::Object(&[
                            may("exclude_fields", Shape::List(&NAME)),
                            may("include_discovery_flags", Shape::Bool),
                        ]),
                    ),
                ]),
            ),
            may("require", Shape::List(&REQUIREMENT)),
        ]),
    ),
    may(
        "manifest",
        Shape::Object(&[
            may("group_by", Shape::List(&NAME)),
            may("source_template", Shape::Map(&Shape::Any)),
            may("dataset_template", Shape::Map(&Shape::Any)),
            may("path", LINE),
            may("expand_from", LINE),
        ]),
    ),
    need("graph", Shape::Object(&[may("path", LINE), may("url", LINE), need("sha256", NAME)])),
    may("graph_patches", Shape::List(&PATCH)),
    may("output_verification", Shape::Object(&[may("required", Shape::Bool), may("inventory_schema", LINE)])),
    may(
        "automation",
        Shape::Object(&[may("discovery", DISCOVERY_AUTOMATION), may("execution", EXECUTION_AUTOMATION)]),
    ),
    may("extension", Shape::Object(&[may("wasm_sha256", NAME), may("hooks", Shape::List(&NAME))])),
]);

/// What of `value` fits the shape; `None` when nothing does.
pub(super) fn clean(value: &Value, shape: &Shape, path: &str, report: &mut Report) -> Option<Value> {
    match (shape, value) {
        (Shape::Any, _) | (Shape::Bool, Value::Bool(_)) => Some(value.clone()),
        (Shape::Text(most), Value::String(text)) => {
            if text.chars().count() > *most {
                report.error(path, "too_long", format!("more than {most} characters"));
                return None;
            }
            Some(value.clone())
        }
        (Shape::Integer(least, most), Value::Number(number)) => {
            // 5.0 is a whole number however it is spelled.
            let whole = number.as_u64().or_else(|| {
                let float =
                    number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..9e15).contains(float))?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "in range and whole"
                )]
                Some(float as u64)
            });
            match whole {
                Some(whole) if (*least..=*most).contains(&whole) => Some(Value::from(whole)),
                None if number.as_i64().is_none() => {
                    report.error(path, "wrong_type", format!("{number} is not a whole number"));
                    None
                }
                _ => {
                    report.error(path, "out_of_range", format!("{number} is not from {least} to {most}"));
                    None
                }
            }
        }
        (Shape::Number(least, most), Value::Number(number)) => {
            if number.as_f64().is_some_and(|float| (*least..=*most).contains(&float)) {
                return Some(value.clone());
            }
            report.error(path, "out_of_range", format!("{number} is not from {least} to {most}"));
            None
        }
        (Shape::Names, Value::String(_)) => clean(value, &NAME, path, report),
        (Shape::Names, Value::Array(_)) => clean(value, &Shape::List(&NAME), path, report),
        (Shape::Step, Value::String(_)) => clean(value, &NAME, path, report),
        (Shape::Step, Value::Object(_)) => clean(value, &TRANSFORM, path, report),
        (Shape::List(inner), Value::Array(items)) => {
            let kept = items.iter().enumerate();
            Some(
                kept.filter_map(|(index, item)| clean(item, inner, &format!("{path}[{index}]"), report))
                    .collect(),
            )
        }
        (Shape::Map(inner), Value::Object(map)) => {
            let mut kept = Map::new();
            for (key, item) in map {
                if let Some(item) = clean(item, inner, &below(path, key), report) {
                    kept.insert(key.clone(), item);
                }
            }
            Some(Value::Object(kept))
        }
        (Shape::Object(fields), Value::Object(map)) => Some(object(map, fields, path, report)),
        (shape, other) => {
            let message = format!("{} is wanted, and this is {}", shape.wanted(), kind_of(other));
            let quote = matches!(shape, Shape::Text(_)) && (other.is_number() || other.is_boolean());
            report.error_hint(
                path,
                "wrong_type",
                message,
                quote.then(|| format!("put it in quotes: \"{other}\"")),
            );
            None
        }
    }
}

fn object(map: &Map<String, Value>, fields: &[Field], path: &str, report: &mut Report) -> Value {
    let mut kept = Map::new();
    for (key, item) in map {
        let Some(field) = fields.iter().find(|field| field.name == key) else {
            let hint = nearest(key, fields.iter().map(|field| field.name));
            report.error_hint(
                below(path, key),
                "unknown_field",
                format!("there is no field `{key}` here"),
                hint,
            );
            continue;
        };
        if item.is_null() && !matches!(field.shape, Shape::Any) {
            continue;
        }
        if let Some(item) = clean(item, &field.shape, &below(path, key), report) {
            kept.insert(key.clone(), item);
        }
    }
    for field in fields.iter().filter(|field| field.required) {
        if map.get(field.name).is_none_or(Value::is_null) {
            report.error(below(path, field.name), "missing_field", format!("`{}` is needed", field.name));
        }
    }
    Value::Object(kept)
}

impl Shape {
    fn wanted(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Bool => "true or false",
            Self::Integer(..) => "a whole number",
            Self::Number(..) => "a number",
            Self::Any => "a value",
            Self::Names => "a name or a list of names",
            Self::Step => "a transform's name or a transform",
            Self::List(_) => "a list",
            Self::Map(_) | Self::Object(_) => "a mapping",
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
