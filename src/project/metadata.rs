//! Discovery without the network: which queries a source needs, and what their answers come to.
//!
//! [`plan`] gives the queries of a source, [`plan_enrichments`] those of its scheduling blocks once the first answer is
//! there, [`prepare`] the datasets. All three are pure; [`super::discover`] sends what they plan.
//! Invariant: all of a source is prepared or none of it. One row that cannot be a dataset fails the source and is named.
//!
//! Two query names have a meaning of their own, see [`preset`].

pub mod answers;
pub mod preset;
pub mod require;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::archives::tap::adql::{Template, TemplateError, ValueError, Variables};

use super::config::{FieldSource, Names, ProjectConfig, Query, SOURCE_IDENTIFIER};
use super::signature::signature;
use super::transforms::{Context, Transform, apply_all, is_empty, text_of};

pub use answers::{Answer, Answers, enrichment_of};
pub use preset::{EVALUATION_FLAGS, POSITION_FLAGS, RA_DEC_VSYS, SBID_TO_EVAL_FILE};
pub use require::Held;

use answers::Rows;

/// Prepared metadata of one dataset.
pub type Record = Map<String, Value>;

/// A query to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    pub name: String,
    pub adapter: String,
    pub adql: String,
    /// The scheduling block an enrichment is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbid: Option<String>,
}

/// A source whose data is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    pub source_identifier: String,
    /// One for each dataset that is not held.
    pub records: Vec<Record>,
    /// Of the whole source; what is known by SBID stands in its records.
    pub flags: Map<String, Value>,
    /// See [`super::signature`].
    pub signature: String,
    /// Of the records, each once, in ascending order.
    pub sbids: Vec<String>,
    pub datasets: usize,
    /// Datasets that do not meet `discovery.require`.
    pub held: Vec<Held>,
    /// What failed and was gone without.
    pub warnings: Vec<String>,
}

/// Why a source is not prepared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PrepareError {
    #[error("the first query has no rows")]
    NoDatasets,
    #[error("all {} datasets are held: {}", .0.len(), .0.first().map_or("", |held| held.reason.as_str()))]
    AllHeld(Vec<Held>),
    #[error("row {row} ({name}): {problem}")]
    Row { row: usize, name: String, problem: String },
    #[error("`{field}` comes from `{from}`, which the answer does not have")]
    MissingColumn { field: String, from: String },
    #[error("`{query}` has {rows} rows{}, and one is needed for `{from}`", of_block(.sbid.as_deref()))]
    SeveralRows { query: String, from: String, rows: usize, sbid: Option<String> },
    #[error("SBID {sbid}: `{field}` differs between its datasets, so `{query}` cannot use it")]
    Differs { query: String, field: String, sbid: String },
    #[error("SBID {sbid} has no calibration archive among its evaluation files")]
    NoEvaluationFile { sbid: String },
    #[error("query `{query}`: {problem}")]
    Template { query: String, problem: String },
    #[error("`{0}` was not answered")]
    NotAnswered(String),
}

fn of_block(sbid: Option<&str>) -> String {
    sbid.map(|sbid| format!(" for SBID {sbid}")).unwrap_or_default()
}

/// The variables of a source: its identifier and those the survey makes from it.
pub fn variables(config: &ProjectConfig, identifier: &str) -> Variables {
    let mut all = Variables::new();
    for (name, var) in &config.source_identity.template_vars {
        let value = transformed(config, &var.transform, Value::from(identifier));
        all.insert(name.clone(), text_of(&value).unwrap_or_default());
    }
    all.entry(SOURCE_IDENTIFIER.to_owned()).or_insert_with(|| identifier.to_owned());
    all
}

fn query_variables(config: &ProjectConfig, query: &Query, identifier: &str) -> Variables {
    let mut all = variables(config, identifier);
    if query.source_id_transform != Names::None {
        let value = transformed(config, &query.source_id_transform, Value::from(identifier));
        all.insert(SOURCE_IDENTIFIER.to_owned(), text_of(&value).unwrap_or_default());
    }
    all
}

/// The queries of a source, the one that gives its datasets first.
pub fn plan(config: &ProjectConfig, identifier: &str) -> Result<Vec<Planned>, PrepareError> {
    config
        .discovery
        .queries
        .iter()
        .map(|query| planned(query, &query_variables(config, query, identifier), None))
        .collect()
}

/// The enrichments of a source: each once for each SBID that the first answer has.
pub fn plan_enrichments(
    config: &ProjectConfig,
    identifier: &str,
    answers: &Answers,
) -> Result<Vec<Planned>, PrepareError> {
    let records = base_records(config, identifier, answers)?;
    let mut planned_queries = Vec::new();
    for sbid in sbids(&records) {
        let group: Vec<&Record> = records.iter().filter(|record| sbid_of(record) == sbid).collect();
        for query in &config.discovery.enrichments {
            let mut all = query_variables(config, query, identifier);
            for field in group_fields(config, query, &all)? {
                let mut values = group.iter().map(|record| record.get(&field).unwrap_or(&Value::Null));
                let first = values.next().unwrap_or(&Value::Null);
                if values.any(|other| other != first) {
                    return Err(PrepareError::Differs { query: query.name.clone(), field, sbid });
                }
                all.insert(field.clone(), text_of(first).unwrap_or_default());
            }
            all.insert("sbid".to_owned(), sbid.clone());
            planned_queries.push(planned(query, &all, Some(sbid.clone()))?);
        }
    }
    Ok(planned_queries)
}

/// The variables of an enrichment that are fields of the datasets.
fn group_fields(
    config: &ProjectConfig,
    query: &Query,
    known: &Variables,
) -> Result<Vec<String>, PrepareError> {
    let template = template(query)?;
    let fields = &config.discovery.prepare_metadata.field_map;
    let names = template.variables().into_iter().filter(|name| !known.contains_key(*name));
    Ok(names.filter(|name| fields.contains_key(*name)).map(str::to_owned).collect())
}

fn template(query: &Query) -> Result<Template, PrepareError> {
    Template::parse(&query.template).map_err(|error: TemplateError| PrepareError::Template {
        query: query.name.clone(),
        problem: error.to_string(),
    })
}

fn planned(query: &Query, variables: &Variables, sbid: Option<String>) -> Result<Planned, PrepareError> {
    let adql = template(query)?.render(variables).map_err(|error: ValueError| PrepareError::Template {
        query: query.name.clone(),
        problem: error.to_string(),
    })?;
    Ok(Planned { name: query.name.clone(), adapter: query.adapter.clone(), adql, sbid })
}

fn transformed(config: &ProjectConfig, names: &Names, value: Value) -> Value {
    apply_all(&config.transforms(names), value, Context::default())
}

/// The datasets, their flags and their signature, from answers to everything that was planned.
///
/// `now` decides which release dates have come.
pub fn prepare(
    config: &ProjectConfig,
    identifier: &str,
    answers: &Answers,
    now: DateTime<Utc>,
) -> Result<Prepared, PrepareError> {
    let mut records = base_records(config, identifier, answers)?;
    let metadata = &config.discovery.prepare_metadata;
    let rows = Rows::new(answers);
    let fields = metadata.field_map.iter().filter(|(_, source)| enrichment_of(source).is_some());
    let fields = fields.map(|(field, source)| (field.as_str(), source));
    let late: Vec<(&str, &FieldSource, Vec<Transform>)> = fields
        .chain(record_flags(config))
        .map(|(name, source)| (name, source, config.transforms(&source.transform)))
        .collect();
    for (row, record) in records.iter_mut().enumerate() {
        let sbid = sbid_of(record);
        let context = Context { sbid: Some(&sbid) };
        for (field, source, transforms) in &late {
            let value = rows.value(config, field, source, Some(&sbid))?;
            record.insert((*field).to_owned(), apply_all(transforms, value, context));
        }
        if preset::asks(config, SBID_TO_EVAL_FILE) {
            preset::set_evaluation_file(&rows, record, &sbid)?;
        }
        check_row(row, record, |_| false)?;
    }
    let mut flags = Map::new();
    if preset::asks(config, RA_DEC_VSYS) {
        flags = preset::position_flags(&rows);
    }
    for (flag, source) in &metadata.discovery_flags {
        if record_flags(config).any(|(name, _)| name == flag) {
            continue;
        }
        let value = match enrichment_of(source) {
            Some(_) => rows.value(config, flag, source, None)?,
            None => Value::from(identifier),
        };
        flags.insert(flag.clone(), transformed(config, &source.transform, value));
    }

    let (records, held) = require::sift(&config.discovery.require, records, now);
    if records.is_empty() {
        return Err(PrepareError::AllHeld(held));
    }
    if preset::asks(config, SBID_TO_EVAL_FILE)
        && !answers.failed(SBID_TO_EVAL_FILE)
        && let Some(without) = records.iter().find(|record| is_empty(&record[EVALUATION_FLAGS[0]]))
    {
        return Err(PrepareError::NoEvaluationFile { sbid: sbid_of(without) });
    }
    let mut flag_fields: Vec<&str> = record_flags(config).map(|(name, _)| name).collect();
    flag_fields.extend(EVALUATION_FLAGS);
    Ok(Prepared {
        source_identifier: identifier.to_owned(),
        signature: signature(&records, &flags, &flag_fields, &metadata.signature),
        sbids: sbids(&records),
        datasets: records.len(),
        records,
        flags,
        held,
        warnings: answers.warnings(),
    })
}

/// One record for each row of the first query, with what does not need another query.
fn base_records(
    config: &ProjectConfig,
    identifier: &str,
    answers: &Answers,
) -> Result<Vec<Record>, PrepareError> {
    let first = config.discovery.queries.first().ok_or(PrepareError::NoDatasets)?;
    let table = match answers.queries.get(&first.name) {
        Some(Answer::Rows(table)) => table,
        _ => return Err(PrepareError::NotAnswered(first.name.clone())),
    };
    if table.rows.is_empty() {
        return Err(PrepareError::NoDatasets);
    }
    let fields = &config.discovery.prepare_metadata.field_map;
    let early: Vec<(&str, &FieldSource, Vec<Transform>)> = fields
        .iter()
        .filter(|(field, source)| *field != "sbid" && enrichment_of(source).is_none())
        .map(|(field, source)| (field.as_str(), source, config.transforms(&source.transform)))
        .collect();
    let sbid_source = fields.get("sbid").map(|source| (source, config.transforms(&source.transform)));
    let mut records = Vec::with_capacity(table.rows.len());
    for (row, columns) in table.records().into_iter().enumerate() {
        let take = |field: &str, source: &FieldSource| -> Result<Value, PrepareError> {
            let from = source.from.to_lowercase();
            match columns.get(&from) {
                Some(value) => Ok(value.clone()),
                None if from == SOURCE_IDENTIFIER || from == "canonical" => Ok(Value::from(identifier)),
                None => {
                    Err(PrepareError::MissingColumn { field: field.to_owned(), from: source.from.clone() })
                }
            }
        };
        // The SBID first: other transforms may want to know it.
        let sbid = match &sbid_source {
            Some((source, transforms)) => apply_all(transforms, take("sbid", source)?, Context::default()),
            None => columns.get("sbid").cloned().unwrap_or_default(),
        };
        let sbid = text_of(&sbid).map(|text| text.trim().to_owned()).unwrap_or_default();
        let mut record = columns.clone();
        for (field, source, transforms) in &early {
            let value = apply_all(transforms, take(field, source)?, Context { sbid: Some(&sbid) });
            record.insert((*field).to_owned(), value);
        }
        record.insert("sbid".to_owned(), Value::from(sbid));
        check_row(row, &record, |field| {
            fields.get(field).is_some_and(|source| enrichment_of(source).is_some())
        })?;
        records.push(record);
    }
    Ok(records)
}

/// Every dataset needs an SBID and something to call it by; a field that is `to_come` is not missed yet.
fn check_row(row: usize, record: &Record, to_come: impl Fn(&str) -> bool) -> Result<(), PrepareError> {
    let empty = |field: &str| record.get(field).is_none_or(is_empty);
    let problem = if empty("sbid") {
        "no `sbid`"
    } else if ["dataset_id", "visibility_filename"].iter().all(|field| empty(field) && !to_come(field)) {
        "neither `dataset_id` nor `visibility_filename`"
    } else {
        return Ok(());
    };
    let named = ["dataset_id", "visibility_filename", "filename", "obs_publisher_did", "obs_id"];
    let name = named.iter().find_map(|field| text_of(record.get(*field)?));
    let name = name.unwrap_or_else(|| super::canonical::text(&Value::Object(record.clone())));
    let name = name.chars().take(120).collect();
    Err(PrepareError::Row { row, name, problem: problem.to_owned() })
}

/// The flags that belong to a block, because the query behind them runs once for each.
pub fn record_flags(config: &ProjectConfig) -> impl Iterator<Item = (&str, &FieldSource)> {
    config.discovery.prepare_metadata.discovery_flags.iter().filter_map(|(flag, source)| {
        let (query, _) = enrichment_of(source)?;
        config
            .discovery
            .enrichments
            .iter()
            .any(|other| other.name == query)
            .then_some((flag.as_str(), source))
    })
}

/// The SBID of a record, empty if it has none.
pub fn sbid_of(record: &Record) -> String {
    record.get("sbid").and_then(text_of).unwrap_or_default()
}

/// Each SBID once, numbers in the order of numbers.
pub fn sbids(records: &[Record]) -> Vec<String> {
    let mut all: Vec<String> = records.iter().map(sbid_of).collect();
    all.sort_by_key(|sbid| (sbid.parse::<u64>().unwrap_or(u64::MAX), sbid.clone()));
    all.dedup();
    all
}
