//! The **queue**: jobs are enqueued under names that make them unique, claimed by an append, and settled by whoever holds
//! the claim.
//!
//! There is no table to lock. A candidate comes from the jobs read model, which may lag; the claim is an append at the
//! expected revision of the job's stream, which has one winner.

use beampipe_domain::execution::Execution;
use beampipe_domain::id;
use beampipe_domain::job::{Command, Enqueued, Event, Job, Kind};
use beampipe_domain::profile::Deployment;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::cluster::Site;
use super::jobs::{Claimed, discover};
use super::{JobError, Shop};
use crate::handle::{Context, Done, HandleError};

/// A watch is settled by its execution's end and by nothing else, so losing its worker often does not end it.
const WATCH_ATTEMPTS: u32 = 1_000_000;

/// Enqueues a job under `id`; one that is there already is left as it is.
pub async fn ensure(
    shop: &Shop,
    context: &Context,
    id: Uuid,
    order: Enqueued,
) -> Result<Done<Job>, HandleError> {
    shop.handle.handle::<Job>(&id.to_string(), context, Command::Enqueue(order)).await
}

/// Sees that an execution is watched: its watch is enqueued if it never was, and brought back if it was given up. On a
/// cluster that is the watch of its login node.
pub async fn ensure_watch(shop: &Shop, context: &Context, execution: Uuid) -> Result<(), JobError> {
    let loaded = shop.handle.load::<Execution>(&execution.to_string()).await?;
    let Some(facts) = loaded.state.facts() else { return Ok(()) };
    let spec = shop.created(execution).await?.profile.spec;
    if let Deployment::SlurmRemote(remote) = &spec.deployment {
        let site = Site::of(remote).map_err(JobError::Fail)?;
        let payload = serde_json::to_value(&site).map_err(|error| JobError::Fail(error.to_string()))?;
        let id = watch_of(&site);
        let order = Enqueued {
            kind: Kind::SlurmPollTick,
            payload,
            project_module: None,
            execution_id: None,
            required_capability: Some(facts.capability.clone()),
            idempotency_key: None,
            max_attempts: WATCH_ATTEMPTS,
            next_run_at: shop.clock.now(),
        };
        return bring_back(shop, context, id, order).await;
    }
    let id = id::execution_job(Kind::DimPoll.as_str(), execution, facts.attempt);
    let order = Enqueued {
        kind: Kind::DimPoll,
        payload: json!({"attempt": facts.attempt}),
        project_module: Some(facts.project_module.clone()),
        execution_id: Some(execution),
        required_capability: Some("dim".into()),
        idempotency_key: None,
        max_attempts: WATCH_ATTEMPTS,
        next_run_at: shop.clock.now(),
    };
    bring_back(shop, context, id, order).await
}

/// The job that watches a login node.
pub fn watch_of(site: &Site) -> Uuid {
    id::caused_job(Kind::SlurmPollTick.as_str(), site.to_string().as_bytes())
}

/// Sees that an execution is being executed with the flags it was asked with.
pub async fn ensure_execute(shop: &Shop, context: &Context, execution: Uuid) -> Result<(), JobError> {
    let loaded = shop.handle.load::<Execution>(&execution.to_string()).await?;
    let (Some(facts), Some(work)) = (loaded.state.facts(), loaded.state.work()) else { return Ok(()) };
    let order = Enqueued {
        kind: Kind::Execute,
        payload: json!({"do_stage": work.do_stage, "do_submit": work.do_submit}),
        project_module: Some(facts.project_module.clone()),
        execution_id: Some(execution),
        required_capability: Some(facts.capability.clone()),
        idempotency_key: None,
        max_attempts: shop.settings.max_attempts,
        next_run_at: shop.clock.now(),
    };
    bring_back(shop, context, work.job_id, order).await
}

async fn bring_back(shop: &Shop, context: &Context, id: Uuid, order: Enqueued) -> Result<(), JobError> {
    let done = ensure(shop, context, id, order).await?;
    match done.state {
        Job::Absent | Job::Queued { .. } | Job::Claimed { .. } => Ok(()),
        Job::Dead { .. } => {
            let reason = "the execution is not at its end".to_owned();
            let command = Command::Requeue { next_run_at: shop.clock.now(), reason };
            shop.handle.handle::<Job>(&id.to_string(), context, command).await?;
            Ok(())
        }
        Job::Done { facts } if facts.order.kind.is_standing() => {
            let reason = "there is something to watch again".to_owned();
            let command = Command::Requeue { next_run_at: shop.clock.now(), reason };
            shop.handle.handle::<Job>(&id.to_string(), context, command).await?;
            Ok(())
        }
        // It completed just now, and the read model that called for it has not seen it yet.
        Job::Done { .. } => Ok(()),
    }
}

/// Enqueues the discovery of some sources of a project, once for what is known of them.
pub async fn ensure_discovery(
    shop: &Shop,
    context: &Context,
    project: &str,
    cause: &[u8],
    source_ids: Vec<Uuid>,
) -> Result<Uuid, HandleError> {
    let id = id::caused_job(Kind::DiscoverBatch.as_str(), cause);
    let payload = discover::Order { project_module: project.to_owned(), source_ids };
    let order = Enqueued {
        kind: Kind::DiscoverBatch,
        payload: serde_json::to_value(payload).expect("ids and a name are plain data"),
        project_module: Some(project.to_owned()),
        execution_id: None,
        required_capability: Some("tap".into()),
        idempotency_key: None,
        max_attempts: shop.settings.max_attempts,
        next_run_at: shop.clock.now(),
    };
    ensure(shop, context, id, order).await?;
    Ok(id)
}

/// Claims a job; `None` when somebody else has it or it has ended.
pub async fn claim(
    shop: &Shop,
    id: Uuid,
    taken_from: Option<Uuid>,
    stop: CancellationToken,
) -> Result<Option<Claimed>, HandleError> {
    let (claim_id, worker_id) = (shop.clock.id(), shop.worker_id());
    // Everything that a job does is one story; the execution's own story goes on through its id.
    let context =
        Context { actor: format!("system:worker/{worker_id}"), correlation_id: claim_id, causation_id: None };
    let command = Command::Claim { worker_id: worker_id.to_string(), claim_id, taken_from };
    let done = match shop.handle.handle::<Job>(&id.to_string(), &context, command).await {
        Err(HandleError::Rejected(_) | HandleError::Outdated { .. }) => return Ok(None),
        done => done?,
    };
    let [Event::Claimed(claimed)] = done.events.as_slice() else { return Ok(None) };
    let Some(facts) = done.state.facts() else { return Ok(None) };
    Ok(Some(Claimed {
        id,
        order: facts.order.clone(),
        claim_id,
        attempt: claimed.attempt,
        context: match done.event_id {
            Some(event) => context.because_of(event),
            None => context,
        },
        stop,
    }))
}

/// Settles a claimed job as its run ended. That the claim was lost meanwhile is no error: somebody else settles it.
pub async fn settle(
    shop: &Shop,
    job: &Claimed,
    duration_ms: u64,
    ended: Result<Option<Value>, JobError>,
) -> Result<(), HandleError> {
    let claim_id = job.claim_id;
    let now = shop.clock.now();
    let command = match ended {
        Ok(result) => Command::Complete { claim_id, duration_ms, result },
        Err(JobError::HandBack(reason)) => Command::HandBack { claim_id, reason, next_run_at: now },
        Err(JobError::Wait(reason)) => {
            let next_run_at = now + patience(shop, now, job);
            Command::HandBack { claim_id, reason, next_run_at }
        }
        Err(JobError::Retry(error)) => {
            Command::Fail { claim_id, error, duration_ms, retry_at: Some(later(shop, now, job.attempt)) }
        }
        Err(JobError::Fail(error)) => Command::Fail { claim_id, error, duration_ms, retry_at: None },
    };
    match shop.handle.handle::<Job>(&job.id.to_string(), &job.context, command).await {
        Err(HandleError::Rejected(rejection)) if rejection.code == "lease-lost" => {
            tracing::warn!(job = %job.id, "the job was taken over before it was settled here");
            Ok(())
        }
        done => done.map(|_| ()),
    }
}

fn later(shop: &Shop, now: DateTime<Utc>, attempt: u32) -> DateTime<Utc> {
    now + TimeDelta::from_std(shop.backoff(attempt.saturating_sub(1))).unwrap_or(TimeDelta::seconds(60))
}

/// How long a job waits for what is away: half of what it has waited so far, jittered, from seconds to five minutes.
fn patience(shop: &Shop, now: DateTime<Utc>, job: &Claimed) -> TimeDelta {
    let waited = (now - job.order.next_run_at).num_milliseconds() as f64;
    let base = shop.settings.retry_base_ms.max(1) as f64;
    TimeDelta::milliseconds(((waited / 2.0).clamp(base, 300_000.0) * shop.clock.jitter()) as i64)
}
