//! Transforms: small named functions over one value that a configuration puts together.
//!
//! A transform cannot fail. On `null` it answers `null`, and one that finds nothing in a value answers `null` as well, so
//! that [`Transform::IsPresent`] and [`Transform::DefaultIfEmpty`] can follow it; only these two see `null` themselves.
//! Values that are not text are taken as their text by the transforms of text.

pub mod evaluation;
pub mod sexagesimal;

use std::collections::BTreeMap;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A transform as the configuration writes it; which parameters belong to which kind is in [`KINDS`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformSpec {
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Step>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separators: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
}

/// One step of a chain: a transform by name, or written out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Step {
    Name(String),
    Inline(Box<TransformSpec>),
}

/// Every kind, with the parameters it needs and those it may have.
pub const KINDS: &[(&str, &[&str], &[&str])] = &[
    ("identity", &[], &[]),
    ("trim", &[], &[]),
    ("lowercase", &[], &[]),
    ("uppercase", &[], &[]),
    ("replace", &["from"], &["to"]),
    ("add_prefix", &["prefix"], &[]),
    ("add_suffix", &["suffix"], &[]),
    ("default_if_empty", &["default"], &[]),
    ("chain", &["steps"], &[]),
    ("strip_prefix", &["prefix"], &[]),
    ("extract_digits", &[], &[]),
    ("split_last", &["separators"], &[]),
    ("is_present", &[], &[]),
    ("regex_extract", &["pattern"], &["group"]),
    ("select_eval_file_by_size", &[], &[]),
    ("degrees_to_hms", &[], &[]),
    ("degrees_to_dms", &[], &[]),
];

/// A transform that was found sound.
#[derive(Debug, Clone)]
pub enum Transform {
    Identity,
    Trim,
    Lowercase,
    Uppercase,
    Replace { from: String, to: String },
    AddPrefix(String),
    AddSuffix(String),
    DefaultIfEmpty(Value),
    Chain(Vec<Transform>),
    StripPrefix(String),
    ExtractDigits,
    SplitLast(Vec<String>),
    IsPresent,
    RegexExtract { regex: Regex, group: usize },
    SelectEvalFileBySize,
    DegreesToHms,
    DegreesToDms,
}

/// Why a transform cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    #[error("there is no transform `{0}`")]
    UnknownName(String),
    #[error("there is no kind of transform `{0}`")]
    UnknownKind(String),
    #[error("`{kind}` needs `{parameter}`")]
    Missing { kind: String, parameter: &'static str },
    #[error("`{kind}` has no `{parameter}`")]
    Unneeded { kind: String, parameter: &'static str },
    #[error("the pattern is not a regular expression: {0}")]
    Pattern(String),
    #[error("the pattern has {has} groups, so there is no group {group}")]
    Group { group: usize, has: usize },
    #[error("`{0}` leads back to itself")]
    Cycle(String),
    #[error("`{0}` is empty")]
    Empty(&'static str),
}

/// What a transform may know besides the value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The scheduling block the value belongs to, where there is one.
    pub sbid: Option<&'a str>,
}

/// The transforms a configuration defines, by name.
pub type Definitions = BTreeMap<String, TransformSpec>;

impl Transform {
    /// A transform by its name: one of the definitions, else a kind that needs no parameter.
    pub fn named(name: &str, definitions: &Definitions) -> Result<Self, TransformError> {
        Self::resolve(name, definitions, &mut Vec::new())
    }

    /// A transform as it is written.
    pub fn compile(spec: &TransformSpec, definitions: &Definitions) -> Result<Self, TransformError> {
        Self::build(spec, definitions, &mut Vec::new())
    }

    fn resolve(
        name: &str,
        definitions: &Definitions,
        path: &mut Vec<String>,
    ) -> Result<Self, TransformError> {
        if path.iter().any(|above| above == name) {
            return Err(TransformError::Cycle(name.to_owned()));
        }
        if let Some(spec) = definitions.get(name) {
            path.push(name.to_owned());
            let made = Self::build(spec, definitions, path);
            path.pop();
            return made;
        }
        let bare = KINDS.iter().any(|(kind, needs, _)| *kind == name && needs.is_empty());
        if !bare {
            return Err(TransformError::UnknownName(name.to_owned()));
        }
        Self::build(&TransformSpec { kind: name.to_owned(), ..TransformSpec::default() }, definitions, path)
    }

    fn build(
        spec: &TransformSpec,
        definitions: &Definitions,
        path: &mut Vec<String>,
    ) -> Result<Self, TransformError> {
        let Some((kind, needs, may)) = KINDS.iter().find(|(kind, ..)| *kind == spec.kind) else {
            return Err(TransformError::UnknownKind(spec.kind.clone()));
        };
        for (parameter, given) in spec.parameters() {
            if given && !needs.contains(&parameter) && !may.contains(&parameter) {
                return Err(TransformError::Unneeded { kind: spec.kind.clone(), parameter });
            }
            if !given && needs.contains(&parameter) {
                return Err(TransformError::Missing { kind: spec.kind.clone(), parameter });
            }
        }
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Ok(match *kind {
            "identity" => Self::Identity,
            "trim" => Self::Trim,
            "lowercase" => Self::Lowercase,
            "uppercase" => Self::Uppercase,
            "replace" => {
                let from = text(&spec.from);
                if from.is_empty() {
                    return Err(TransformError::Empty("from"));
                }
                Self::Replace { from, to: text(&spec.to) }
            }
            "add_prefix" => Self::AddPrefix(text(&spec.prefix)),
            "add_suffix" => Self::AddSuffix(text(&spec.suffix)),
            "strip_prefix" => Self::StripPrefix(text(&spec.prefix)),
            "default_if_empty" => Self::DefaultIfEmpty(spec.default.clone().unwrap_or_default()),
            "extract_digits" => Self::ExtractDigits,
            "is_present" => Self::IsPresent,
            "select_eval_file_by_size" => Self::SelectEvalFileBySize,
            "degrees_to_hms" => Self::DegreesToHms,
            "degrees_to_dms" => Self::DegreesToDms,
            "split_last" => {
                let separators = spec.separators.clone().unwrap_or_default();
                if separators.is_empty() || separators.iter().any(String::is_empty) {
                    return Err(TransformError::Empty("separators"));
                }
                Self::SplitLast(separators)
            }
            "regex_extract" => {
                let regex = regex::RegexBuilder::new(spec.pattern.as_deref().unwrap_or_default())
                    .size_limit(1024 * 1024)
                    .build()
                    .map_err(|error| TransformError::Pattern(last_line(&error.to_string())))?;
                let has = regex.captures_len() - 1;
                let group = spec.group.unwrap_or(usize::from(has > 0));
                if group > has {
                    return Err(TransformError::Group { group, has });
                }
                Self::RegexExtract { regex, group }
            }
            _ => {
                let steps = spec.steps.as_deref().unwrap_or_default();
                if steps.is_empty() {
                    return Err(TransformError::Empty("steps"));
                }
                let made = steps.iter().map(|step| match step {
                    Step::Name(name) => Self::resolve(name, definitions, path),
                    Step::Inline(spec) => Self::build(spec, definitions, path),
                });
                Self::Chain(made.collect::<Result<_, _>>()?)
            }
        })
    }

    /// The value transformed.
    pub fn apply(&self, value: Value, context: Context<'_>) -> Value {
        match self {
            Self::Identity => value,
            Self::IsPresent => Value::Bool(!is_empty(&value)),
            Self::DefaultIfEmpty(default) => {
                if is_empty(&value) {
                    default.clone()
                } else {
                    value
                }
            }
            Self::Chain(steps) => apply_all(steps, value, context),
            Self::SelectEvalFileBySize => evaluation::select(&value, context.sbid),
            Self::DegreesToHms => {
                degrees(&value).and_then(sexagesimal::hms).map_or(Value::Null, Value::String)
            }
            Self::DegreesToDms => {
                degrees(&value).and_then(sexagesimal::dms).map_or(Value::Null, Value::String)
            }
            Self::Trim
            | Self::Lowercase
            | Self::Uppercase
            | Self::Replace { .. }
            | Self::AddPrefix(_)
            | Self::AddSuffix(_)
            | Self::StripPrefix(_)
            | Self::ExtractDigits
            | Self::SplitLast(_)
            | Self::RegexExtract { .. } => {
                text_of(&value).and_then(|text| self.on_text(&text)).map_or(Value::Null, Value::String)
            }
        }
    }

    fn on_text(&self, text: &str) -> Option<String> {
        Some(match self {
            Self::Trim => text.trim().to_owned(),
            Self::Lowercase => text.to_lowercase(),
            Self::Uppercase => text.to_uppercase(),
            Self::Replace { from, to } => text.replace(from, to),
            Self::AddPrefix(prefix) => format!("{prefix}{text}"),
            Self::AddSuffix(suffix) => format!("{text}{suffix}"),
            Self::StripPrefix(prefix) => text.strip_prefix(prefix.as_str()).unwrap_or(text).to_owned(),
            Self::ExtractDigits => {
                let digits: String = text.chars().filter(char::is_ascii_digit).collect();
                return (!digits.is_empty()).then_some(digits);
            }
            Self::SplitLast(separators) => {
                let ends =
                    separators.iter().filter_map(|separator| Some(text.rfind(separator)? + separator.len()));
                text[ends.max().unwrap_or(0)..].to_owned()
            }
            Self::RegexExtract { regex, group } => regex.captures(text)?.get(*group)?.as_str().to_owned(),
            _ => return None,
        })
    }
}

impl TransformSpec {
    fn parameters(&self) -> [(&'static str, bool); 9] {
        [
            ("from", self.from.is_some()),
            ("to", self.to.is_some()),
            ("prefix", self.prefix.is_some()),
            ("suffix", self.suffix.is_some()),
            ("default", self.default.is_some()),
            ("steps", self.steps.is_some()),
            ("separators", self.separators.is_some()),
            ("pattern", self.pattern.is_some()),
            ("group", self.group.is_some()),
        ]
    }
}

/// Several transforms, first to last.
pub fn apply_all(transforms: &[Transform], value: Value, context: Context<'_>) -> Value {
    transforms.iter().fold(value, |value, transform| transform.apply(value, context))
}

/// A value as text: whole numbers without a fraction, lists and objects as JSON, `null` as none.
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
                format!("{float:.0}")
            }
            _ => number.to_string(),
        }),
        other => Some(super::canonical::text(other)),
    }
}

/// Whether there is nothing in a value: `null`, blank text, an empty list or object.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A finite number, also from its text.
pub fn degrees(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number| number.is_finite())
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or(text).trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(spec: Value, value: Value) -> Value {
        let spec: TransformSpec = serde_json::from_value(spec).unwrap();
        Transform::compile(&spec, &Definitions::new()).unwrap().apply(value, Context::default())
    }

    #[test]
    fn each_kind_does_what_its_name_says() {
        for (spec, value, expected) in [
            (json!({"kind": "identity"}), json!([1]), json!([1])),
            (json!({"kind": "trim"}), json!(" a "), json!("a")),
            (json!({"kind": "lowercase"}), json!("ÀB"), json!("àb")),
            (json!({"kind": "uppercase"}), json!("àb"), json!("ÀB")),
            (json!({"kind": "replace", "from": "_", "to": "-"}), json!("a_b_c"), json!("a-b-c")),
            (json!({"kind": "replace", "from": "_"}), json!("a_b_c"), json!("abc")),
            (json!({"kind": "add_prefix", "prefix": "SB"}), json!(34275), json!("SB34275")),
            (json!({"kind": "add_suffix", "suffix": ".tar"}), json!("a"), json!("a.tar")),
            (json!({"kind": "default_if_empty", "default": 7}), json!(" "), json!(7)),
            (json!({"kind": "default_if_empty", "default": 7}), Value::Null, json!(7)),
            (json!({"kind": "default_if_empty", "default": 7}), json!(0), json!(0)),
            (json!({"kind": "strip_prefix", "prefix": "HIPASS"}), json!("HIPASSJ1318-21"), json!("J1318-21")),
            (json!({"kind": "strip_prefix", "prefix": "HIPASS"}), json!("J1318-21"), json!("J1318-21")),
            (json!({"kind": "extract_digits"}), json!("ASKAP-34275"), json!("34275")),
            (json!({"kind": "extract_digits"}), json!(34275.0), json!("34275")),
            (json!({"kind": "extract_digits"}), json!("ASKAP"), Value::Null),
            (json!({"kind": "split_last", "separators": ["#", "/"]}), json!("ivo://a/obs#12"), json!("12")),
            (json!({"kind": "split_last", "separators": ["#"]}), json!("plain"), json!("plain")),
            (json!({"kind": "is_present"}), json!(""), json!(false)),
            (json!({"kind": "is_present"}), json!([{}]), json!(true)),
            (json!({"kind": "is_present"}), Value::Null, json!(false)),
            (json!({"kind": "regex_extract", "pattern": "beam(\\d+)"}), json!("x_beam07_y"), json!("07")),
            (json!({"kind": "regex_extract", "pattern": "beam\\d+"}), json!("x_beam07_y"), json!("beam07")),
            (json!({"kind": "regex_extract", "pattern": "(a)(b)", "group": 2}), json!("ab"), json!("b")),
            (json!({"kind": "regex_extract", "pattern": "z"}), json!("ab"), Value::Null),
            (json!({"kind": "degrees_to_hms"}), json!(199.6), json!("13h18m24.0s")),
            (json!({"kind": "degrees_to_dms"}), json!("-21.05"), json!("-21.3.0.0")),
            (json!({"kind": "degrees_to_dms"}), json!("no number"), Value::Null),
            (json!({"kind": "trim"}), Value::Null, Value::Null),
            (
                json!({"kind": "chain", "steps": ["trim", {"kind": "add_prefix", "prefix": "x"}, "uppercase"]}),
                json!(" a "),
                json!("XA"),
            ),
        ] {
            assert_eq!(run(spec.clone(), value.clone()), expected, "{spec} of {value}");
        }
    }

    #[test]
    fn a_transform_that_cannot_be_made_says_why() {
        use TransformError::*;
        for (spec, error) in [
            (json!({"kind": "upcase"}), UnknownKind("upcase".into())),
            (json!({"kind": "replace"}), Missing { kind: "replace".into(), parameter: "from" }),
            (json!({"kind": "trim", "prefix": "x"}), Unneeded { kind: "trim".into(), parameter: "prefix" }),
            (json!({"kind": "regex_extract", "pattern": "a", "group": 1}), Group { group: 1, has: 0 }),
            (json!({"kind": "split_last", "separators": []}), Empty("separators")),
            (json!({"kind": "replace", "from": ""}), Empty("from")),
            (json!({"kind": "chain", "steps": []}), Empty("steps")),
            (json!({"kind": "chain", "steps": ["nothing"]}), UnknownName("nothing".into())),
            (json!({"kind": "chain", "steps": ["add_prefix"]}), UnknownName("add_prefix".into())),
        ] {
            let spec: TransformSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(Transform::compile(&spec, &Definitions::new()).unwrap_err(), error);
        }
        let spec =
            TransformSpec { kind: "regex_extract".into(), pattern: Some("(".into()), ..Default::default() };
        assert!(matches!(Transform::compile(&spec, &Definitions::new()), Err(Pattern(_))));
    }

    #[test]
    fn a_chain_that_leads_back_to_itself_is_refused() {
        let definitions: Definitions = serde_json::from_value(json!({
            "a": {"kind": "chain", "steps": ["trim", "b"]},
            "b": {"kind": "chain", "steps": ["a"]},
        }))
        .unwrap();
        assert_eq!(Transform::named("a", &definitions).unwrap_err(), TransformError::Cycle("a".into()));
    }
}
