//! `execute`: stages an execution and hands it over, or finds out what an earlier claim of the same job left behind.

use beampipe_domain::execution::{Command, Created, Execution, SubmissionStarted};
use beampipe_domain::id;
use beampipe_domain::profile::Deployment;
use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Claimed;
use crate::backends::slurm::script;
use crate::handle::HandleError;
use crate::work::cluster::Site;
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
    let started = announcement(shop, &created, attempt, session_id)?;
    let done = shop.handle.handle::<Execution>(&key, &job.context, Command::BeginSubmission(started)).await?;
    crate::fault::point("submission_started");
    let over = stage::hand_over(shop, execution, &done.state).await?;
    let handed = submit(shop, &job.context, &over).await?;
    Ok(told(shop, job, execution, handed).await?)
}

/// What is made durable before the first request leaves.
fn announcement(
    shop: &Shop,
    created: &Created,
    attempt: u32,
    session_id: Uuid,
) -> Result<SubmissionStarted, StageError> {
    let deployment = &created.profile.spec.deployment;
    let never = |error| StageError::Never { class: "configuration", error };
    let (session, now) = (session_id.to_string(), shop.clock.now());
    let announced = SubmissionStarted {
        attempt,
        session_id,
        backend: deployment.kind().to_owned(),
        ..SubmissionStarted::default()
    };
    if let Deployment::SlurmRemote(remote) = deployment {
        let site = Site::of(remote).map_err(never)?;
        // Until then accounting may be late.
        let settled = TimeDelta::seconds(shop.settings.slurm_settle_seconds as i64);
        return Ok(SubmissionStarted {
            deadline_at: Some(now + settled),
            slurm_session_dir: Some(script::directory(remote, &session)),
            slurm_login_node: Some(site.login_node),
            slurm_remote_user: Some(site.remote_user),
            ..announced
        });
    }
    let backend =
        shop.backend(deployment).map_err(|error| StageError::Never { class: "unsupported", error })?;
    // Every request of the hand-over is bounded, so after three of them an answer is overdue.
    let overdue = TimeDelta::seconds(3 * shop.settings.dim_timeout_seconds as i64);
    Ok(SubmissionStarted {
        deadline_at: Some(now + overdue),
        dim_rest_base: stage::rest_base(deployment),
        dim_session_status_url: backend.session_status_url(&session),
        dim_graph_status_url: backend.graph_status_url(&session),
        ..announced
    })
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
        // What a backend has is watched. A session that is still being handed over is its own worker's, or taken over from that.
        HandedOver::Overtaken => match shop.handle.load::<Execution>(&execution.to_string()).await?.state {
            Execution::Submitted { .. } => watched(shop, job, execution, "settled meanwhile").await,
            _ => Ok(Some(json!({"status": "ended meanwhile"}))),
        },
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
