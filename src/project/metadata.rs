//! Discovery without the network: which queries a source needs, and what their answers come to.
//!
//! [`plan`] gives the queries of a source, [`plan_enrichments`] those of its scheduling blocks once the first answer is
//! there, [`prepare`] the datasets. All three are pure; [`super::discover`] sends what they plan.
//! Invariant: all of a source is prepared or none of it. One row that cannot be a dataset fails the source and is named.
//!
//! Two query names have a meaning of their own, for configurations written before flags could say the same:
//! [`RA_DEC_VSYS`] and [`SBID_TO_EVAL_FILE`].

pub mod require;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::archives::tap::Table;
use crate::archives::tap::adql::{Template, TemplateError, ValueError, Variables};

use super::config::{FieldSource, Names, ProjectConfig, Query, SOURCE_IDENTIFIER};
use super::signature::signature;
use super::transforms::{Context, apply_all, degrees, evaluation, is_empty, sexagesimal, text_of};

pub use require::Held;

/// Sets the flags `ra_string`, `dec_string` and `vsys` from a catalogue row.
pub const RA_DEC_VSYS: &str = "ra_dec_vsys";
/// Sets `evaluation_file` and `evaluation_file_access_url` of each record; a block without such a file is an error.
pub const SBID_TO_EVAL_FILE: &str = "sbid_to_eval_file";
/// What [`RA_DEC_VSYS`] sets, for the whole source.
pub const POSITION_FLAGS: [&str; 3] = ["ra_string", "dec_string", "vsys"];
/// What [`SBID_TO_EVAL_FILE`] sets, for each block.
pub const EVALUATION_FLAGS: [&str; 2] = ["evaluation_file", "evaluation_file_access_url"];

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

/// What came of a query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Rows(Table),
    /// Failed, and the survey goes on without (`fail_open`).
    Failed(String),
}

/// The answers of a source, kept as an artifact beside what was made of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    pub queries: BTreeMap<String, Answer>,
    /// By query name, then by SBID.
    pub enrichments: BTreeMap<String, BTreeMap<String, Answer>>,
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
        let value = transformed(config, &var.transform, Value::from(identifier), Context::default());
        all.insert(name.clone(), text_of(&value).unwrap_or_default());
    }
    all.entry(SOURCE_IDENTIFIER.to_owned()).or_insert_with(|| identifier.to_owned());
    all
}

fn query_variables(config: &ProjectConfig, query: &Query, identifier: &str) -> Variables {
    let mut all = variables(config, identifier);
    if query.source_id_transform != Names::None {
        let value =
            transformed(config, &query.source_id_transform, Value::from(identifier), Context::default());
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

fn transformed(config: &ProjectConfig, names: &Names, value: Value, context: Context<'_>) -> Value {
    apply_all(&config.transforms(names), value, context)
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
    for (row, record) in records.iter_mut().enumerate() {
        let sbid = sbid_of(record);
        let context = Context { sbid: Some(&sbid) };
        for (field, source) in metadata.field_map.iter().filter(|(_, source)| enrichment_of(source).is_some())
        {
            let value = enriched(config, answers, field, source, Some(&sbid))?;
            record.insert(field.clone(), transformed(config, &source.transform, value, context));
        }
        for (flag, source) in record_flags(config) {
            let value = enriched(config, answers, flag, source, Some(&sbid))?;
            record.insert(flag.to_owned(), transformed(config, &source.transform, value, context));
        }
        set_evaluation_file(config, answers, record, &sbid)?;
        check_row(row, record, |_| false)?;
    }
    let mut flags = position_flags(config, answers);
    for (flag, source) in &metadata.discovery_flags {
        if record_flags(config).any(|(name, _)| name == flag) {
            continue;
        }
        let value = match enrichment_of(source) {
            Some(_) => enriched(config, answers, flag, source, None)?,
            None => Value::from(identifier),
        };
        flags.insert(flag.clone(), transformed(config, &source.transform, value, Context::default()));
    }

    let (records, held) = require::sift(&config.discovery.require, records, now);
    if records.is_empty() {
        return Err(PrepareError::AllHeld(held));
    }
    if needs_evaluation_file(config, answers)
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
        warnings: warnings(answers),
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
    let mut records = Vec::with_capacity(table.rows.len());
    for (row, columns) in table.records().into_iter().enumerate() {
        let mut record = columns.clone();
        let take = |field: &str, source: &FieldSource, context| -> Result<Value, PrepareError> {
            let from = source.from.to_lowercase();
            let value = match columns.get(&from) {
                Some(value) => value.clone(),
                None if from == SOURCE_IDENTIFIER || from == "canonical" => Value::from(identifier),
                None => {
                    return Err(PrepareError::MissingColumn {
                        field: field.to_owned(),
                        from: source.from.clone(),
                    });
                }
            };
            Ok(transformed(config, &source.transform, value, context))
        };
        // The SBID first: other transforms may want to know it.
        let sbid = match fields.get("sbid") {
            Some(source) => take("sbid", source, Context::default())?,
            None => columns.get("sbid").cloned().unwrap_or_default(),
        };
        let sbid = text_of(&sbid).map(|text| text.trim().to_owned()).unwrap_or_default();
        record.insert("sbid".to_owned(), Value::from(sbid.as_str()));
        let context = Context { sbid: Some(&sbid) };
        for (field, source) in fields.iter().filter(|(field, _)| *field != "sbid") {
            if enrichment_of(source).is_none() {
                record.insert(field.clone(), take(field, source, context)?);
            }
        }
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

/// The query of an `enrichments.<query>` or `enrichments.<query>.<column>`, and the column.
pub fn enrichment_of(source: &FieldSource) -> Option<(&str, Option<&str>)> {
    let rest = source.from.strip_prefix("enrichments.")?;
    Some(rest.split_once('.').map_or((rest, None), |(query, column)| (query, Some(column))))
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

/// The rows of a query, for a block if it runs for each; none where it failed and may.
fn rows(answers: &Answers, query: &str, sbid: Option<&str>) -> Option<Vec<Record>> {
    let answer = match answers.enrichments.get(query) {
        Some(by_sbid) => by_sbid.get(sbid?),
        None => answers.queries.get(query),
    };
    match answer? {
        Answer::Rows(table) => Some(table.records()),
        Answer::Failed(_) => Some(Vec::new()),
    }
}

fn enriched(
    config: &ProjectConfig,
    answers: &Answers,
    field: &str,
    source: &FieldSource,
    sbid: Option<&str>,
) -> Result<Value, PrepareError> {
    let Some((query, column)) = enrichment_of(source) else { return Ok(Value::Null) };
    let rows = rows(answers, query, sbid).ok_or_else(|| PrepareError::NotAnswered(query.to_owned()))?;
    let Some(column) = column else {
        return Ok(Value::Array(rows.into_iter().map(Value::Object).collect()));
    };
    let runs_by_block = config.discovery.enrichments.iter().any(|other| other.name == query);
    let row = if query == SBID_TO_EVAL_FILE {
        let all = Value::Array(rows.into_iter().map(Value::Object).collect());
        evaluation::select(&all, sbid).as_object().cloned()
    } else if rows.len() > 1 {
        return Err(PrepareError::SeveralRows {
            query: query.to_owned(),
            from: source.from.clone(),
            rows: rows.len(),
            sbid: sbid.filter(|_| runs_by_block).map(str::to_owned),
        });
    } else {
        rows.into_iter().next()
    };
    match row {
        None => Ok(Value::Null),
        Some(row) => row.get(&column.to_lowercase()).cloned().ok_or_else(|| PrepareError::MissingColumn {
            field: field.to_owned(),
            from: source.from.clone(),
        }),
    }
}

fn asks(config: &ProjectConfig, name: &str) -> bool {
    config.discovery.queries.iter().chain(&config.discovery.enrichments).any(|query| query.name == name)
}

/// Whether the files are wanted and the query for them did not fail.
fn needs_evaluation_file(config: &ProjectConfig, answers: &Answers) -> bool {
    let failed = |answer: &Answer| matches!(answer, Answer::Failed(_));
    let by_block = answers.enrichments.get(SBID_TO_EVAL_FILE);
    asks(config, SBID_TO_EVAL_FILE)
        && !answers.queries.get(SBID_TO_EVAL_FILE).is_some_and(failed)
        && !by_block.is_some_and(|answers| answers.values().any(failed))
}

fn set_evaluation_file(
    config: &ProjectConfig,
    answers: &Answers,
    record: &mut Record,
    sbid: &str,
) -> Result<(), PrepareError> {
    if !asks(config, SBID_TO_EVAL_FILE) {
        return Ok(());
    }
    let rows = rows(answers, SBID_TO_EVAL_FILE, Some(sbid))
        .ok_or_else(|| PrepareError::NotAnswered(SBID_TO_EVAL_FILE.to_owned()))?;
    let row = evaluation::select(&Value::Array(rows.into_iter().map(Value::Object).collect()), Some(sbid));
    for (flag, column) in EVALUATION_FLAGS.into_iter().zip(["filename", "access_url"]) {
        record.insert(flag.to_owned(), row.get(column).cloned().unwrap_or_default());
    }
    Ok(())
}

/// Position and velocity from the catalogue row; all `null` when the catalogue does not have the source.
fn position_flags(config: &ProjectConfig, answers: &Answers) -> Map<String, Value> {
    let mut flags = Map::new();
    if !asks(config, RA_DEC_VSYS) {
        return flags;
    }
    let by_block = answers.enrichments.get(RA_DEC_VSYS).into_iter().flat_map(BTreeMap::values);
    let row = answers
        .queries
        .get(RA_DEC_VSYS)
        .into_iter()
        .chain(by_block)
        .find_map(|answer| match answer {
            Answer::Rows(table) => table.records().into_iter().next(),
            Answer::Failed(_) => None,
        })
        .unwrap_or_default();
    let angle = |names: [&str; 3]| names.iter().find_map(|name| degrees(row.get(*name)?));
    let text = |text: Option<String>| text.map_or(Value::Null, Value::String);
    let [ra, dec, vsys] = POSITION_FLAGS;
    flags.insert(ra.to_owned(), text(angle(["raj2000", "ra", "s_ra"]).and_then(sexagesimal::hms)));
    flags.insert(dec.to_owned(), text(angle(["dej2000", "dec", "s_dec"]).and_then(sexagesimal::dms)));
    let velocity =
        ["rvmom", "rv50max", "rv50min"].iter().find_map(|name| row.get(*name).filter(|v| !is_empty(v)));
    flags.insert(vsys.to_owned(), velocity.cloned().unwrap_or_default());
    flags
}

fn warnings(answers: &Answers) -> Vec<String> {
    let failed = |name: &str, answer: &Answer| match answer {
        Answer::Rows(_) => None,
        Answer::Failed(message) => Some(format!("gone on without `{name}`: {message}")),
    };
    let by_source = answers.queries.iter().filter_map(|(name, answer)| failed(name, answer));
    let by_block = answers.enrichments.iter().flat_map(|(name, by_sbid)| {
        by_sbid.iter().filter_map(move |(sbid, answer)| failed(&format!("{name} (SBID {sbid})"), answer))
    });
    by_source.chain(by_block).collect()
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
