//! The manifest: what an execution works on, as the graph's ingest node reads it.
//!
//! `{inputs: {}, sources: [{source_identifier, …source_template, sbids: [{sbid, datasets: […]}]}]}`. Sources, SBIDs and
//! datasets are sorted, so the same work gives the same bytes. Invariant: every source in it has datasets; a manifest
//! without any is refused here, before anything is translated.

use serde_json::{Map, Value, json};

use crate::archives::tap::adql::Variables;

use super::canonical;
use super::config::{ProjectConfig, SOURCE_IDENTIFIER};
use super::metadata::{Prepared, Record, sbid_of, sbids, variables};
use super::template::{self, TemplateError};
use super::transforms::text_of;

/// Most the ingest node takes.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;

/// One source of an execution.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    pub prepared: &'a Prepared,
    /// Only these blocks; all when absent.
    pub sbids: Option<&'a [String]>,
}

/// A manifest, its canonical text, and what is in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub value: Value,
    /// Canonical JSON, the bytes that are hashed, kept and injected.
    pub text: String,
    pub sha256: String,
    pub total_datasets: usize,
    pub sources: Vec<SourceCount>,
}

/// How much of a source is in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SourceCount {
    pub source_identifier: String,
    pub sbid_count: usize,
    pub dataset_count: usize,
}

/// Why there is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("no sources")]
    NoSources,
    #[error("{0} is given twice")]
    Twice(String),
    #[error("{0} has no datasets")]
    NoDatasets(String),
    #[error("{source_identifier} has no SBID {sbid}")]
    UnknownSbid { source_identifier: String, sbid: String },
    #[error("{source_identifier}: {template}.{field}: {problem}")]
    Template { source_identifier: String, template: &'static str, field: String, problem: String },
    #[error("the manifest has {0} bytes, more than the ingest node takes")]
    TooLarge(usize),
}

/// Builds the manifest of some sources.
pub fn build(config: &ProjectConfig, selections: &[Selection<'_>]) -> Result<Manifest, ManifestError> {
    if selections.is_empty() {
        return Err(ManifestError::NoSources);
    }
    let mut selections = selections.to_vec();
    selections.sort_by(|a, b| a.prepared.source_identifier.cmp(&b.prepared.source_identifier));
    for pair in selections.windows(2) {
        if pair[0].prepared.source_identifier == pair[1].prepared.source_identifier {
            return Err(ManifestError::Twice(pair[0].prepared.source_identifier.clone()));
        }
    }
    let mut sources = Vec::new();
    let mut counts = Vec::new();
    for selection in &selections {
        let (source, count) = source(config, selection)?;
        sources.push(source);
        counts.push(count);
    }
    let value = json!({"inputs": {}, "sources": sources});
    let text = canonical::text(&value);
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge(text.len()));
    }
    Ok(Manifest {
        sha256: canonical::sha256_of(text.as_bytes()),
        total_datasets: counts.iter().map(|count| count.dataset_count).sum(),
        value,
        text,
        sources: counts,
    })
}

fn source(config: &ProjectConfig, selection: &Selection<'_>) -> Result<(Value, SourceCount), ManifestError> {
    let prepared = selection.prepared;
    let identifier = prepared.source_identifier.as_str();
    let known = sbids(&prepared.records);
    if let Some(sbid) = selection.sbids.into_iter().flatten().find(|sbid| !known.contains(sbid)) {
        return Err(ManifestError::UnknownSbid {
            source_identifier: identifier.to_owned(),
            sbid: sbid.clone(),
        });
    }
    let wanted = |sbid: &String| selection.sbids.is_none_or(|only| only.contains(sbid));
    let records: Vec<&Record> = prepared.records.iter().filter(|record| wanted(&sbid_of(record))).collect();
    if records.is_empty() {
        return Err(ManifestError::NoDatasets(identifier.to_owned()));
    }

    let failed = |template: &'static str, field: &str, error: TemplateError| ManifestError::Template {
        source_identifier: identifier.to_owned(),
        template,
        field: field.to_owned(),
        problem: error.to_string(),
    };
    let scope = Scope { variables: variables(config, identifier), prepared };
    let mut entry = Map::new();
    for (field, template) in &config.manifest.source_template {
        let value = template::fill(template, &|name| scope.of_source(name, &records))
            .map_err(|error| failed("source_template", field, error))?;
        entry.insert(field.clone(), value);
    }
    entry.insert(SOURCE_IDENTIFIER.to_owned(), Value::from(identifier));

    let mut blocks = Vec::new();
    for sbid in known.iter().filter(|sbid| wanted(sbid)) {
        let mut datasets = Vec::new();
        for record in records.iter().filter(|record| sbid_of(record) == **sbid) {
            let dataset = match &config.manifest.dataset_template {
                None => Value::Object((*record).clone()),
                Some(fields) => {
                    let mut dataset = Map::new();
                    for (field, template) in fields {
                        let value = template::fill(template, &|name| scope.of_dataset(name, record))
                            .map_err(|error| failed("dataset_template", field, error))?;
                        dataset.insert(field.clone(), value);
                    }
                    Value::Object(dataset)
                }
            };
            let name =
                ["dataset_id", "visibility_filename"].iter().find_map(|field| text_of(record.get(*field)?));
            datasets.push((name.unwrap_or_default(), canonical::text(&dataset), dataset));
        }
        datasets.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let datasets: Vec<Value> = datasets.into_iter().map(|(_, _, dataset)| dataset).collect();
        blocks.push(json!({"sbid": sbid, "datasets": datasets}));
    }
    let count = SourceCount {
        source_identifier: identifier.to_owned(),
        sbid_count: blocks.len(),
        dataset_count: records.len(),
    };
    entry.insert("sbids".to_owned(), Value::Array(blocks));
    Ok((Value::Object(entry), count))
}

/// What `{…}` can name.
struct Scope<'a> {
    variables: Variables,
    prepared: &'a Prepared,
}

impl Scope<'_> {
    /// A flag, a variable made from the identifier, or a field all the source's datasets agree on.
    fn of_source(&self, name: &str, records: &[&Record]) -> Option<Value> {
        if let Some(flag) = name.strip_prefix("flags.") {
            return within(&self.prepared.flags, flag);
        }
        self.variable(name).or_else(|| {
            let first = within(records.first()?, name)?;
            records.iter().all(|record| within(record, name).as_ref() == Some(&first)).then_some(first)
        })
    }

    /// A flag of the source or of the block, a field of the dataset, or a variable.
    fn of_dataset(&self, name: &str, record: &Record) -> Option<Value> {
        if let Some(flag) = name.strip_prefix("flags.") {
            return within(&self.prepared.flags, flag).or_else(|| within(record, flag));
        }
        within(record, name).or_else(|| self.variable(name))
    }

    fn variable(&self, name: &str) -> Option<Value> {
        self.variables.get(name).map(|value| Value::from(value.as_str()))
    }
}

/// A value by its path `a.b.c`; `null` has every path below it.
fn within(map: &Map<String, Value>, path: &str) -> Option<Value> {
    if let Some(value) = map.get(path) {
        return Some(value.clone());
    }
    let (head, rest) = path.split_once('.')?;
    match map.get(head)? {
        Value::Object(inner) => within(inner, rest),
        Value::Null => Some(Value::Null),
        _ => None,
    }
}
