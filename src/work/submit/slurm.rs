//! Hands an execution over to a **cluster**, once, and settles what became of it.
//!
//! The right to submit is a mark in the session's directory that one taker gets, in the same command as `sbatch`. So this can
//! be interrupted anywhere, and whoever goes on looks at the marks first: no mark, and the hand-over is finished under its
//! name; an answer that was kept, and it is believed; a mark alone, and the job is looked for by its name, in the queue and
//! in accounting, until accounting cannot be late any more. Then the right to *start* is taken: a job that still came would
//! end at once, and only then the session is declared not submitted.

use std::sync::Arc;

use beampipe_domain::execution::Receipt;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::HandedOver;
use super::book::Book;
use crate::backends::slurm::cluster::{Accepted, Cluster, Submission, Submitted, Taken, Upload};
use crate::backends::slurm::poll::{self, Poll};
use crate::backends::slurm::{PollError, sacct, sbatch, squeue};
use crate::handle::{Context, HandleError};
use crate::ssh::{self, Class, Part};
use crate::work::Shop;
use crate::work::cluster::{Site, asked};

/// A job whose submission is looked for was submitted at most this long before the hand-over was announced, by clocks that
/// do not agree.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::hours(1);

/// What is needed to hand over.
pub struct HandOver {
    pub execution: Uuid,
    pub session_id: Uuid,
    /// The session's id as a word: the name of the job.
    pub session: String,
    pub site: Site,
    pub cluster: Cluster,
    pub directory: String,
    pub files: Vec<File>,
    /// What the site tells that may keep the job from ending well.
    pub warnings: Vec<String>,
    /// When the hand-over was announced.
    pub announced_at: DateTime<Utc>,
    /// Before this, accounting may still be late.
    pub deadline_at: DateTime<Utc>,
    /// Held from the first request to the last, so that one process does not race itself.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// A file of the session.
pub struct File {
    pub name: &'static str,
    pub bytes: Bytes,
    pub mode: u32,
}

/// Where a hand-over goes on.
enum Next {
    Prepare,
    Look,
    /// Looks the name up: the mark is taken and nobody knows what came of it.
    Find {
        began: bool,
    },
    Record {
        accepted: Accepted,
        settled_by: Option<String>,
    },
    Refuse {
        class: &'static str,
        error: String,
        evidence: Option<String>,
    },
    Open {
        step: &'static str,
        reason: String,
        lost: bool,
    },
}

pub async fn submit(shop: &Shop, context: &Context, over: &HandOver) -> Result<HandedOver, HandleError> {
    go_on(shop, context, over, Next::Prepare, true).await
}

pub async fn settle(shop: &Shop, context: &Context, over: &HandOver) -> Result<HandedOver, HandleError> {
    go_on(shop, context, over, Next::Look, false).await
}

/// `first` says that nobody can have handed this session over before.
async fn go_on(
    shop: &Shop,
    context: &Context,
    over: &HandOver,
    from: Next,
    first: bool,
) -> Result<HandedOver, HandleError> {
    let book = Book { shop, context, execution: over.execution.to_string(), session_id: over.session_id };
    let _turn = over.turn.lock().await;
    let mut next = from;
    for _ in 0..8 {
        next = match next {
            Next::Prepare if book.is_overtaken().await? => return Ok(HandedOver::Overtaken),
            Next::Prepare if book.cancel_requested().await? => {
                match over.cluster.take(&over.directory).await {
                    Ok(Taken::Ours) => return book.cancelled().await,
                    Ok(Taken::Already) => Next::Look,
                    Err(error) => open("cancel", &error),
                }
            }
            Next::Prepare => prepare_and_submit(over, first).await,
            Next::Look => match over.cluster.marks(&over.directory).await {
                Err(error) => open("look", &error),
                Ok(marks) => from_marks(marks.submission),
            },
            Next::Find { began } => find(shop, over, began).await,
            Next::Record { accepted, settled_by } => {
                crate::fault::point("slurm_answered");
                let receipt = Receipt::Slurm {
                    slurm_job_id: accepted.job_id,
                    submitted_at: accepted.submitted_at.unwrap_or_else(|| shop.clock.now()),
                    login_node: over.site.login_node.clone(),
                    remote_user: over.site.remote_user.clone(),
                    session_dir: over.directory.clone(),
                    cluster: accepted.cluster,
                    warnings: over.warnings.clone(),
                };
                return book.receipt(receipt, settled_by).await;
            }
            Next::Refuse { class, error, evidence } => return book.refuse(class, error, evidence).await,
            Next::Open { step, reason, lost } => return book.open(step, reason, lost).await,
        };
    }
    Ok(HandedOver::Open { reason: "another worker seems to hand the same session over".into() })
}

async fn prepare_and_submit(over: &HandOver, first: bool) -> Next {
    let uploads: Vec<Upload<'_>> = over
        .files
        .iter()
        .map(|file| Upload { name: file.name, bytes: &file.bytes, mode: file.mode })
        .collect();
    if let Err(error) = over.cluster.prepare(&over.directory, &uploads).await {
        // Nothing but files can have come of it, whatever was lost.
        return match (error.class(), first) {
            (Class::Refused, true) => Next::Refuse {
                class: "session_directory",
                error: format!(
                    "the session's directory cannot be written: {error}; make room below the profile's dlg_root or correct it, and retry"
                ),
                evidence: Some(over.warnings.join("; ")).filter(|warnings| !warnings.is_empty()),
            },
            _ => after(&error, "upload", first, false),
        };
    }
    crate::fault::point("slurm_uploaded");
    match over.cluster.submit(&over.directory, &over.session).await {
        Ok(Submitted::Accepted(accepted)) => {
            let settled_by = (!first).then(|| "the hand-over was finished under its name".to_owned());
            Next::Record { accepted, settled_by }
        }
        Ok(Submitted::Taken) => Next::Look,
        Ok(Submitted::Refused { code, stderr }) => refused(code, &stderr),
        Ok(Submitted::NotReached { stderr }) => {
            let reason = format!("the login node cannot reach Slurm's controller: {}", stderr.trim());
            Next::Open { step: "sbatch", reason, lost: false }
        }
        Err(error) => after(&error, "sbatch", first, true),
    }
}

/// After an error of SSH. What surely did not happen, and would not on another try, ends the execution; but only where
/// nobody else can have come further.
fn after(error: &ssh::Error, step: &'static str, first: bool, may_have_left: bool) -> Next {
    let class = match error.class() {
        Class::Invalid => "validation",
        Class::Credential => "configuration",
        Class::HostKey => "host_key",
        Class::Denied => "authentication",
        Class::Refused => "conflict",
        Class::NotSent => return open(step, error),
        Class::Unknown => return Next::Open { step, reason: error.to_string(), lost: may_have_left },
    };
    if first {
        return Next::Refuse {
            class,
            error: error.to_string(),
            evidence: Some("nothing was submitted".into()),
        };
    }
    open(step, error)
}

fn open(step: &'static str, error: &ssh::Error) -> Next {
    Next::Open { step, reason: error.to_string(), lost: false }
}

fn from_marks(submission: Submission) -> Next {
    match submission {
        // Not seen is not absent: taking the mark is what proves it.
        Submission::NoMark => Next::Prepare,
        Submission::Accepted(accepted) => Next::Record {
            accepted,
            settled_by: Some("the answer of sbatch was kept in the session's directory".into()),
        },
        Submission::Refused { code, stderr } => refused(code, &stderr),
        Submission::Withheld => Next::Refuse {
            class: "inconsistent_state",
            error: "the right to submit this session was taken away; retry the execution".into(),
            evidence: Some("submit/withheld in the session's directory".into()),
        },
        Submission::Unclear { sbatch_began, .. } => Next::Find { began: sbatch_began },
    }
}

/// sbatch's no, with its own words and what to do.
fn refused(code: u32, stderr: &str) -> Next {
    let refusal = sbatch::explain(stderr.as_bytes());
    let said = if refusal.error.is_empty() { "it gave no reason" } else { &refusal.error };
    Next::Refuse {
        class: refusal.class,
        error: format!("Slurm refused the job: {said}; {}", refusal.what_to_do),
        evidence: Some(format!("sbatch ended with {code}; its words are in submit/stderr")),
    }
}

/// Looks the session's name up where Slurm knows jobs.
async fn find(shop: &Shop, over: &HandOver, began: bool) -> Next {
    let found_now = match lookup(over).await {
        Err(reason) => return Next::Open { step: "sbatch", reason, lost: true },
        Ok(found) => found,
    };
    if let Some((job, how)) = found_now {
        return found(job, how);
    }
    if shop.clock.now() < over.deadline_at {
        let reason =
            "the right to submit is taken, and neither the queue nor accounting knows the name yet".into();
        return Next::Open { step: "sbatch", reason, lost: true };
    }
    match over.cluster.fence(&over.directory).await {
        Err(error) => Next::Open { step: "sbatch", reason: error.to_string(), lost: true },
        Ok(Taken::Ours) => {
            crate::fault::point("slurm_fenced");
            broken_off(shop, began)
        }
        Ok(Taken::Already) => taken_before(shop, over, began).await,
    }
}

/// Somebody has the right to start: a job, that says which one it is, or whoever fenced the session and ended before it was
/// recorded.
async fn taken_before(shop: &Shop, over: &HandOver, began: bool) -> Next {
    match over.cluster.fetch(&over.directory, "started/job", Part::Beginning, 64).await {
        Ok(written) => {
            let job_id = String::from_utf8_lossy(&written.bytes).trim().to_owned();
            if !job_id.is_empty() && job_id.bytes().all(|b| b.is_ascii_digit()) {
                let accepted = Accepted { job_id, cluster: None, submitted_at: None };
                let settled_by = "the job has written its id into the session's directory".to_owned();
                return Next::Record { accepted, settled_by: Some(settled_by) };
            }
        }
        Err(error) if error.is_absent() => {}
        Err(error) => return Next::Open { step: "sbatch", reason: error.to_string(), lost: true },
    }
    // A job that has just started is in the queue: this look is later than its mark.
    match lookup(over).await {
        Err(reason) => Next::Open { step: "sbatch", reason, lost: true },
        Ok(Some((job, how))) => found(job, how),
        Ok(None) => broken_off(shop, began),
    }
}

fn found(job: u64, how: &str) -> Next {
    let accepted = Accepted { job_id: job.to_string(), cluster: None, submitted_at: None };
    Next::Record { accepted, settled_by: Some(format!("{how} has a job of the session's name")) }
}

fn broken_off(shop: &Shop, began: bool) -> Next {
    Next::Refuse {
        class: "inconsistent_state",
        error: "the submission was broken off before Slurm had the job; retry the execution".into(),
        evidence: Some(format!(
            "no job of the name in squeue or sacct at {}, {}; the right to start was taken, so none will run",
            shop.clock.now().format("%Y-%m-%dT%H:%M:%SZ"),
            if began { "sbatch had begun" } else { "sbatch had not begun" },
        )),
    }
}

/// Looks in the queue, and in accounting. One of them is enough to find a job; that there is none takes both.
async fn lookup(over: &HandOver) -> Result<Option<(u64, &'static str)>, String> {
    let nul = |error: crate::backends::slurm::quote::Nul| error.to_string();
    let told = |error: PollError| error.to_string();
    let line = squeue::by_name(&over.session).map_err(nul)?;
    let queue = match asked(&over.cluster, &line).await {
        Ok(said) => squeue::read(said.printed()).map_err(told),
        Err(error) => Err(error),
    };
    let line = sacct::by_name(&over.session, over.announced_at - CLOCKS_DIFFER).map_err(nul)?;
    let accounts = match asked(&over.cluster, &line).await {
        Ok(said) => sacct::read(said.printed()).map_err(told),
        Err(error) => Err(error),
    };
    let rows = (queue.as_deref().unwrap_or_default(), accounts.as_deref().unwrap_or_default());
    let found = poll::found(&over.session, rows.0, rows.1);
    if found.is_empty() {
        queue?;
        accounts?;
    }
    if found.len() > 1 {
        tracing::error!(session = over.session, jobs = ?found.keys(), "more than one job has the name of a session");
    }
    let how = |poll: &Poll| match poll.source() {
        Some("squeue") => "the queue",
        _ => "accounting",
    };
    Ok(found.iter().next().map(|(job, poll)| (*job, how(poll))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> ssh::Error {
        ssh::Error::Denied { target: "u@n:22".into(), slot: "s".into(), detail: "no".into() }
    }

    #[test]
    fn what_may_have_been_handed_over_before_is_never_refused_for_a_lack_of_access() {
        assert!(matches!(
            after(&denied(), "upload", true, false),
            Next::Refuse { class: "authentication", .. }
        ));
        assert!(matches!(after(&denied(), "upload", false, false), Next::Open { lost: false, .. }));
    }

    #[test]
    fn a_lost_answer_is_only_a_lost_submission_once_sbatch_was_asked() {
        let lost = ssh::Error::Unknown { target: "u@n:22".into(), detail: "cut".into(), cause: None };
        assert!(matches!(after(&lost, "upload", true, false), Next::Open { lost: false, .. }));
        assert!(matches!(after(&lost, "sbatch", true, true), Next::Open { lost: true, .. }));
    }

    #[test]
    fn only_an_answer_that_was_kept_is_taken_for_one() {
        assert!(matches!(from_marks(Submission::NoMark), Next::Prepare));
        let unclear = Submission::Unclear { sbatch_began: true, stderr: String::new() };
        assert!(matches!(from_marks(unclear), Next::Find { began: true }));
        assert!(matches!(from_marks(Submission::Withheld), Next::Refuse { .. }));
    }
}
