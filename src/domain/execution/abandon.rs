//! Giving a lost hand-over up, by a person who knows better than anything that can be looked at.
//!
//! The person says what they believe the state to be, so that what was settled meanwhile is not given up by mistake.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Event, Execution, Facts, Failed, Submission, SubmissionAbandoned};
use crate::Rejection;

/// A person's word that a lost hand-over is to be given up, with what the person believes the state to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Abandonment {
    pub reason: String,
    pub evidence: Option<String>,
    pub acknowledged: bool,
    pub expected_submission_state: String,
    pub expected_session_id: Option<Uuid>,
    pub expected_deadline_at: Option<DateTime<Utc>>,
}

pub(super) fn decide(
    state: &Execution,
    facts: &Facts,
    submission: &Submission,
    word: Abandonment,
) -> Result<Vec<Event>, Rejection> {
    let refuse = |field: &str, actual: String| {
        Err(Rejection::new(
            "abandonment-outdated",
            format!("{field} is {actual} now; look again before abandoning"),
        ))
    };
    if !word.acknowledged {
        return Err(Rejection::new(
            "not-acknowledged",
            "acknowledge_external_job_may_exist has to be true: what was handed over may still run",
        ));
    }
    if word.expected_submission_state != state.submission_state() {
        return refuse("submission_state", state.submission_state().to_owned());
    }
    if word.expected_session_id != Some(submission.session_id) {
        return refuse("daliuge_session_id", submission.session_id.to_string());
    }
    if word.expected_deadline_at != submission.deadline_at {
        return refuse("submission_deadline_at", format!("{:?}", submission.deadline_at));
    }
    let error = format!("the submission was abandoned: {}", word.reason);
    Ok(vec![
        Event::SubmissionAbandoned(SubmissionAbandoned {
            attempt: facts.attempt,
            session_id: submission.session_id,
            reason: word.reason,
            evidence: word.evidence,
        }),
        Event::Failed(Failed {
            attempt: facts.attempt,
            failure_class: "inconsistent_state".into(),
            error,
            terminal: None,
            source_identifiers: facts.source_identifiers.clone(),
        }),
    ])
}
