//! What the end of a job **means** for its execution, and what is kept of it: the session's last word, the ends of what the
//! job said, and what accounting has.
//!
//! Nothing is judged on what could not be fetched: an execution waits for its evidence rather than being called a success or
//! a failure without.

use std::time::Duration;

use beampipe_domain::execution::{Artifact, Command, ErrorDrop, Execution, JobFacts, Terminal};
use bytes::Bytes;

use super::Running;
use crate::backends::evidence::{self, shorten};
use crate::backends::slurm::cluster::{Cluster, Marks};
use crate::backends::slurm::job::State;
use crate::backends::slurm::outcome::{self, End, Outcome, Seen};
use crate::backends::slurm::sacct::{self, Exit};
use crate::backends::slurm::script::{ERROR_FILE, OUTPUT_FILE};
use crate::backends::slurm::session_file::{LARGEST, SessionFile};
use crate::backends::slurm::squeue;
use crate::handle::{Context, HandleError};
use crate::ssh::{self, Part};
use crate::work::submit::overtakes;
use crate::work::{JobError, Shop};

/// What the launcher leaves.
const SESSION_FILE: &str = "session.json";
/// How much is kept of the end of each of the job's outputs, in bytes.
const TAIL: usize = 64 * 1024;
/// How long what a job left is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Culprits that the event names.
const MOST_CULPRITS: usize = 20;

/// What came of bringing an end home.
pub(super) enum Home {
    Ended,
    NotYet(String),
    /// What it left cannot be read now, and trying costs time.
    Slow(String),
}

/// Fetches what a job that has ended left behind, judges it and records the end. Without a row of accounting the marks have
/// to say that it has ended.
pub(super) async fn bring_home(
    shop: &Shop,
    context: &Context,
    cluster: &Cluster,
    one: &Running,
    row: Option<&sacct::Row>,
    polls: u64,
) -> Result<Home, JobError> {
    // A file that cannot be read (a file system that hangs) keeps its own execution waiting, and no other for long.
    let fetched = match tokio::time::timeout(PATIENCE, fetch(cluster, one)).await {
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Ok(Home::Slow(format!(
                "the job has ended; what it left could not be read within {seconds} s"
            )));
        }
        Ok(Ok(fetched)) => fetched,
        Ok(Err(error)) => {
            return Ok(Home::NotYet(format!("the job has ended; what it left cannot be fetched: {error}")));
        }
    };
    let end = match row {
        Some(row) => End::from(row),
        None => match fetched.marks.ended.as_ref().and_then(|ended| ended.code) {
            Some(code) => by_marks(code),
            None => {
                return Ok(Home::NotYet(format!(
                    "neither the queue nor accounting speaks of job {}",
                    one.job
                )));
            }
        },
    };
    let marks = outcome::Marks {
        started: fetched.marks.started,
        ended: fetched.marks.ended.as_ref().and_then(|ended| ended.code),
    };
    let seen = Seen {
        end: &end,
        marks: &marks,
        file: fetched.file.as_ref(),
        cancel_requested: one.cancel,
        own_uid: None,
    };
    let Some(outcome) = outcome::judge(&seen) else {
        return Ok(Home::NotYet(format!("Slurm calls the job {}", end.state)));
    };
    let terminal = terminal(shop, one, row, &fetched, &outcome, polls).await?;
    let command = match outcome {
        Outcome::Completed => Command::Complete(terminal),
        Outcome::Cancelled { .. } => {
            Command::ConfirmCancel { session_id: terminal.session_id, terminal: Some(terminal) }
        }
        Outcome::Failed { class, error } => {
            let error = match said(&fetched.stderr) {
                Some(last) if class != outcome::class::DALIUGE_DROP_ERROR => {
                    format!("{error}. Its last words: {last}")
                }
                _ => error,
            };
            Command::Fail { failure_class: class.to_owned(), error, terminal: Some(terminal) }
        }
    };
    match shop.handle.handle::<Execution>(&one.ours.id.to_string(), context, command).await {
        Ok(_) => Ok(Home::Ended),
        Err(HandleError::Rejected(rejection)) if overtakes(rejection.code) => Ok(Home::Ended),
        Err(error) => Err(error.into()),
    }
}

/// What was in the session's directory.
struct Fetched {
    marks: Marks,
    file: Option<SessionFile>,
    raw: Option<Bytes>,
    stdout: Bytes,
    stderr: Bytes,
}

async fn fetch(cluster: &Cluster, one: &Running) -> Result<Fetched, ssh::Error> {
    let marks = cluster.marks(&one.directory).await?;
    let file = async |name: &str, part: Part, limit: usize| match cluster
        .fetch(&one.directory, name, part, limit)
        .await
    {
        Ok(content) => Ok(Some(Bytes::from(content.bytes))),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    };
    let raw = file(SESSION_FILE, Part::Beginning, LARGEST).await?;
    let read = raw.as_ref().map(|bytes| SessionFile::read(bytes, &one.session.to_string()));
    let session = read.transpose().unwrap_or_else(|error| {
        tracing::error!(execution = %one.ours.id, %error, "what the launcher left is taken for nothing");
        None
    });
    // Only the job's own last word counts, not what something else has left under the name.
    let session = session.filter(|file| {
        let own = file.job.as_deref() == Some(one.job.to_string().as_str());
        if !own {
            tracing::error!(execution = %one.ours.id, job = one.job, by = ?file.job, "session.json is not of this job");
        }
        own
    });
    Ok(Fetched {
        marks,
        file: session,
        raw,
        stdout: file(OUTPUT_FILE, Part::End, TAIL).await?.unwrap_or_default(),
        stderr: file(ERROR_FILE, Part::End, TAIL).await?.unwrap_or_default(),
    })
}

/// A job that only its own marks speak of.
fn by_marks(code: u32) -> End {
    End {
        state: if code == 0 { State::Completed } else { State::Failed },
        exit: Some(Exit { code, signal: 0 }),
        reason: None,
        elapsed: None,
        limit: None,
        nodes: None,
        max_rss: None,
    }
}

/// The last line that says something.
fn said(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let plain: String = last.chars().filter(|c| !c.is_control()).collect();
    Some(shorten(&plain, 300))
}

async fn terminal(
    shop: &Shop,
    one: &Running,
    row: Option<&sacct::Row>,
    fetched: &Fetched,
    outcome: &Outcome,
    polls: u64,
) -> Result<Terminal, JobError> {
    let mut terminal = Terminal {
        session_id: one.submission.session_id,
        session_state: fetched.file.as_ref().map_or("unknown", |file| file.state.as_str()).to_owned(),
        observed_at: shop.clock.now(),
        error: outcome.error().map(str::to_owned),
        polls,
        job: row.map(|row| Box::new(facts(row))),
        ..Terminal::default()
    };
    if let Some(file) = fetched.file.as_ref().filter(|file| !file.has_finished()) {
        let evidence = file.evidence();
        terminal.error_drops_count = Some(evidence.error_drops_count as u64);
        let culprits = evidence.error_drops.iter().filter(|drop| drop.culprit).take(MOST_CULPRITS);
        terminal.error_drops = culprits
            .map(|drop| ErrorDrop {
                oid: drop.oid.clone(),
                name: drop.name.clone(),
                message: evidence::first_line(drop),
            })
            .collect();
        let text = serde_json::to_vec_pretty(&evidence).map_err(|error| JobError::Fail(error.to_string()))?;
        terminal.artifacts.push(put(shop, "log", text.into(), "application/json").await?);
    }
    for (kind, bytes, media_type) in [
        ("session", fetched.raw.clone().unwrap_or_default(), "application/json"),
        ("stdout", fetched.stdout.clone(), "text/plain; charset=utf-8"),
        ("stderr", fetched.stderr.clone(), "text/plain; charset=utf-8"),
    ] {
        if !bytes.is_empty() {
            terminal.artifacts.push(put(shop, kind, bytes, media_type).await?);
        }
    }
    Ok(terminal)
}

async fn put(shop: &Shop, kind: &str, bytes: Bytes, media_type: &str) -> Result<Artifact, JobError> {
    let stored = shop.artifacts.put(bytes).await.map_err(|error| JobError::Retry(error.to_string()))?;
    Ok(Artifact {
        kind: kind.to_owned(),
        sha256: stored.sha256,
        size_bytes: stored.size_bytes,
        media_type: media_type.to_owned(),
    })
}

/// Accounting's row in the words of the log.
pub(super) fn facts(row: &sacct::Row) -> JobFacts {
    let cancelled_by = match &row.state {
        State::Cancelled { by } => by.map(|uid| uid.to_string()),
        _ => None,
    };
    let hours = row.elapsed.map(|elapsed| elapsed.as_secs_f64() / 3600.0);
    JobFacts {
        state: row.state.word().to_owned(),
        exit_code: Some(i64::from(row.exit.code)),
        signal: Some(i64::from(row.exit.signal)).filter(|signal| *signal != 0),
        cancelled_by,
        reason: row.reason.clone(),
        cluster: row.cluster.clone(),
        partition: row.partition.clone(),
        node_list: row.nodes.clone(),
        submitted_at: row.submitted_at,
        started_at: row.started_at,
        ended_at: row.ended_at,
        elapsed_seconds: row.elapsed.map(|elapsed| elapsed.as_secs()),
        max_rss_bytes: row.max_rss,
        cpu_seconds: row.cpu_time.map(|time| time.as_secs_f64()),
        energy_joules: row.energy_joules,
        allocated_cpus: row.cpus(),
        service_unit_hours: hours.zip(row.billing()).map(|(hours, billing)| hours * billing as f64),
        restarts: Some(u64::from(row.restarts)),
    }
}

/// The queue's row in the words of the log. When a job that waits is expected to start is no fact.
pub(super) fn facts_of_queue(row: &squeue::Row) -> JobFacts {
    let waits = row.state.scheduler_state() == "pending";
    JobFacts {
        state: row.state.word().to_owned(),
        reason: row.reason.clone(),
        partition: row.partition.clone(),
        node_list: row.nodes.clone(),
        submitted_at: row.submitted_at,
        started_at: row.started_at.filter(|_| !waits),
        elapsed_seconds: row.elapsed.map(|elapsed| elapsed.as_secs()),
        ..JobFacts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_one_plain_line() {
        assert_eq!(said(b"one\n\x1b[31mtwo\n \n").as_deref(), Some("[31mtwo"));
        assert_eq!(said(b" \n\n"), None);
    }
}
