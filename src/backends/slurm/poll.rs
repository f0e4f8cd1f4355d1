//! What one **poll** of a login node tells of each job that was asked for: squeue for the living, sacct for the ended, both
//! in one batch.
//!
//! Invariant: what nobody spoke of is [`Poll::NotSaid`], which is never "gone" (`silence_is_no_end`). A row of another name
//! is another job that was given the same number.

use std::collections::BTreeMap;

use super::job::{Part, State};
use super::{sacct, squeue};

/// Jobs in one command, at most: a command line is one argument of the login shell, for which Linux has 128 KiB.
pub const MOST_JOBS: usize = 10_000;

/// A job to be looked for: what sbatch answered, and the session's id that is its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub job: u64,
    pub session: String,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Poll {
    /// The controller has it, and it has not ended.
    Living(squeue::Row),
    /// Accounting says that it has ended.
    Ended(sacct::Row),
    /// The controller says that it has ended; accounting does not know that yet.
    Leaving(squeue::Row),
    /// Only accounting speaks of it, and knows of no end: the controller may be away, or has forgotten it.
    Recorded(sacct::Row),
    NotSaid,
}

impl Poll {
    pub fn state(&self) -> Option<&State> {
        match self {
            Self::Living(row) | Self::Leaving(row) => Some(&row.state),
            Self::Ended(row) | Self::Recorded(row) => Some(&row.state),
            Self::NotSaid => None,
        }
    }

    /// `squeue` or `sacct`, as an observation names its source.
    pub fn source(&self) -> Option<&'static str> {
        match self {
            Self::Living(_) | Self::Leaving(_) => Some("squeue"),
            Self::Ended(_) | Self::Recorded(_) => Some("sacct"),
            Self::NotSaid => None,
        }
    }
}

/// Puts both answers together. Either may be missing: give no rows for a command that failed.
pub fn poll(asked: &[Asked], queue: &[squeue::Row], accounts: &[sacct::Row]) -> BTreeMap<u64, Poll> {
    let mut queued: BTreeMap<(u64, &str), &squeue::Row> = BTreeMap::new();
    for row in queue.iter().filter(|row| is_ours(&row.id.part)) {
        // The name and the comment are both the session's id; a person may have changed one of them.
        for word in [Some(&row.name), row.comment.as_ref()].into_iter().flatten() {
            queued.insert((row.id.base, word), row);
        }
    }
    let mut accounted: BTreeMap<(u64, &str), &sacct::Row> = BTreeMap::new();
    for row in accounts.iter().filter(|row| is_ours(&row.id.part)) {
        for word in [Some(&row.name), row.comment.as_ref()].into_iter().flatten() {
            accounted.insert((row.id.base, word), row);
        }
    }
    asked
        .iter()
        .map(|Asked { job, session }| {
            let key = (*job, session.as_str());
            (*job, together(queued.get(&key).copied(), accounted.get(&key).copied()))
        })
        .collect()
}

/// The jobs of a name, when the number is not known: the answer of sbatch was lost.
pub fn found(session: &str, queue: &[squeue::Row], accounts: &[sacct::Row]) -> BTreeMap<u64, Poll> {
    let of_queue = queue.iter().filter(|row| row.name == session).map(|row| row.id.base);
    let of_accounts = accounts.iter().filter(|row| row.name == session).map(|row| row.id.base);
    let asked: Vec<Asked> =
        of_queue.chain(of_accounts).map(|job| Asked { job, session: session.to_owned() }).collect();
    poll(&asked, queue, accounts)
}

/// We submit neither arrays nor heterogeneous jobs, so a part of one is not ours.
fn is_ours(part: &Part) -> bool {
    *part == Part::Whole
}

fn together(queued: Option<&squeue::Row>, accounted: Option<&sacct::Row>) -> Poll {
    match (queued, accounted) {
        // A job that was requeued has an end in accounting, of the time before.
        (Some(row), _) if !row.state.is_terminal() => Poll::Living(row.clone()),
        (_, Some(row)) if row.state.is_terminal() => Poll::Ended(row.clone()),
        (Some(row), _) => Poll::Leaving(row.clone()),
        (None, Some(row)) => Poll::Recorded(row.clone()),
        (None, None) => Poll::NotSaid,
    }
}
