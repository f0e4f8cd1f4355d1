//! What the end of a job **means**: from accounting's row, the marks in the session's directory and `session.json` to one
//! outcome, its failure class and one sentence.
//!
//! Invariant: [`Outcome::Completed`] is said only where DALiuGE said that the session finished
//! (`nothing_completes_without_a_finished_session`). The exit code of a job and Slurm's COMPLETED prove nothing.

use std::time::Duration;

use super::job::State;
use super::sacct::{self, Exit};
use super::script::{ALREADY_STARTED, NO_MARK};
use super::session_file::SessionFile;
use super::squeue;
use super::table::Limit;
use crate::backends;

/// The words that operators see as `failure_class`, for the ends of a job.
pub mod class {
    pub const OUT_OF_MEMORY: &str = "out_of_memory";
    pub const TIME_LIMIT: &str = "time_limit";
    pub const NODE_FAILURE: &str = "node_failure";
    pub const PREEMPTED: &str = "preempted";
    pub const BOOT_FAILURE: &str = "boot_failure";
    pub const CANCELLED: &str = "cancelled";
    /// The script ended with a code or by a signal, and not because of the graph.
    pub const APPLICATION_EXIT: &str = "application_exit";
    pub const DALIUGE_DROP_ERROR: &str = "daliuge_drop_error";
    /// DALiuGE did not start, or did not last as long as its graph.
    pub const ENGINE_FAILURE: &str = "engine_failure";
    /// Another job had begun the session.
    pub const CONFLICT: &str = "conflict";
    pub const INCONSISTENT_STATE: &str = "inconsistent_state";
}

/// How a job ended, whoever tells.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub state: State,
    /// Only accounting has it.
    pub exit: Option<Exit>,
    pub reason: Option<String>,
    pub elapsed: Option<Duration>,
    pub limit: Option<Limit>,
    pub nodes: Option<String>,
    pub max_rss: Option<u64>,
}

impl From<&sacct::Row> for End {
    fn from(row: &sacct::Row) -> Self {
        Self {
            state: row.state.clone(),
            exit: Some(row.exit),
            reason: row.reason.clone(),
            elapsed: row.elapsed,
            limit: row.limit,
            nodes: row.nodes.clone(),
            max_rss: row.max_rss,
        }
    }
}

impl From<&squeue::Row> for End {
    fn from(row: &squeue::Row) -> Self {
        Self {
            state: row.state.clone(),
            exit: None,
            reason: row.reason.clone(),
            elapsed: row.elapsed,
            limit: row.limit,
            nodes: row.nodes.clone(),
            max_rss: None,
        }
    }
}

/// The marks in the session's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Whether a job took the session.
    pub started: bool,
    /// What the script ended with, if it came to its end.
    pub ended: Option<u32>,
}

/// All that is known of a job that has ended.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    pub end: &'a End,
    pub marks: &'a Marks,
    /// Absent: there is none. A file that could not be fetched is not absent; do not judge without it.
    pub file: Option<&'a SessionFile>,
    /// Whether somebody asked this service to cancel the execution.
    pub cancel_requested: bool,
    /// The user id of the remote user, if it is known.
    pub own_uid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    Failed {
        class: &'static str,
        error: String,
    },
    /// With who did it, if it was not asked for here.
    Cancelled {
        error: Option<String>,
    },
}

impl Outcome {
    pub fn failure_class(&self) -> Option<&'static str> {
        match self {
            Self::Completed => None,
            Self::Failed { class, .. } => Some(class),
            Self::Cancelled { .. } => Some(class::CANCELLED),
        }
    }

    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Completed => None,
            Self::Failed { error, .. } => Some(error),
            Self::Cancelled { error } => error.as_deref(),
        }
    }
}

/// Judges a job; `None` while it has not ended.
pub fn judge(seen: &Seen) -> Option<Outcome> {
    if !seen.end.state.is_terminal() {
        return None;
    }
    let failed = |class, error| Some(Outcome::Failed { class, error });
    if let Some(file) = seen.file {
        if file.has_finished() {
            return Some(Outcome::Completed);
        }
        // Memory that was short is why a drop failed, if both are said.
        if file.has_failed() && seen.end.state != State::OutOfMemory {
            return failed(class::DALIUGE_DROP_ERROR, file.evidence().summary());
        }
    }
    let (class, error) = match &seen.end.state {
        State::Cancelled { by } => return Some(cancelled(seen, *by)),
        State::OutOfMemory => (class::OUT_OF_MEMORY, out_of_memory(seen.end)),
        State::Timeout => (class::TIME_LIMIT, time_limit(seen.end)),
        State::Deadline => (class::TIME_LIMIT, "the job did not end before its deadline".to_owned()),
        State::NodeFail => (class::NODE_FAILURE, format!("a node of the job failed{}", on(seen.end))),
        State::Preempted => (class::PREEMPTED, "the job was preempted by one of higher priority".to_owned()),
        State::BootFail => (class::BOOT_FAILURE, format!("a node did not boot for the job{}", on(seen.end))),
        _ => return Some(by_itself(seen)),
    };
    failed(class, error + &so_far(seen))
}

/// The script came to an end of its own.
fn by_itself(seen: &Seen) -> Outcome {
    let failed = |class, error: String| Outcome::Failed { class, error: error + &so_far(seen) };
    let exit = seen.end.exit.map(|exit| exit.code);
    // Of a job that was queued again the mark is of the first run, and the second one ended because of it.
    let code = exit.filter(|code| *code == ALREADY_STARTED).or(seen.marks.ended).or(exit).unwrap_or_default();
    let signal = seen.end.exit.map(|exit| exit.signal).unwrap_or_default();
    let said = seen.file.and_then(|file| file.error.as_deref());
    if seen.end.state == State::Completed {
        let error = match seen.file {
            None => "the job ended with success and left no session.json".to_owned(),
            Some(file) => format!("the job ended with success, but its session is {}", file.state),
        };
        return failed(class::INCONSISTENT_STATE, error);
    }
    if seen
        .file
        .is_some_and(|file| file.is_final() && !file.interrupted && file.state == backends::State::Cancelled)
    {
        let error = "the session was cancelled at its manager, not by us".to_owned();
        return Outcome::Cancelled { error: (!seen.cancel_requested).then_some(error) };
    }
    match (code, signal) {
        (ALREADY_STARTED, _) if exit == Some(ALREADY_STARTED) || seen.file.is_none() => {
            failed(class::CONFLICT, "another job had begun the session, so this one ended".into())
        }
        (NO_MARK, _) if seen.file.is_none() => failed(
            class::APPLICATION_EXIT,
            "the job could not write into its session's directory: it is missing, full or read-only on the node".into(),
        ),
        (_, _) if said.is_some() && !seen.file.is_some_and(|file| file.interrupted) => {
            failed(class::ENGINE_FAILURE, format!("DALiuGE could not run the graph: {}", said.unwrap_or_default()))
        }
        (0, 0) => {
            let reason = seen.end.reason.as_deref().unwrap_or("no reason");
            failed(class::APPLICATION_EXIT, format!("Slurm says that the job failed, with {reason} and exit code 0"))
        }
        (code, 0) => failed(class::APPLICATION_EXIT, format!("the job's script ended with exit code {code}")),
        (_, signal) => failed(class::APPLICATION_EXIT, format!("the job's script was ended by signal {signal}")),
    }
}

fn cancelled(seen: &Seen, by: Option<u32>) -> Outcome {
    if seen.cancel_requested {
        return Outcome::Cancelled { error: None };
    }
    let who = match by {
        Some(0) => "by root".to_owned(),
        Some(uid) if seen.own_uid == Some(uid) => format!("by the remote user itself (user id {uid})"),
        Some(uid) => format!("by user id {uid}"),
        None => "by somebody Slurm does not name".to_owned(),
    };
    let error = format!("the job was cancelled at Slurm {who}, not by us{}", so_far(seen));
    Outcome::Cancelled { error: Some(error) }
}

fn out_of_memory(end: &End) -> String {
    let most = end.max_rss.map(|bytes| format!("; the most that was sampled is {} MiB", bytes >> 20));
    format!("the job used more memory than it asked for{}", most.unwrap_or_default())
}

fn time_limit(end: &End) -> String {
    match end.limit {
        Some(Limit::Of(limit)) => format!("the job exceeded its time limit of {} min", limit.as_secs() / 60),
        _ => "the job exceeded its time limit".to_owned(),
    }
}

fn on(end: &End) -> String {
    end.nodes.as_deref().map(|nodes| format!(" ({nodes})")).unwrap_or_default()
}

/// How far the graph was, or that there was none.
fn so_far(seen: &Seen) -> String {
    match seen.file {
        Some(file) if file.progress.total > 0 => {
            let backends::Progress { total, completed, failed, .. } = file.progress;
            let errors = if failed > 0 { format!(", {failed} in error") } else { String::new() };
            format!("; {completed} of {total} drops were complete{errors}")
        }
        Some(_) => "; no drop had been started".to_owned(),
        None if seen.marks.started => "; DALiuGE had not been started".to_owned(),
        None => "; the job's script had not begun".to_owned(),
    }
}
