//! Executions: those that live, and how the others ended.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Count, Facts, Happening, What};
use crate::Event;
use crate::alerting::Told;
use crate::execution::{Event as E, Failed, Terminal};
use crate::rule::Ending;

/// A live execution.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub project: String,
    /// What operators see: pending, running, awaiting_scheduler or retrying.
    pub status: &'static str,
    /// What it is at.
    pub step: &'static str,
    /// When something last happened to it.
    pub since: DateTime<Utc>,
    pub event: Uuid,
    /// Since when nobody knows whether its hand-over reached the backend.
    pub uncertain_since: Option<DateTime<Utc>>,
}

/// The most characters of an error that are said.
const ERROR_SAID: usize = 300;

/// What an execution is at once this has happened, and its status if it changes.
fn goes_on(event: &E) -> Option<(&'static str, Option<&'static str>)> {
    Some(match event {
        E::Created(_) => ("waiting to be executed", Some("pending")),
        E::RetryRequested(_) => ("waiting to be executed again", Some("retrying")),
        E::ExecuteStarted(_) => ("waiting for a worker", None),
        E::Running(_) => ("staging", Some("running")),
        E::ManifestBuilt(_) => ("graph preparation", None),
        E::GraphPrepared(_) => ("translation", None),
        E::Translated(_) => ("submission", None),
        E::SubmissionStarted(_) | E::SubmissionUncertain(_) => ("hand-over to the backend", None),
        E::SubmissionRecorded(_) => ("running on the backend", Some("running")),
        E::AwaitingScheduler(_) => ("waiting for the facility's scheduler", Some("awaiting_scheduler")),
        E::Observed(e) if e.axes.awaiting_scheduler => {
            ("waiting for the facility's scheduler", Some("awaiting_scheduler"))
        }
        E::Observed(_) => ("running on the backend", Some("running")),
        E::OutputsVerified(_) => ("verification of outputs", None),
        E::SubmissionRefused(_) | E::SubmissionAbandoned(_) | E::CancelRequested(_) => return None,
        E::Completed(_) | E::Failed(_) | E::NotSubmitted(_) | E::Cancelled(_) => return None,
    })
}

fn ending(event: &E) -> Option<(Ending, Count)> {
    match event {
        E::Completed(_) => Some((Ending::Completed, Count::Completed)),
        E::Failed(_) => Some((Ending::Failed, Count::Failed)),
        E::NotSubmitted(_) => Some((Ending::NotSubmitted, Count::NotSubmitted)),
        E::Cancelled(_) => Some((Ending::Cancelled, Count::Cancelled)),
        _ => None,
    }
}

fn sources(event: &E) -> &[String] {
    match event {
        E::Completed(e) => &e.source_identifiers,
        E::Failed(e) => &e.source_identifiers,
        E::NotSubmitted(e) => &e.source_identifiers,
        E::Cancelled(e) => &e.source_identifiers,
        _ => &[],
    }
}

fn first_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default()
        .chars()
        .take(ERROR_SAID)
        .collect()
}

/// The drop that failed by itself, if the backend said which.
fn culprit(terminal: Option<&Terminal>) -> Option<String> {
    let drop = terminal?.error_drops.first()?;
    let name = if drop.name.is_empty() { &drop.oid } else { &drop.name };
    let message = first_line(&drop.message);
    Some(if message.is_empty() { name.clone() } else { format!("{name}: {message}") })
}

fn error(e: &Failed) -> String {
    let line = first_line(&e.error);
    match culprit(e.terminal.as_ref()) {
        Some(culprit) => format!("{line} ({culprit})"),
        None => line,
    }
}

impl Facts {
    pub(super) fn execution(&mut self, told: &Told, event: &E) {
        let id = told.uuid();
        if let Some((how, count)) = ending(event) {
            return self.ended(told, event, how, count);
        }
        let opens = matches!(event, E::Created(_) | E::RetryRequested(_));
        if opens {
            let project = match event {
                E::Created(e) if !e.project_module.is_empty() => e.project_module.clone(),
                _ => told.project.clone().unwrap_or_default(),
            };
            self.of_project(&project);
            let live = Live {
                project,
                status: "pending",
                step: "",
                since: told.occurred_at,
                event: told.id,
                uncertain_since: None,
            };
            self.executions.insert(id, live);
        }
        let Some(live) = self.executions.get_mut(&id) else { return };
        (live.since, live.event) = (told.occurred_at, told.id);
        if let Some((step, status)) = goes_on(event) {
            live.step = step;
            live.status = status.unwrap_or(live.status);
        }
        match event {
            E::SubmissionUncertain(_) => {
                live.uncertain_since.get_or_insert(told.occurred_at);
            }
            E::SubmissionRecorded(_) | E::SubmissionRefused(_) | E::SubmissionAbandoned(_) => {
                live.uncertain_since = None;
            }
            _ => {}
        }
    }

    fn ended(&mut self, told: &Told, event: &E, how: Ending, count: Count) {
        let live = self.executions.remove(&told.uuid());
        let project = live.as_ref().map(|live| live.project.clone()).or_else(|| told.project.clone());
        if let Some(project) = &project {
            self.of_project(project).minutes.add(told.occurred_at, count);
        }
        let what = end(told.uuid(), event, how, live.map_or("", |live| live.step));
        self.happens(told, project, what);
    }
}

fn end(execution: Uuid, event: &E, how: Ending, step: &'static str) -> What {
    let (failure_class, error) = match event {
        E::Failed(e) => (Some(e.failure_class.clone()), Some(error(e))),
        _ => (None, None),
    };
    What::Ended { execution, how, failure_class, step, error, sources: sources(event).to_vec() }
}

/// What an event says of an execution's end, if it is one.
pub fn happening(told: &Told) -> Option<Happening> {
    let Event::Execution(event) = &told.event else { return None };
    let (how, _) = ending(event)?;
    let what = end(told.uuid(), event, how, "");
    Some(Happening { event: told.id, at: told.occurred_at, project: told.project.clone(), what })
}
