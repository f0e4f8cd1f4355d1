//! Says everything that is wrong with a configuration at once: where, what kind, in words, and what may be meant.
//!
//! The YAML is read as data, held against the [`schema`], and what is left of it (wrong parts taken out and reported) goes
//! through the checks of meaning, so that one mistake does not hide another. Invariant: a configuration is handed out only
//! without errors; its digest is over the data as it was written, whatever the order of its keys.

mod discovery;
mod identity;
mod output;
pub mod schema;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::canonical;
use super::config::ProjectConfig;

/// Largest configuration, in bytes of YAML.
pub const MAX_BYTES: usize = 200 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Such as `discovery.queries[0].template`; empty for the whole.
    pub path: String,
    pub severity: Severity,
    /// A word that stays the same when the message is improved.
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidationReport {
    /// `metadata.id`, empty when there is none.
    pub project_id: String,
    pub valid: bool,
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
    /// Of the canonical JSON, empty when the text is no YAML.
    pub spec_sha256: String,
}

/// A report, with the configuration if it is valid.
#[derive(Debug, Clone)]
pub struct Validation {
    pub report: ValidationReport,
    /// The data as it was written.
    pub spec: Option<Value>,
    pub config: Option<ProjectConfig>,
}

/// Validates a configuration given as YAML.
pub fn validate(yaml: &str) -> Validation {
    match read(yaml) {
        Ok(spec) => validate_spec(spec),
        Err(diagnostic) => Validation {
            report: ValidationReport {
                project_id: String::new(),
                valid: false,
                errors: vec![diagnostic],
                warnings: Vec::new(),
                spec_sha256: String::new(),
            },
            spec: None,
            config: None,
        },
    }
}

/// Validates a configuration given as data.
pub fn validate_spec(spec: Value) -> Validation {
    let mut report = Report::default();
    let cleaned = schema::clean(&spec, &schema::PROJECT, "", &mut report).unwrap_or_else(|| json!({}));
    let config = match serde_json::from_value::<ProjectConfig>(cleaned) {
        Ok(config) => {
            identity::check(&config, &mut report);
            discovery::check(&config, &mut report);
            output::check(&config, &mut report);
            Some(config)
        }
        Err(error) => {
            report.error("", "wrong_type", error.to_string());
            None
        }
    };
    let Report { errors, warnings } = report;
    let valid = errors.is_empty();
    let project_id = spec["metadata"]["id"].as_str().unwrap_or_default().to_owned();
    let report =
        ValidationReport { project_id, valid, errors, warnings, spec_sha256: canonical::sha256(&spec) };
    Validation { report, spec: Some(spec), config: config.filter(|_| valid) }
}

/// A specification without the nulls that stand for absent fields.
pub(super) fn without_nulls(spec: &Value) -> Value {
    schema::clean(spec, &schema::PROJECT, "", &mut Report::default()).unwrap_or_else(|| json!({}))
}

/// YAML as data, within limits: size, depth, nodes, and few aliases, so that none grows when it is read.
fn read(yaml: &str) -> Result<Value, Diagnostic> {
    let wrong = |code: &str, message: String| Diagnostic {
        path: String::new(),
        severity: Severity::Error,
        code: code.to_owned(),
        message,
        hint: None,
    };
    if yaml.len() > MAX_BYTES {
        return Err(wrong("yaml_too_large", format!("{} bytes, and {MAX_BYTES} are allowed", yaml.len())));
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: 24,
            max_nodes: 20_000,
            max_events: 60_000,
            max_aliases: 64,
            max_anchors: 64,
            max_documents: 1,
        },
    };
    let value: Value = serde_saphyr::from_str_with_options(yaml, options).map_err(|error| {
        let place = error.location().map(|at| format!("line {}, column {}: ", at.line(), at.column()));
        let text = error.to_string();
        let (code, words) = in_our_words(text.lines().next().unwrap_or_default());
        wrong(code, format!("{}{words}", place.unwrap_or_default()))
    })?;
    if !value.is_object() {
        return Err(wrong("yaml_not_a_mapping", "a configuration is a mapping of sections".to_owned()));
    }
    Ok(value)
}

/// What the YAML reader says, without the names of its settings and the place it repeats.
fn in_our_words(said: &str) -> (&'static str, String) {
    if let Some((_, rest)) = said.split_once("duplicate mapping key: ") {
        let key = rest.split(',').next().unwrap_or_default();
        return ("yaml_duplicate_key", format!("`{key}` is given twice"));
    }
    if said.contains("budget breached") {
        return (
            "yaml_limits",
            "more documents, levels, values or aliases than a configuration may have".to_owned(),
        );
    }
    ("yaml_syntax", said.split(" at line ").next().unwrap_or(said).to_owned())
}

/// Collects what is wrong.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Report {
    fn error(&mut self, path: impl Into<String>, code: &str, message: impl Into<String>) {
        self.add(Severity::Error, path.into(), code, message.into(), None);
    }

    fn error_hint(
        &mut self,
        path: impl Into<String>,
        code: &str,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        self.add(Severity::Error, path.into(), code, message.into(), hint);
    }

    fn warn(&mut self, path: impl Into<String>, code: &str, message: impl Into<String>) {
        self.add(Severity::Warning, path.into(), code, message.into(), None);
    }

    fn add(&mut self, severity: Severity, path: String, code: &str, message: String, hint: Option<String>) {
        let to = match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        to.push(Diagnostic { path, severity, code: code.to_owned(), message, hint });
    }
}

/// `did you mean …?` when one of the known words is close to an unknown one.
fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let lower = word.to_lowercase();
    let best = known.into_iter().map(|other| (distance(&lower, &other.to_lowercase()), other)).min()?;
    (best.0 <= (word.chars().count() / 3).max(2)).then(|| format!("did you mean `{}`?", best.1))
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
