//! What Slurm is **asked** of the jobs that are watched, and how a wait is said to people.

use std::collections::BTreeMap;

use beampipe_domain::execution::JobFacts;
use chrono::{DateTime, Utc};

use super::ending;
use crate::backends::slurm::cluster::Cluster;
use crate::backends::slurm::job::State;
use crate::backends::slurm::poll::{Asked, Poll as Told, poll};
use crate::backends::slurm::{PollError, reason, sacct, squeue};
use crate::work::Shop;
use crate::work::cluster::asked;

/// What was said of a job that has not ended.
pub(super) struct Look<'a> {
    pub source: &'static str,
    pub state: &'a State,
    pub why: Option<&'a str>,
    pub expected_at: Option<DateTime<Utc>>,
    pub job: JobFacts,
}

impl<'a> Look<'a> {
    pub fn in_queue(row: &'a squeue::Row) -> Self {
        Self {
            source: "squeue",
            state: &row.state,
            why: row.reason.as_deref(),
            expected_at: row.started_at,
            job: ending::facts_of_queue(row),
        }
    }

    pub fn in_accounting(row: &'a sacct::Row) -> Self {
        Self {
            source: "sacct",
            state: &row.state,
            why: row.reason.as_deref(),
            expected_at: None,
            job: ending::facts(row),
        }
    }
}

/// Asks for all jobs in one batch: squeue, and sacct for those that it does not call living.
pub(super) async fn ask(
    shop: &Shop,
    cluster: &Cluster,
    wanted: &[Asked],
) -> Result<BTreeMap<u64, Told>, String> {
    let failed = |reason: &str| shop.metrics.slurm_poll_errors_total.with_label_values(&[reason]).inc();
    let jobs: Vec<u64> = wanted.iter().map(|one| one.job).collect();
    let line = squeue::by_id(&jobs).map_err(|error| error.to_string())?;
    let said = asked(cluster, &line).await.inspect_err(|_| failed("connect"))?;
    let queue = squeue::read(said.printed()).map_err(|error| sorted(&error, "squeue", &failed));
    let living = |job: &u64| {
        let rows = queue.as_ref().map(Vec::as_slice).unwrap_or_default();
        rows.iter().any(|row| row.id.base == *job && !row.state.is_terminal())
    };
    let rest: Vec<u64> = jobs.iter().filter(|job| !living(job)).copied().collect();
    let mut accounts = Ok(vec![]);
    if !rest.is_empty() {
        let line = sacct::by_id(&rest).map_err(|error| error.to_string())?;
        let said = asked(cluster, &line).await.inspect_err(|_| failed("connect"))?;
        accounts = sacct::read(said.printed()).map_err(|error| sorted(&error, "sacct", &failed));
    }
    match (&queue, &accounts) {
        // What one of them says is believed without the other.
        (Err(one), Err(other)) => Err(format!("{one}; {other}")),
        _ => Ok(poll(wanted, &queue.unwrap_or_default(), &accounts.unwrap_or_default())),
    }
}

/// Counts a failed command by what failed.
fn sorted(error: &PollError, command: &str, failed: &impl Fn(&str)) -> String {
    failed(if matches!(error, PollError::Failed { .. }) { command } else { "parse" });
    error.to_string()
}

/// Why a job waits, in a sentence for people.
pub(super) fn waiting(reason: &str, expected_at: Option<DateTime<Utc>>) -> String {
    let reason = reason::explain(reason);
    let start =
        expected_at.map(|at| format!("; Slurm expects it to start at {}", at.format("%Y-%m-%dT%H:%MZ")));
    let passes = if reason.passes_by_itself { "it passes by itself" } else { "it does not pass by itself" };
    format!("{}{}; {passes}: {}", reason.sentence, start.unwrap_or_default(), reason.what_to_do)
}
