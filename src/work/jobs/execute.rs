//! `execute`: stages an execution and hands it over, or finds out what an earlier claim of the same job left behind.

use beampipe_domain::execution::{Command, Execution, SubmissionStarted};
use beampipe_domain::id;
use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Claimed;
use crate::handle::HandleError;
use crate::work::room::{self, Room};
use crate::work::stage::{self, StageError};
use crate::work::submit::{HandedOver, settle, submit};
use crate::work::{JobError, Shop, queue};

pub async fn run(shop: &Shop, job: &Claimed) -> Result<Option<Value>, JobError> {
    let execution = job.execution()?;
    let key = execution.to_string();
    let state = shop.handle.load::<Execution>(&key).await?.state;
    match &state {
        Execution::Absent => Err(JobError::Fail(format!("no execution {execution}"))),
        Execution::Pending { .. } => {
            Err(JobError::Fail("nobody asked for this execution to be executed".into()))
        }
        Execution::Ended { end, .. } => Ok(Some(json!({"status": end}))),
        Execution::Submitted { .. } => watched(shop, job, execution, "submitted").await,
        Execution::Submitting { .. } | Execution::Uncertain { .. } => {
            let over = stage::hand_over(shop, execution, &state).await?;
            let handed = settle(shop, &job.context, &over).await?;
            told(shop, job, execution, handed).await
        }
        Execution::Preparing { work, .. } => {
            match room::of(shop, execution).await? {
                Room::Free => {}
                // Claimed before others that were asked for earlier were read here.
                full => return Err(JobError::Wait(full.to_string())),
            }
            let flags = (work.do_stage, work.do_submit);
            match prepare(shop, job, execution, flags).await {
                Ok(result) => Ok(result),
                Err(StageError::Rejected(rejection)) if rejection.code == "execution-ended" => {
                    Ok(Some(json!({"status": "ended meanwhile"})))
                }
                // What is away comes back, and a person can cancel: waiting is not failing.
                Err(StageError::Away { error, .. }) => {
                    tracing::warn!(%execution, error, "an execution waits for what it needs");
                    Err(JobError::Wait(error))
                }
                Err(StageError::Again { error, .. }) if !job.is_last_attempt() => Err(JobError::Retry(error)),
                Err(StageError::Job(error)) => Err(error),
                Err(error) => failed(shop, job, &key, error).await,
            }
        }
    }
}

async fn prepare(
    shop: &Shop,
    job: &Claimed,
    execution: Uuid,
    (do_stage, do_submit): (bool, bool),
) -> Result<Option<Value>, StageError> {
    let key = execution.to_string();
    let created = shop.created(execution).await?;
    let phase = if do_stage { "stage_and_manifest" } else { "submit" };
    let begin = Command::Begin { phase: phase.into() };
    shop.handle.handle::<Execution>(&key, &job.context, begin).await?;
    let graph = stage::graph(shop, job, execution, &created, do_stage).await?;
    if !do_submit {
        shop.handle.handle::<Execution>(&key, &job.context, Command::NotSubmit).await?;
        return Ok(Some(json!({"status": "not_submitted"})));
    }
    stage::translate(shop, job, execution, &created, graph).await?;

    let loaded = shop.handle.load::<Execution>(&key).await?;
    let attempt = loaded.state.facts().map_or(1, |facts| facts.attempt);
    let session_id = id::session(execution, attempt);
    let deployment = &created.profile.spec.deployment;
    let backend =
        shop.backend(deployment).map_err(|error| StageError::Never { class: "unsupported", error })?;
    let session = session_id.to_string();
    // Every request of the hand-over is bounded, so after three of them an answer is overdue.
    let overdue = TimeDelta::seconds(3 * shop.settings.dim_timeout_seconds as i64);
    let started = SubmissionStarted {
        attempt,
        session_id,
        backend: deployment.kind().to_owned(),
        deadline_at: Some(shop.clock.now() + overdue),
        dim_rest_base: stage::rest_base(deployment),
        dim_session_status_url: backend.session_status_url(&session),
        dim_graph_status_url: backend.graph_status_url(&session),
        ..SubmissionStarted::default()
    };
    let done = shop.handle.handle::<Execution>(&key, &job.context, Command::BeginSubmission(started)).await?;
    crate::fault::point("submission_started");
    let over = stage::hand_over(shop, execution, &done.state).await?;
    let handed = submit(shop, &job.context, &over).await?;
    Ok(told(shop, job, execution, handed).await?)
}

/// What a hand-over came to, and who goes on with it.
async fn told(
    shop: &Shop,
    job: &Claimed,
    execution: Uuid,
    handed: HandedOver,
) -> Result<Option<Value>, JobError> {
    match handed {
        HandedOver::Recorded => watched(shop, job, execution, "submitted").await,
        HandedOver::Refused => Ok(Some(json!({"status": "failed"}))),
        HandedOver::Cancelled => Ok(Some(json!({"status": "cancelled"}))),
        HandedOver::Open { reason } => {
            tracing::warn!(%execution, reason, "a hand-over is open; the watch settles it");
            watched(shop, job, execution, "to be settled").await
        }
    }
}

async fn watched(
    shop: &Shop,
    job: &Claimed,
    execution: Uuid,
    status: &str,
) -> Result<Option<Value>, JobError> {
    queue::ensure_watch(shop, &job.context, execution).await?;
    Ok(Some(json!({"status": status})))
}

/// Ends the execution for a reason that trying again does not mend.
async fn failed(shop: &Shop, job: &Claimed, key: &str, error: StageError) -> Result<Option<Value>, JobError> {
    let (class, error) = match error {
        StageError::Again { class, error } | StageError::Away { class, error } => {
            (class, format!("{error} ({} attempts)", job.attempt))
        }
        StageError::Never { class, error } => (class, error),
        StageError::Rejected(rejection) => ("conflict", rejection.detail),
        StageError::Job(error) => return Err(error),
    };
    let command = Command::Fail { failure_class: class.to_owned(), error: error.clone(), terminal: None };
    match shop.handle.handle::<Execution>(key, &job.context, command).await {
        Ok(_) => Ok(Some(json!({"status": "failed", "failure_class": class, "error": error}))),
        Err(HandleError::Rejected(rejection)) if rejection.code == "execution-ended" => Ok(None),
        Err(error) => Err(error.into()),
    }
}
