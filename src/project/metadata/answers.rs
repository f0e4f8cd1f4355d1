//! The answers of a source's queries, and looking things up in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::archives::tap::Table;
use crate::project::config::{FieldSource, ProjectConfig};

use super::{PrepareError, Record, preset};

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

impl Answers {
    /// What failed and was gone without, for people.
    pub(super) fn warnings(&self) -> Vec<String> {
        let failed = |name: &str, answer: &Answer| match answer {
            Answer::Rows(_) => None,
            Answer::Failed(message) => Some(format!("gone on without `{name}`: {message}")),
        };
        let by_source = self.queries.iter().filter_map(|(name, answer)| failed(name, answer));
        let by_block = self.enrichments.iter().flat_map(|(name, by_sbid)| {
            by_sbid.iter().filter_map(move |(sbid, answer)| failed(&format!("{name} (SBID {sbid})"), answer))
        });
        by_source.chain(by_block).collect()
    }

    /// Whether a query failed, for the source or for any block.
    pub(super) fn failed(&self, query: &str) -> bool {
        let failed = |answer: &Answer| matches!(answer, Answer::Failed(_));
        self.queries.get(query).is_some_and(failed)
            || self.enrichments.get(query).is_some_and(|answers| answers.values().any(failed))
    }
}

/// The query of an `enrichments.<query>` or `enrichments.<query>.<column>`, and the column.
pub fn enrichment_of(source: &FieldSource) -> Option<(&str, Option<&str>)> {
    let rest = source.from.strip_prefix("enrichments.")?;
    Some(rest.split_once('.').map_or((rest, None), |(query, column)| (query, Some(column))))
}

/// The rows of every answer as records, made once; a query that failed and may has none.
pub(super) struct Rows<'a> {
    queries: BTreeMap<&'a str, Vec<Record>>,
    enrichments: BTreeMap<&'a str, BTreeMap<&'a str, Vec<Record>>>,
}

impl<'a> Rows<'a> {
    pub fn new(answers: &'a Answers) -> Self {
        let records = |answer: &Answer| match answer {
            Answer::Rows(table) => table.records(),
            Answer::Failed(_) => Vec::new(),
        };
        let by_block = |by_sbid: &'a BTreeMap<String, Answer>| {
            by_sbid.iter().map(|(sbid, answer)| (sbid.as_str(), records(answer))).collect()
        };
        Self {
            queries: answers.queries.iter().map(|(name, answer)| (name.as_str(), records(answer))).collect(),
            enrichments: answers
                .enrichments
                .iter()
                .map(|(name, all)| (name.as_str(), by_block(all)))
                .collect(),
        }
    }

    /// The rows of a query, those for the block if it runs for each.
    pub fn of(&self, query: &str, sbid: Option<&str>) -> Result<&[Record], PrepareError> {
        let found = match self.enrichments.get(query) {
            Some(by_sbid) => sbid.and_then(|sbid| by_sbid.get(sbid)),
            None => self.queries.get(query),
        };
        found.map(Vec::as_slice).ok_or_else(|| PrepareError::NotAnswered(query.to_owned()))
    }

    /// The rows of a query for every block, or of the query for the source.
    pub fn all(&self, query: &str) -> impl Iterator<Item = &Record> {
        let by_block = self.enrichments.get(query).into_iter().flat_map(BTreeMap::values);
        self.queries.get(query).into_iter().chain(by_block).flatten()
    }

    /// What a `from` that names a later query comes to, before its transform.
    pub fn value(
        &self,
        config: &ProjectConfig,
        field: &str,
        source: &FieldSource,
        sbid: Option<&str>,
    ) -> Result<Value, PrepareError> {
        let Some((query, column)) = enrichment_of(source) else { return Ok(Value::Null) };
        let rows = self.of(query, sbid)?;
        let Some(column) = column else {
            return Ok(rows.iter().cloned().map(Value::Object).collect());
        };
        let chosen;
        let row = if query == preset::SBID_TO_EVAL_FILE {
            chosen = preset::evaluation_file(rows, sbid);
            chosen.as_object()
        } else if rows.len() > 1 {
            let by_block = config.discovery.enrichments.iter().any(|other| other.name == query);
            return Err(PrepareError::SeveralRows {
                query: query.to_owned(),
                from: source.from.clone(),
                rows: rows.len(),
                sbid: sbid.filter(|_| by_block).map(str::to_owned),
            });
        } else {
            rows.first()
        };
        let Some(row) = row else { return Ok(Value::Null) };
        row.get(&column.to_lowercase())
            .cloned()
            .ok_or_else(|| PrepareError::MissingColumn { field: field.to_owned(), from: source.from.clone() })
    }
}
