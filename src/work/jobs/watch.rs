//! `dim_poll`: watches one execution from its hand-over to its end, on a DIM or a simulated backend.
//!
//! One such job for every live execution. It settles a hand-over whose answer was lost, looks at the session at the
//! project's pace, writes an event when an axis changed and not when it did not, carries a cancellation out, and brings
//! the evidence home at the end. A look that fails says nothing about the session: it is looked at again, less often, and
//! the execution is seen as unreachable meanwhile. It sleeps between looks, and wakes when its execution's stream goes on.

use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::execution::{
    Artifact, Axes, Command, ErrorDrop, Execution, Observation, Submission, Terminal,
};
use beampipe_domain::profile::Deployment;
use beampipe_log::Filter;
use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Claimed;
use crate::backends::{Backend, Look, State, evidence};
use crate::handle::{HandleError, stream_name};
use crate::work::stage;
use crate::work::submit::{HandedOver, overtakes, settle};
use crate::work::{JobError, Poll, Shop};

/// The longest pause between looks while the backend cannot be reached.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The evidence of a failure has to come within this time; the failure does not wait longer for it.
const EVIDENCE_BOUND: Duration = Duration::from_secs(60);

pub async fn run(shop: &Shop, job: &Claimed) -> Result<Option<Value>, JobError> {
    let execution = job.execution()?;
    let created = shop.created(execution).await?;
    let config = shop.config(&created.project_module, created.project_config_id).await?;
    let automation = &config.automation.execution;
    let pace = match &created.profile.spec.deployment {
        Deployment::Simulated(_) => Duration::from_millis(200),
        _ => {
            Duration::from_secs_f64(automation.execution_rest_remote_poll_interval_seconds.clamp(0.1, 3600.0))
        }
    };
    let pace = pace.min(Duration::from_millis(shop.settings.dim_poll_ms).max(Duration::from_millis(50)));
    let backend = shop.backend(&created.profile.spec.deployment).map_err(JobError::Fail)?;
    let mut watch = Watch {
        shop,
        job,
        execution,
        key: execution.to_string(),
        source: match &created.profile.spec.deployment {
            Deployment::Simulated(_) => "simulated",
            _ => "dim",
        },
        max_rounds: automation.execution_rest_remote_poll_max_rounds,
        backend,
        pace,
        round: 0,
        unseen: 0,
        same_state: 0,
    };
    let result = watch.until_the_end().await;
    shop.polls.forget(execution);
    result
}

struct Watch<'a> {
    shop: &'a Shop,
    job: &'a Claimed,
    execution: Uuid,
    key: String,
    backend: Arc<dyn Backend>,
    source: &'static str,
    pace: Duration,
    max_rounds: u64,
    /// Looks so far.
    round: u64,
    /// Looks in a row that saw nothing.
    unseen: u32,
    /// Looks that saw the present state.
    same_state: u64,
}

impl Watch<'_> {
    async fn until_the_end(&mut self) -> Result<Option<Value>, JobError> {
        let started_at = self.shop.clock.now();
        let stream = stream_name::<Execution>(&self.key);
        let position = self.shop.handle.load::<Execution>(&self.key).await?.position;
        let mut news = self.shop.handle.log().subscribe(Filter::stream(stream), position);
        loop {
            let state = self.shop.handle.load::<Execution>(&self.key).await?.state;
            let trouble = match &state {
                Execution::Absent => return Err(JobError::Fail("no such execution".into())),
                Execution::Ended { end, .. } => return Ok(Some(json!({"status": end, "polls": self.round}))),
                // Another attempt has been opened: it will have a watch of its own.
                Execution::Pending { .. } | Execution::Preparing { .. } => return Ok(None),
                Execution::Submitting { .. } | Execution::Uncertain { .. } => self.settle(&state).await?,
                Execution::Submitted { facts, submission, axes, .. } => {
                    self.round += 1;
                    self.look(facts.cancel_requested, submission, axes).await?
                }
            };
            let ended =
                matches!(self.shop.handle.load::<Execution>(&self.key).await?.state, Execution::Ended { .. });
            if ended {
                continue;
            }
            self.unseen = if trouble.is_some() { self.unseen + 1 } else { 0 };
            let pause = if self.unseen > 0 {
                (self.pace * 2_u32.saturating_pow(self.unseen.min(10))).clamp(self.pace, LONGEST_PAUSE)
            } else {
                self.pace
            };
            let now = self.shop.clock.now();
            let next_poll_at = now + chrono::TimeDelta::from_std(pause).unwrap_or_default();
            self.shop.polls.note(
                self.execution,
                Poll { round: self.round, started_at, last_poll_at: now, next_poll_at, trouble, note: None },
            );
            let until = tokio::time::Instant::now() + pause;
            loop {
                tokio::select! {
                    () = self.job.stop.cancelled() => return Err(JobError::HandBack("the worker stops or is drained".into())),
                    () = tokio::time::sleep_until(until) => break,
                    batch = news.next_batch(100) => match batch {
                        // Our own observations are no news; what a person asked for is.
                        Ok(batch) if batch.events.iter().any(|e| &*e.event_type == "execution.cancel_requested") => break,
                        Ok(_) => {}
                        Err(error) => return Err(JobError::Retry(error.to_string())),
                    },
                }
            }
        }
    }

    async fn settle(&self, state: &Execution) -> Result<Option<String>, JobError> {
        let over = stage::hand_over(self.shop, self.execution, state).await?;
        Ok(match settle(self.shop, &self.job.context, &over).await? {
            HandedOver::Open { reason } => Some(reason),
            HandedOver::Recorded | HandedOver::Refused | HandedOver::Cancelled | HandedOver::Overtaken => {
                None
            }
        })
    }

    /// Looks once and acts on what is seen; answers why nothing was seen, if so.
    async fn look(
        &mut self,
        cancel: bool,
        submission: &Submission,
        axes: &Axes,
    ) -> Result<Option<String>, JobError> {
        let session = submission.session_id.to_string();
        if cancel && let Err(error) = self.backend.cancel(&session).await {
            // A session that has ended cannot be cancelled: what is seen next decides.
            tracing::info!(execution = %self.execution, %error, "the session could not be cancelled");
        }
        if self.round > self.max_rounds {
            return self.give_up(&session, submission).await;
        }
        let (state, raw) = match self.backend.look(&session).await {
            Err(error) => {
                self.observe(
                    submission.session_id,
                    axes,
                    "unreachable",
                    "unknown",
                    None,
                    Some(error.to_string()),
                )
                .await?;
                return Ok(Some(error.to_string()));
            }
            Ok(Look::Absent) => {
                let error =
                    "the backend no longer knows the session: it was restarted, or the session was deleted";
                let terminal = self.terminal(submission, "unknown", Some(error.to_owned()));
                self.end(Command::Fail {
                    failure_class: "inconsistent_state".into(),
                    error: error.into(),
                    terminal: Some(terminal),
                })
                .await?;
                return Ok(None);
            }
            Ok(Look::Present { state, raw }) => (state, raw),
        };
        match &state {
            State::Finished => {
                let terminal = self.terminal(submission, state.as_str(), None);
                self.end(Command::Complete(terminal)).await?;
            }
            State::Failed => self.failed(submission, &session).await?,
            State::Cancelled => {
                let error =
                    (!cancel).then(|| "the session was cancelled at the backend, not by us".to_owned());
                let terminal = self.terminal(submission, state.as_str(), error);
                let session_id = submission.session_id;
                self.end(Command::ConfirmCancel { session_id, terminal: Some(terminal) }).await?;
            }
            running => {
                let scheduler = match running {
                    State::Running => "running",
                    State::Pristine | State::Building | State::Deploying => "pending",
                    _ => "unknown",
                };
                let daliuge = if let State::Other(_) = running { "unknown" } else { running.as_str() };
                self.observe(submission.session_id, axes, daliuge, scheduler, Some(raw.to_string()), None)
                    .await?;
            }
        }
        Ok(None)
    }

    async fn observe(
        &mut self,
        session_id: Uuid,
        known: &Axes,
        daliuge: &str,
        scheduler: &str,
        raw_state: Option<String>,
        reason: Option<String>,
    ) -> Result<(), JobError> {
        let axes = Axes {
            daliuge_state: Some(daliuge.to_owned()),
            scheduler_state: Some(scheduler.to_owned()),
            ..known.clone()
        };
        self.same_state += 1;
        if axes == *known {
            return Ok(());
        }
        let observation = Observation {
            source: self.source.to_owned(),
            observed_at: self.shop.clock.now(),
            raw_state,
            reason,
            previous_polls: self.same_state - 1,
            job: None,
        };
        self.same_state = 1;
        self.end(Command::Observe { session_id, axes, observation }).await
    }

    async fn failed(&self, submission: &Submission, session: &str) -> Result<(), JobError> {
        let graph = self.physical_graph().await?;
        let gathered = tokio::time::timeout(EVIDENCE_BOUND, self.backend.evidence(session, &graph)).await;
        let mut terminal = self.terminal(submission, "failed", None);
        let error = match gathered {
            Ok(Ok(evidence)) => {
                let bytes = serde_json::to_vec_pretty(&evidence)
                    .map_err(|error| JobError::Fail(error.to_string()))?;
                let stored = self.shop.artifacts.put(bytes.into()).await;
                let stored = stored.map_err(|error| JobError::Retry(error.to_string()))?;
                terminal.artifacts.push(Artifact {
                    kind: "log".into(),
                    sha256: stored.sha256,
                    size_bytes: stored.size_bytes,
                    media_type: "application/json".into(),
                });
                terminal.error_drops_count = Some(evidence.error_drops_count as u64);
                let culprits = evidence.error_drops.iter().filter(|drop| drop.culprit).take(20);
                terminal.error_drops = culprits
                    .map(|drop| ErrorDrop {
                        oid: drop.oid.clone(),
                        name: drop.name.clone(),
                        message: evidence::first_line(drop),
                    })
                    .collect();
                evidence.summary()
            }
            Ok(Err(error)) => format!("the session failed; its drops could not be asked why: {error}"),
            Err(_) => "the session failed; its drops did not say why in time".to_owned(),
        };
        terminal.error = Some(error.clone());
        self.end(Command::Fail {
            failure_class: "daliuge_drop_error".into(),
            error,
            terminal: Some(terminal),
        })
        .await
    }

    async fn give_up(&self, session: &str, submission: &Submission) -> Result<Option<String>, JobError> {
        if let Err(error) = self.backend.cancel(session).await {
            tracing::warn!(execution = %self.execution, %error, "a session that takes too long could not be cancelled");
        }
        let error = format!("the session did not end within {} looks; it was cancelled", self.max_rounds);
        let terminal = self.terminal(submission, "unknown", Some(error.clone()));
        self.end(Command::Fail { failure_class: "timeout".into(), error, terminal: Some(terminal) }).await?;
        Ok(None)
    }

    fn terminal(&self, submission: &Submission, session_state: &str, error: Option<String>) -> Terminal {
        Terminal {
            session_id: submission.session_id,
            session_state: session_state.to_owned(),
            observed_at: self.shop.clock.now(),
            error,
            error_drops: vec![],
            error_drops_count: None,
            polls: self.round,
            artifacts: vec![],
            job: None,
        }
    }

    async fn physical_graph(&self) -> Result<Bytes, JobError> {
        stage::physical_graph(self.shop, self.execution).await
    }

    /// Records what was seen; that somebody else recorded an end first, or gave the session up, is fine.
    async fn end(&self, command: Command) -> Result<(), JobError> {
        match self.shop.handle.handle::<Execution>(&self.key, &self.job.context, command).await {
            Ok(_) => Ok(()),
            Err(HandleError::Rejected(rejection)) if overtakes(rejection.code) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
