//! **Why** something has not ended: what it waits for, since when, and when it is looked at next. One line for a person,
//! and the same in parts.

use beampipe_domain::worker::can_do;
use beampipe_projections::executions::{Execution, Session};
use beampipe_projections::jobs::Job;
use beampipe_projections::sources::Source;
use chrono::{DateTime, Duration, SecondsFormat, Utc};
use serde::Serialize;

use crate::api::readiness::Poll;

/// What something waits for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    pub waiting_for: String,
    pub since: Option<DateTime<Utc>>,
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The whole as one line.
    pub text: String,
}

impl Why {
    pub fn new(
        waiting_for: impl Into<String>,
        since: Option<DateTime<Utc>>,
        next_attempt_at: Option<DateTime<Utc>>,
    ) -> Self {
        let waiting_for = waiting_for.into();
        let mut text = format!("waiting for {waiting_for}");
        let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
        if let Some(since) = since {
            text.push_str(&format!(", since {}", time(since)));
        }
        if let Some(next) = next_attempt_at {
            text.push_str(&format!(", next attempt {}", time(next)));
        }
        Self { waiting_for, since, next_attempt_at, text }
    }
}

/// What is around an execution and not in its row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around<'a> {
    /// The job that prepares it, or watches it.
    pub job: Option<&'a Job>,
    pub session: Option<&'a Session>,
    pub poll: Option<&'a Poll>,
    /// Live workers and what they can do, when that is known.
    pub capabilities: Option<&'a [String]>,
    /// Why its profile has no room for it, if so.
    pub no_room: Option<&'a str>,
}

/// `None` when the execution has ended.
pub fn execution(row: &Execution, around: Around<'_>) -> Option<Why> {
    if row.is_terminal() {
        return None;
    }
    let next_poll = around.poll.map(|poll| poll.next_poll_at);
    let trouble = around.poll.and_then(|poll| poll.trouble.as_deref());
    let session = row.daliuge_session_id.map(|id| id.to_string()).unwrap_or_default();
    let troubled = |what: String| match trouble {
        Some(trouble) => format!("{what}; the last look saw nothing: {trouble}"),
        None => what,
    };
    let next_look = next_poll.or_else(|| waiting_job(around.job).map(|job| job.next_run_at));
    Some(match row.submission_state.as_str() {
        "uncertain" => {
            let lost = around.session.and_then(|session| {
                let step = session.uncertain_step.as_deref()?;
                Some(format!(
                    " (the answer to {step} was lost: {})",
                    session.uncertain_reason.as_deref().unwrap_or("no reason is known")
                ))
            });
            let what =
                format!("evidence whether the backend has session {session}{}", lost.unwrap_or_default());
            let since = around.session.and_then(|session| session.uncertain_at);
            Why::new(troubled(what), since, next_look)
        }
        "in_flight" => Why::new(
            troubled(format!("the backend's answer to the hand-over of session {session}")),
            row.submission_pending_at,
            row.submission_deadline_at.or(next_look),
        ),
        "submitted" if row.cancel_requested => Why::new(
            troubled(format!("the backend to end session {session}")),
            Some(row.last_event_at),
            next_look,
        ),
        "submitted" if row.status == "awaiting_scheduler" => {
            // What the last poll saw, or else what was seen first.
            let now = around.poll.and_then(|poll| poll.note.as_deref());
            let reason =
                now.or(row.scheduler_reason.as_deref()).map(|r| format!(" ({r})")).unwrap_or_default();
            let what = format!("the scheduler {} to start it{reason}", row.scheduler_name);
            Why::new(troubled(what), row.submitted_at, next_look)
        }
        "submitted" => {
            let what = format!(
                "session {session} on {} to end; its state is {}",
                row.scheduler_name, row.daliuge_state
            );
            let since = row.last_reconciled_at.or(row.submitted_at);
            Why::new(watched(troubled(what), around), since, next_look)
        }
        "preparing" => preparing(row, around),
        _ if row.status == "retrying" => {
            Why::new("somebody to execute the next attempt (POST …/execute)", Some(row.last_event_at), None)
        }
        _ if row.automatic => Why::new("the scheduler to ask for its execution", Some(row.created_at), None),
        _ => Why::new("somebody to execute it (POST …/execute)", Some(row.created_at), None),
    })
}

fn waiting_job(job: Option<&Job>) -> Option<&Job> {
    job.filter(|job| job.status == "queued")
}

/// Says so when nobody looks.
fn watched(what: String, around: Around<'_>) -> String {
    match around.job {
        Some(job) if job.status == "queued" => format!("{what}; {}", unclaimed(job, around.capabilities)),
        Some(job) if job.status == "dead_lettered" => format!(
            "{what}; the job that watches it was given up ({}), requeue it with POST /jobs/{}/requeue",
            job.last_error.as_deref().unwrap_or("no reason is known"),
            job.id
        ),
        _ => what,
    }
}

/// Why a queued job is not claimed.
fn unclaimed(job: &Job, capabilities: Option<&[String]>) -> String {
    let needed = job.required_capability.as_deref();
    match (capabilities, needed) {
        (Some([]), _) => format!("a live worker to claim job {}; there is none", job.id),
        (Some(able), Some(needed)) if !can_do(able, needed) => {
            format!("a live worker with capability {needed} to claim job {}; there is none", job.id)
        }
        _ => format!("a worker to claim job {}", job.id),
    }
}

fn preparing(row: &Execution, around: Around<'_>) -> Why {
    let since = row.started_at.or(Some(row.created_at));
    let Some(job) = around.job else {
        return Why::new("its job to be enqueued", since, None);
    };
    let before = job.last_error.as_deref().map(|error| format!(" (the attempt before: {error})"));
    let before = before.unwrap_or_default();
    match job.status.as_str() {
        "queued" if around.no_room.is_some() => {
            Why::new(format!("{}{before}", around.no_room.unwrap_or_default()), since, None)
        }
        "queued" if job.attempts > 0 => Why::new(
            format!("attempt {} of job {}{before}", job.attempts + 1, job.id),
            Some(job.updated_at),
            Some(job.next_run_at),
        ),
        "queued" => Why::new(
            format!("{}{before}", unclaimed(job, around.capabilities)),
            Some(job.updated_at),
            Some(job.next_run_at),
        ),
        "running" => Why::new(
            format!(
                "worker {} to prepare it; {} is done{before}",
                job.worker_id.as_deref().unwrap_or("unknown"),
                row.control_phase
            ),
            job.claimed_at,
            None,
        ),
        "dead_lettered" => Why::new(
            format!(
                "a person: job {} was given up{before}; requeue it with POST /jobs/{}/requeue, or cancel the execution",
                job.id, job.id
            ),
            job.finished_at,
            None,
        ),
        _ => Why::new("its end to be recorded", job.finished_at, None),
    }
}

/// What the project says about its sources.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub paused: Option<String>,
    pub stale_after_hours: f64,
    pub discovers: bool,
    pub executes: bool,
}

/// `None` for a source that was removed.
pub fn source(row: &Source, survey: &Survey) -> Option<Why> {
    if row.removed {
        return None;
    }
    let hours = row.stale_after_hours.unwrap_or(survey.stale_after_hours).clamp(0.0, 1e6);
    let stale = Duration::milliseconds((hours * 3_600_000.0) as i64);
    let next_look = row.last_attempted_at.map(|at| at + stale);
    if !row.enabled {
        return Some(Why::new("somebody to enable it", Some(row.last_event_at), None));
    }
    if let Some(requested) = row.discovery_requested_at {
        let before = row.last_error.as_deref().map(|error| format!(" (the one before: {error})"));
        let what = format!("the discovery that was asked for{}", before.unwrap_or_default());
        return Some(Why::new(what, Some(requested), None));
    }
    Some(match row.phase.as_str() {
        "pending" => {
            let since = row.pending_at;
            match &survey.paused {
                Some(reason) => Why::new(format!("admission, which is paused: {reason}"), since, None),
                None if !survey.executes => {
                    Why::new("somebody to execute it: the project does not by itself", since, None)
                }
                None => Why::new("admission to an execution", since, None),
            }
        }
        "executing" => {
            let execution = row.admitted_execution_id.map(|id| id.to_string()).unwrap_or_default();
            Why::new(format!("execution {execution} to end"), row.admitted_at, None)
        }
        "failed" => {
            let what =
                "somebody to retry its last execution, which failed, or other data from its next discovery";
            Why::new(what, Some(row.last_event_at), next_look.filter(|_| survey.discovers))
        }
        _ if !survey.discovers => {
            Why::new("somebody to ask for a discovery: the project does not by itself", None, None)
        }
        _ => match row.last_outcome.as_deref() {
            None => Why::new("its first discovery", Some(row.created_at), None),
            Some(outcome @ ("error" | "timeout" | "tap_skipped")) => {
                let error = row.last_error.as_deref().unwrap_or("no reason is known");
                let retry = row.last_attempted_at.map(|at| at + stale.min(Duration::minutes(60)));
                let what = format!("another discovery; the last one ended with {outcome}: {error}");
                Why::new(what, row.last_attempted_at, retry)
            }
            Some(outcome) => {
                let what = format!("its next discovery; the last one ended with {outcome}");
                Why::new(what, row.last_attempted_at, next_look)
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_since_when_and_when_next() {
        let at = |s| DateTime::from_timestamp(s, 0);
        let why = Why::new("a worker", at(0), at(60));
        assert_eq!(
            why.text,
            "waiting for a worker, since 1970-01-01T00:00:00Z, next attempt 1970-01-01T00:01:00Z"
        );
    }
}
