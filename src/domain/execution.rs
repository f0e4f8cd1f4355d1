//! An **execution**: one graph, asked of one backend, once per attempt. Stream `execution-{id}`.
//!
//! Absent ─Create→ Pending ─Execute→ Preparing ─BeginSubmission→ Submitting ─RecordReceipt→ Submitted ─Complete/Fail→ Ended
//!                    ▲                  │                         ├─RecordRefusal→ Ended          │
//!                    │                  ├─Fail/NotSubmit→ Ended   └─LoseReceipt──→ Uncertain      └─ConfirmCancel→ Ended
//!                    └────────Retry─────┴──────────────(Ended)            ├─RecordReceipt→ Submitted ─Abandon→ Ended
//!                                                                         └─RecordRefusal/Abandon→ Ended
//!
//! Invariants:
//! - an execution is handed to a backend at most once per attempt, so nothing leads out of [`Execution::Uncertain`] but
//!   evidence or a person's abandonment (`submission_is_never_repeated`);
//! - the next attempt opens only after the one before has ended (`a_retry_needs_an_end`);
//! - what is learned of one session is never taken for another's (`what_is_told_of_another_session_is_refused`);
//! - what has ended stays as it ended until a retry (`an_end_is_final`).

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Aggregate, Rejection};

mod abandon;
mod command;
mod event;
pub use abandon::Abandonment;
pub use command::Command;
pub use event::*;

/// What an execution was created as, and what holds in every state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub project_module: String,
    pub source_ids: Vec<Uuid>,
    pub source_identifiers: Vec<String>,
    /// What a worker has to be able to do for it.
    pub capability: String,
    /// Counts from 1; a retry opens the next.
    pub attempt: u32,
    /// Whether somebody asked for its end.
    pub cancel_requested: bool,
}

/// The order that the present attempt works on, and what it has made so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    pub job_id: Uuid,
    pub do_stage: bool,
    pub do_submit: bool,
    pub running: bool,
    pub manifest_sha256: Option<String>,
    pub patched_graph_sha256: Option<String>,
    pub physical_graph_sha256: Option<String>,
}

/// A hand-over that was announced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Submission {
    pub session_id: Uuid,
    pub deadline_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Execution {
    #[default]
    Absent,
    /// Created or to be tried again; nobody was asked to work on it.
    Pending {
        facts: Facts,
    },
    /// Work on it was asked for; nothing has left for a backend.
    Preparing {
        facts: Facts,
        work: Work,
    },
    /// A hand-over was announced; it may or may not have reached the backend.
    Submitting {
        facts: Facts,
        work: Work,
        submission: Submission,
    },
    /// The announced hand-over's answer was lost.
    Uncertain {
        facts: Facts,
        work: Work,
        submission: Submission,
        reason: String,
    },
    /// The backend has it.
    Submitted {
        facts: Facts,
        work: Work,
        submission: Submission,
        receipt: Box<Receipt>,
        axes: Axes,
    },
    Ended {
        facts: Facts,
        work: Option<Work>,
        end: End,
    },
}

words! {
    /// How an execution ended.
    pub enum End { Completed = "completed", Failed = "failed", Cancelled = "cancelled", NotSubmitted = "not_submitted" }
}

impl Execution {
    pub fn facts(&self) -> Option<&Facts> {
        match self {
            Self::Absent => None,
            Self::Pending { facts }
            | Self::Preparing { facts, .. }
            | Self::Submitting { facts, .. }
            | Self::Uncertain { facts, .. }
            | Self::Submitted { facts, .. }
            | Self::Ended { facts, .. } => Some(facts),
        }
    }

    pub fn work(&self) -> Option<&Work> {
        match self {
            Self::Absent | Self::Pending { .. } => None,
            Self::Preparing { work, .. }
            | Self::Submitting { work, .. }
            | Self::Uncertain { work, .. }
            | Self::Submitted { work, .. } => Some(work),
            Self::Ended { work, .. } => work.as_ref(),
        }
    }

    /// The session that was announced and is not ended.
    pub fn submission(&self) -> Option<&Submission> {
        match self {
            Self::Submitting { submission, .. }
            | Self::Uncertain { submission, .. }
            | Self::Submitted { submission, .. } => Some(submission),
            _ => None,
        }
    }

    /// The word of `submission_state` in the contract.
    pub fn submission_state(&self) -> &'static str {
        match self {
            Self::Absent | Self::Pending { .. } | Self::Ended { .. } => "not_started",
            Self::Preparing { .. } => "preparing",
            Self::Submitting { .. } => "in_flight",
            Self::Uncertain { .. } => "uncertain",
            Self::Submitted { .. } => "submitted",
        }
    }
}

fn unknown() -> Rejection {
    Rejection::new("execution-unknown", "no such execution")
}

fn ended(end: End) -> Rejection {
    Rejection::new("execution-ended", format!("the execution has ended as {end}; it can only be retried"))
}

fn may_be_running() -> Rejection {
    Rejection::new(
        "may-be-running",
        "external work may exist under this attempt's session; it is settled by looking, or abandoned with reason",
    )
}

fn not_this_session(told: Uuid, present: Uuid) -> Rejection {
    Rejection::new(
        "not-this-session",
        format!("it is about session {told}; the execution's present one is {present}"),
    )
}

fn not_now(what: &str, state: &Execution) -> Rejection {
    Rejection::new("not-now", format!("{what} does not fit submission state {}", state.submission_state()))
}

impl Aggregate for Execution {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "execution";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        use Command as C;
        if let (Some(told), Some(present)) = (command.session(), self.submission())
            && told != present.session_id
        {
            return Err(not_this_session(told, present.session_id));
        }
        match (self, command) {
            (Self::Absent, C::Create(created)) => Ok(vec![Event::Created(created)]),
            (Self::Absent, _) => Err(unknown()),
            (_, C::Create(_)) => Err(Rejection::new("execution-exists", "the execution exists already")),

            (Self::Pending { facts }, C::Execute { job_id, do_stage, do_submit }) => {
                Ok(vec![Event::ExecuteStarted(ExecuteStarted {
                    job_id,
                    do_stage,
                    do_submit,
                    attempt: facts.attempt,
                })])
            }
            (Self::Ended { end, .. }, C::Execute { do_stage, do_submit, .. }) => match self.work() {
                Some(work) if (work.do_stage, work.do_submit) == (do_stage, do_submit) => Ok(vec![]),
                _ => Err(ended(*end)),
            },
            (_, C::Execute { do_stage, do_submit, .. }) => match self.work() {
                Some(work) if (work.do_stage, work.do_submit) == (do_stage, do_submit) => Ok(vec![]),
                _ => Err(Rejection::new(
                    "other-flags",
                    "it is being executed with other flags; wait for its end and retry",
                )),
            },

            (Self::Ended { end, .. }, C::Begin { .. }) => Err(ended(*end)),
            (Self::Preparing { work, .. }, C::Begin { phase }) if !work.running => {
                Ok(vec![Event::Running(Running { phase })])
            }
            (Self::Pending { .. }, C::Begin { .. }) => Err(not_now("beginning", self)),
            (_, C::Begin { .. }) => Ok(vec![]),

            (Self::Preparing { work, .. }, C::RecordManifest(e)) => {
                unless(work.manifest_sha256.as_ref() == Some(&e.manifest_sha256), Event::ManifestBuilt(e))
            }
            (Self::Preparing { work, .. }, C::RecordGraph(e)) => unless(
                work.patched_graph_sha256.as_ref() == Some(&e.patched_graph_sha256),
                Event::GraphPrepared(e),
            ),
            (Self::Preparing { work, .. }, C::RecordTranslation(e)) => unless(
                work.physical_graph_sha256.as_ref() == Some(&e.physical_graph_sha256),
                Event::Translated(e),
            ),
            (Self::Ended { end, .. }, C::RecordManifest(_) | C::RecordGraph(_) | C::RecordTranslation(_)) => {
                Err(ended(*end))
            }
            (_, C::RecordManifest(_) | C::RecordGraph(_) | C::RecordTranslation(_)) => {
                Err(not_now("recording a stage", self))
            }

            (Self::Preparing { facts, work }, C::BeginSubmission(e)) => {
                if e.attempt != facts.attempt {
                    return Err(not_now("announcing another attempt's session", self));
                }
                if facts.cancel_requested {
                    return Err(Rejection::new("cancel-requested", "its cancellation was asked for"));
                }
                if !work.do_submit {
                    return Err(Rejection::new(
                        "not-to-be-submitted",
                        "it was executed with do_submit=false",
                    ));
                }
                if work.physical_graph_sha256.is_none() {
                    return Err(not_now("submitting without a physical graph", self));
                }
                Ok(vec![Event::SubmissionStarted(e)])
            }
            (
                Self::Submitting { .. } | Self::Uncertain { .. } | Self::Submitted { .. },
                C::BeginSubmission(_),
            ) => Err(may_be_running()),
            (Self::Pending { .. }, C::BeginSubmission(_)) => Err(not_now("submitting", self)),
            (Self::Ended { end, .. }, C::BeginSubmission(_)) => Err(ended(*end)),

            (
                Self::Submitting { facts, .. } | Self::Uncertain { facts, .. },
                C::RecordReceipt { session_id, receipt, settled_by },
            ) => Ok(vec![Event::SubmissionRecorded(SubmissionRecorded {
                attempt: facts.attempt,
                session_id,
                receipt,
                settled_by,
                source_identifiers: facts.source_identifiers.clone(),
            })]),
            (Self::Submitted { .. }, C::RecordReceipt { .. }) => Ok(vec![]),
            (Self::Ended { end, .. }, C::RecordReceipt { .. }) => Err(ended(*end)),
            (Self::Pending { .. } | Self::Preparing { .. }, C::RecordReceipt { .. }) => {
                Err(not_now("recording a receipt", self))
            }

            (
                Self::Submitting { facts, .. } | Self::Uncertain { facts, .. },
                C::RecordRefusal { session_id, failure_class, error, evidence },
            ) => Ok(vec![
                Event::SubmissionRefused(SubmissionRefused {
                    attempt: facts.attempt,
                    session_id,
                    failure_class: failure_class.clone(),
                    error: error.clone(),
                    evidence,
                }),
                Event::Failed(Failed {
                    attempt: facts.attempt,
                    failure_class,
                    error,
                    terminal: None,
                    source_identifiers: facts.source_identifiers.clone(),
                }),
            ]),
            (Self::Ended { end, .. }, C::RecordRefusal { .. }) => Err(ended(*end)),
            (_, C::RecordRefusal { .. }) => Err(not_now("recording a refusal", self)),

            (Self::Submitting { facts, .. }, C::LoseReceipt { session_id, step, reason }) => {
                Ok(vec![Event::SubmissionUncertain(SubmissionUncertain {
                    attempt: facts.attempt,
                    session_id,
                    step,
                    reason,
                })])
            }
            (Self::Uncertain { .. }, C::LoseReceipt { .. }) => Ok(vec![]),
            (_, C::LoseReceipt { .. }) => Err(not_now("losing a receipt", self)),

            (
                Self::Submitting { facts, submission, .. }
                | Self::Uncertain { facts, submission, .. }
                | Self::Submitted { facts, submission, .. },
                C::Abandon(word),
            ) => abandon::decide(self, facts, submission, word),
            (_, C::Abandon(_)) => Err(Rejection::new(
                "nothing-to-abandon",
                "only what was handed over, or may have been, and has not ended can be abandoned",
            )),

            (Self::Submitted { axes, .. }, C::AwaitScheduler { reason, .. }) => {
                unless(axes.awaiting_scheduler, Event::AwaitingScheduler(AwaitingScheduler { reason }))
            }
            (_, C::AwaitScheduler { .. }) => Err(not_now("waiting for a scheduler", self)),

            (Self::Submitted { axes: known, .. }, C::Observe { axes, observation, .. }) => {
                unless(*known == axes, Event::Observed(Observed { axes, observation }))
            }
            (Self::Ended { end, .. }, C::Observe { .. }) => Err(ended(*end)),
            (_, C::Observe { .. }) => Err(not_now("an observation", self)),

            (Self::Submitted { facts, .. }, C::Complete(terminal)) => Ok(vec![Event::Completed(Completed {
                attempt: facts.attempt,
                terminal,
                source_identifiers: facts.source_identifiers.clone(),
            })]),
            (Self::Ended { end, .. }, C::Complete(_)) => Err(ended(*end)),
            (_, C::Complete(_)) => Err(not_now("completion", self)),

            (Self::Submitting { .. } | Self::Uncertain { .. }, C::Fail { .. }) => Err(may_be_running()),
            (Self::Ended { end, .. }, C::Fail { .. }) => Err(ended(*end)),
            // A session ended that no present attempt has announced.
            (Self::Pending { .. } | Self::Preparing { .. }, C::Fail { terminal: Some(_), .. }) => {
                Err(not_now("the end of a session", self))
            }
            (
                Self::Pending { facts } | Self::Preparing { facts, .. } | Self::Submitted { facts, .. },
                C::Fail { failure_class, error, terminal },
            ) => Ok(vec![Event::Failed(Failed {
                attempt: facts.attempt,
                failure_class,
                error,
                terminal,
                source_identifiers: facts.source_identifiers.clone(),
            })]),

            (Self::Preparing { facts, work }, C::NotSubmit) if !work.do_submit => {
                Ok(vec![Event::NotSubmitted(NotSubmitted {
                    attempt: facts.attempt,
                    source_identifiers: facts.source_identifiers.clone(),
                })])
            }
            (Self::Ended { end: End::NotSubmitted, .. }, C::NotSubmit) => Ok(vec![]),
            (_, C::NotSubmit) => Err(not_now("ending without submission", self)),

            (Self::Ended { end: End::Cancelled, .. }, C::RequestCancel { .. }) => Ok(vec![]),
            (Self::Ended { end, .. }, C::RequestCancel { .. }) => Err(ended(*end)),
            (Self::Pending { facts } | Self::Preparing { facts, .. }, C::RequestCancel { reason }) => {
                Ok(vec![
                    Event::CancelRequested(CancelRequested { reason }),
                    Event::Cancelled(cancelled(facts, None)),
                ])
            }
            (_, C::RequestCancel { reason }) => unless(
                self.facts().is_some_and(|facts| facts.cancel_requested),
                Event::CancelRequested(CancelRequested { reason }),
            ),

            (
                Self::Submitting { facts, .. }
                | Self::Uncertain { facts, .. }
                | Self::Submitted { facts, .. },
                C::ConfirmCancel { terminal, .. },
            ) => Ok(vec![Event::Cancelled(cancelled(facts, terminal))]),
            (Self::Ended { end: End::Cancelled, .. }, C::ConfirmCancel { .. }) => Ok(vec![]),
            (Self::Ended { end, .. }, C::ConfirmCancel { .. }) => Err(ended(*end)),
            (_, C::ConfirmCancel { .. }) => Err(not_now("confirming a cancellation", self)),

            (Self::Ended { end: End::Completed, .. }, C::Retry { .. }) => Err(Rejection::new(
                "nothing-to-retry",
                "it completed; create a new execution to run the same data again",
            )),
            (Self::Ended { facts, .. }, C::Retry { reason }) => {
                Ok(vec![Event::RetryRequested(RetryRequested { attempt: facts.attempt + 1, reason })])
            }
            (Self::Pending { .. }, C::Retry { .. }) => {
                Err(Rejection::new("nothing-to-retry", "it waits to be executed; POST …/execute"))
            }
            (Self::Preparing { .. }, C::Retry { .. }) => {
                Err(Rejection::new("nothing-to-retry", "it is being prepared; cancel it first"))
            }
            (Self::Submitting { .. } | Self::Uncertain { .. } | Self::Submitted { .. }, C::Retry { .. }) => {
                Err(may_be_running())
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        let mut facts = self.facts().cloned().unwrap_or_default();
        let work = self.work().cloned();
        match event {
            Event::Created(e) => Self::Pending {
                facts: Facts {
                    project_module: e.project_module.clone(),
                    source_ids: e.sources.iter().map(|source| source.source_id).collect(),
                    source_identifiers: e.source_identifiers.clone(),
                    capability: e.profile.spec.deployment.capability(&e.profile.spec.name),
                    attempt: 1,
                    cancel_requested: false,
                },
            },
            Event::ExecuteStarted(e) => Self::Preparing {
                facts,
                work: Work {
                    job_id: e.job_id,
                    do_stage: e.do_stage,
                    do_submit: e.do_submit,
                    ..Work::default()
                },
            },
            Event::Running(_) => self.working(|work| work.running = true),
            Event::ManifestBuilt(e) => {
                self.working(|work| work.manifest_sha256 = Some(e.manifest_sha256.clone()))
            }
            Event::GraphPrepared(e) => {
                self.working(|work| work.patched_graph_sha256 = Some(e.patched_graph_sha256.clone()))
            }
            Event::Translated(e) => {
                self.working(|work| work.physical_graph_sha256 = Some(e.physical_graph_sha256.clone()))
            }
            Event::SubmissionStarted(e) => Self::Submitting {
                facts,
                work: work.unwrap_or_default(),
                submission: Submission { session_id: e.session_id, deadline_at: e.deadline_at },
            },
            Event::SubmissionUncertain(e) => match self {
                Self::Submitting { facts, work, submission }
                | Self::Uncertain { facts, work, submission, .. } => {
                    Self::Uncertain { facts, work, submission, reason: e.reason.clone() }
                }
                other => other,
            },
            Event::SubmissionRecorded(e) => {
                let submission = self.submission().cloned().unwrap_or_default();
                Self::Submitted {
                    facts,
                    work: work.unwrap_or_default(),
                    submission,
                    receipt: Box::new(e.receipt.clone()),
                    axes: Axes::default(),
                }
            }
            // An end follows in the same append.
            Event::SubmissionRefused(_) | Event::SubmissionAbandoned(_) => self,
            Event::AwaitingScheduler(_) => self.observing(|axes| {
                axes.awaiting_scheduler = true;
                axes.scheduler_state = Some("pending".into());
            }),
            Event::Observed(e) => self.observing(|axes| *axes = e.axes.clone()),
            Event::OutputsVerified(_) => self,
            Event::Completed(_) => Self::Ended { facts, work, end: End::Completed },
            Event::Failed(_) => Self::Ended { facts, work, end: End::Failed },
            Event::NotSubmitted(_) => Self::Ended { facts, work, end: End::NotSubmitted },
            Event::CancelRequested(_) => self.knowing(|facts| facts.cancel_requested = true),
            Event::Cancelled(_) => Self::Ended { facts, work, end: End::Cancelled },
            Event::RetryRequested(e) => {
                facts.attempt = e.attempt;
                facts.cancel_requested = false;
                Self::Pending { facts }
            }
        }
    }

    fn tags(&self, id: &str, event: &Event) -> Vec<String> {
        let Some(facts) = self.facts() else { return vec![] };
        let mut tags = vec![format!("project:{}", facts.project_module), format!("execution:{id}")];
        let told_to_sources = matches!(
            event,
            Event::Created(_)
                | Event::SubmissionRecorded(_)
                | Event::Completed(_)
                | Event::Failed(_)
                | Event::Cancelled(_)
                | Event::NotSubmitted(_)
        );
        if told_to_sources {
            tags.extend(facts.source_ids.iter().map(|source| format!("source:{source}")));
        }
        tags
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Execution(event) => Some(event),
            _ => None,
        }
    }
}

impl Execution {
    fn working(mut self, change: impl FnOnce(&mut Work)) -> Self {
        if let Self::Preparing { work, .. } = &mut self {
            change(work);
        }
        self
    }

    fn observing(mut self, change: impl FnOnce(&mut Axes)) -> Self {
        if let Self::Submitted { axes, .. } = &mut self {
            change(axes);
        }
        self
    }

    fn knowing(mut self, change: impl FnOnce(&mut Facts)) -> Self {
        match &mut self {
            Self::Absent => {}
            Self::Pending { facts }
            | Self::Preparing { facts, .. }
            | Self::Submitting { facts, .. }
            | Self::Uncertain { facts, .. }
            | Self::Submitted { facts, .. }
            | Self::Ended { facts, .. } => change(facts),
        }
        self
    }
}

fn unless(known: bool, event: Event) -> Result<Vec<Event>, Rejection> {
    Ok(if known { vec![] } else { vec![event] })
}

fn cancelled(facts: &Facts, terminal: Option<Terminal>) -> Cancelled {
    Cancelled { attempt: facts.attempt, terminal, source_identifiers: facts.source_identifiers.clone() }
}

#[cfg(test)]
mod tests;
