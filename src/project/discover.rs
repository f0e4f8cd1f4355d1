//! Sends the queries of a source and says what came of it.
//!
//! Owns nothing but the order: the first query alone (it may say there is nothing), then the others, then the enrichments
//! of each SBID. What is asked and what is made of it is in [`super::metadata`]; whether the outcome is news is for the
//! caller, who knows the signature of last time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::archives::tap::{Table, TapError};

use super::config::ProjectConfig;
use super::metadata::{
    Answer, Answers, Held, Planned, PrepareError, Prepared, plan, plan_enrichments, prepare,
};

/// Something that answers ADQL: a TAP client, or a test's stand-in for one.
#[async_trait::async_trait]
pub trait TapQuery: Send + Sync {
    async fn query(&self, adql: &str) -> Result<Table, TapError>;
}

/// The services that may be asked now, by adapter name. One that is known to be away is left out.
pub type AdapterMap = BTreeMap<String, Arc<dyn TapQuery>>;

/// What came of a source.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// New or not, see [`Prepared::signature`].
    Prepared(Box<Prepared>),
    NoDatasets,
    /// There are datasets, and none may be used yet.
    Held(Vec<Held>),
    /// The service a query needs may not be asked now.
    TapSkipped {
        adapter: String,
    },
    /// A service did not answer in time.
    Timeout {
        step: String,
        message: String,
    },
    Error {
        /// The query, with the SBID of an enrichment, or `prepare_metadata`.
        step: String,
        message: String,
        failure_class: &'static str,
        /// Whether asking again without any change can help.
        may_be_retried: bool,
    },
}

/// One query that was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    #[serde(flatten)]
    pub planned: Planned,
    /// How many rows came, unless it failed.
    pub rows: Option<usize>,
    pub elapsed: Duration,
}

/// The outcome, and what led to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    pub outcome: Outcome,
    pub asked: Vec<Asked>,
    pub answers: Answers,
}

/// Discovers one source.
pub async fn discover(
    config: &ProjectConfig,
    identifier: &str,
    adapters: &AdapterMap,
    now: DateTime<Utc>,
) -> Discovery {
    let mut run = Run { config, adapters, asked: Vec::new(), answers: Answers::default() };
    let outcome = match run.steps(identifier, now).await {
        Ok(prepared) => Outcome::Prepared(Box::new(prepared)),
        Err(outcome) => outcome,
    };
    Discovery { outcome, asked: run.asked, answers: run.answers }
}

struct Run<'a> {
    config: &'a ProjectConfig,
    adapters: &'a AdapterMap,
    asked: Vec<Asked>,
    answers: Answers,
}

impl Run<'_> {
    async fn steps(&mut self, identifier: &str, now: DateTime<Utc>) -> Result<Prepared, Outcome> {
        let unprepared = |error| not_prepared("prepare_metadata", error);
        for (index, planned) in plan(self.config, identifier).map_err(unprepared)?.into_iter().enumerate() {
            let name = planned.name.clone();
            let answer = self.ask(planned, index > 0).await?;
            let empty = matches!(&answer, Answer::Rows(table) if table.rows.is_empty());
            self.answers.queries.insert(name, answer);
            if index == 0 && empty {
                return Err(Outcome::NoDatasets);
            }
        }
        for planned in plan_enrichments(self.config, identifier, &self.answers).map_err(unprepared)? {
            let (name, sbid) = (planned.name.clone(), planned.sbid.clone().unwrap_or_default());
            let answer = self.ask(planned, true).await?;
            self.answers.enrichments.entry(name).or_default().insert(sbid, answer);
        }
        prepare(self.config, identifier, &self.answers, now).map_err(unprepared)
    }

    async fn ask(&mut self, planned: Planned, may_fail: bool) -> Result<Answer, Outcome> {
        let may_fail = may_fail && self.config.adapters.tap.fail_open;
        let Some(service) = self.adapters.get(&planned.adapter) else {
            return if may_fail {
                Ok(Answer::Failed(format!("`{}` is not asked now", planned.adapter)))
            } else {
                Err(Outcome::TapSkipped { adapter: planned.adapter })
            };
        };
        let started = tokio::time::Instant::now();
        let answered = service.query(&planned.adql).await;
        let rows = answered.as_ref().ok().map(|table| table.rows.len());
        let step = step_of(&planned);
        self.asked.push(Asked { planned, rows, elapsed: started.elapsed() });
        match answered {
            Ok(table) => Ok(Answer::Rows(table)),
            Err(error) if may_fail => Ok(Answer::Failed(error.to_string())),
            Err(error @ TapError::Timeout { .. }) => {
                Err(Outcome::Timeout { step, message: error.to_string() })
            }
            Err(error) => Err(Outcome::Error {
                step,
                failure_class: error.failure_class(),
                may_be_retried: error.may_be_retried(),
                message: error.to_string(),
            }),
        }
    }
}

fn step_of(planned: &Planned) -> String {
    planned
        .sbid
        .as_ref()
        .map_or_else(|| planned.name.clone(), |sbid| format!("{} (SBID {sbid})", planned.name))
}

fn not_prepared(step: &str, error: PrepareError) -> Outcome {
    match error {
        PrepareError::NoDatasets => Outcome::NoDatasets,
        PrepareError::AllHeld(held) => Outcome::Held(held),
        other => Outcome::Error {
            step: step.to_owned(),
            message: other.to_string(),
            failure_class: "validation",
            may_be_retried: false,
        },
    }
}
