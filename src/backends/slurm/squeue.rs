//! **squeue**: the jobs that the controller still has. It forgets an ended job after `MinJobAge`; see [`super::sacct`].
//!
//! Facts of 22.05: of one unknown id it says `Invalid job id specified` and ends with 1; of several it prints those it knows
//! and ends with 0. Neither says that a job is gone, so both are read as "nothing said of it".

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::job::{Id, State};
use super::quote::{Command, Nul};
use super::table::{self, Limit, PollError, Printed, SEPARATOR};

const NAME: &str = "squeue";
/// `man squeue`, `--format`: id, state, reason, user, account, partition, nodes, submit, start, end, elapsed, limit, name,
/// comment. The name is ours, and the comment is last because anybody may write it.
const FIELDS: [&str; 14] =
    ["%i", "%T", "%r", "%u", "%a", "%P", "%N", "%V", "%S", "%e", "%M", "%l", "%j", "%k"];

/// One job as the controller has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: Id,
    pub state: State,
    /// Why it waits, or why it failed; see [`super::reason`].
    pub reason: Option<String>,
    pub user: Option<String>,
    pub account: Option<String>,
    pub partition: Option<String>,
    pub nodes: Option<String>,
    pub submitted_at: Option<DateTime<Utc>>,
    /// Of a job that waits: when it is expected to start.
    pub started_at: Option<DateTime<Utc>>,
    /// Of a job that has not ended: when its time is over.
    pub ends_at: Option<DateTime<Utc>>,
    pub elapsed: Option<Duration>,
    pub limit: Option<Limit>,
    pub name: String,
    pub comment: Option<String>,
}

/// Asks for these jobs, ended ones too while the controller has them; [`super::poll::MOST_JOBS`] at most.
pub fn by_id(jobs: &[u64]) -> Result<String, Nul> {
    let jobs: Vec<String> = jobs.iter().map(u64::to_string).collect();
    command().option("--jobs", &jobs.join(",")).line()
}

/// Asks for the jobs of this name, which is a session's id.
pub fn by_name(name: &str) -> Result<String, Nul> {
    command().option("--name", name).line()
}

/// Plain C words, times in seconds since 1970, and no filter that a login shell may have set.
fn command() -> Command {
    Command::new("env")
        .raw("-u SQUEUE_ACCOUNT -u SQUEUE_LICENSES -u SQUEUE_NAMES -u SQUEUE_PARTITION -u SQUEUE_QOS -u SQUEUE_STATES")
        .raw("-u SQUEUE_USERS LC_ALL=C TZ=UTC0 SLURM_TIME_FORMAT=%s SLURM_BITSTR_LEN=0")
        .raw("squeue --noheader --all --states=all")
        .option("--format", &FIELDS.join(&SEPARATOR.to_string()))
}

/// Reads the answer. No row for a job says nothing about the job.
pub fn read(printed: Printed) -> Result<Vec<Row>, PollError> {
    let unknown = "slurm_load_jobs error: Invalid job id specified";
    if printed.exit == 1 && String::from_utf8_lossy(printed.stderr).trim() == unknown {
        return Ok(vec![]);
    }
    table::rows(NAME, printed, FIELDS.len(), row)
}

fn row(fields: &[&str]) -> Result<Row, String> {
    let &[
        id,
        state,
        reason,
        user,
        account,
        partition,
        nodes,
        submit,
        start,
        end,
        elapsed,
        limit,
        name,
        comment,
    ] = fields
    else {
        return Err("the fields do not fit".to_owned());
    };
    Ok(Row {
        id: id.parse()?,
        state: state.parse()?,
        reason: table::text(reason),
        user: table::text(user),
        account: table::text(account),
        partition: table::text(partition),
        nodes: table::text(nodes),
        submitted_at: table::time(submit)?,
        started_at: table::time(start)?,
        ends_at: table::time(end)?,
        elapsed: table::duration(elapsed)?,
        limit: table::limit(limit)?,
        name: name.to_owned(),
        comment: table::text(comment),
    })
}
