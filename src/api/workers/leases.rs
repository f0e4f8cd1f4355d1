//! What workers hold: claims of jobs by worker, and workers by pool.
//!
//! A claim lives while its worker's heart beats: it may be taken over when that has stood still for a lease's length.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use chrono::Duration;
use serde_json::{Value, json};

use super::super::Api;
use super::super::extract::Params;
use super::super::problem::Problem;

/// Claims that are looked at: more than all workers hold.
const MOST: u64 = 100_000;

#[derive(Default)]
struct Pool {
    active: u64,
    draining: u64,
    unhealthy: u64,
    leases: u64,
    limit: u64,
}

pub async fn pools(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, Problem> {
    params.finish()?;
    let workers = api
        .read(|models| {
            let workers = models.workers().list(false, 10_000)?;
            workers
                .into_iter()
                .map(|worker| Ok((models.jobs().leases_of(&worker.id)?, worker)))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let mut pools = BTreeMap::<String, Pool>::new();
    for (leases, worker) in workers {
        let pool = pools.entry(worker.pool.clone()).or_default();
        let silent = api.readiness.heard(&worker.id).map(|heard| heard.silent_for());
        if silent.is_none_or(|silent| silent >= api.settings.worker_stale_after) {
            pool.unhealthy += 1;
        } else if worker.status == "draining" {
            pool.draining += 1;
        } else {
            pool.active += 1;
            pool.limit += u64::from(worker.concurrency_limit);
        }
        pool.leases += leases;
    }
    let shape = |(name, pool): (String, Pool)| {
        json!({
            "pool": name,
            "active_workers": pool.active,
            "draining_workers": pool.draining,
            "unhealthy_workers": pool.unhealthy,
            "active_leases": pool.leases,
            "concurrency_limit": pool.limit,
        })
    };
    Ok(Json(pools.into_iter().map(shape).collect()))
}

pub async fn leases(State(api): State<Api>, mut params: Params) -> Result<Json<Vec<Value>>, Problem> {
    let of = params.text("worker_id");
    let include_expired = params.flag("include_expired").unwrap_or(false);
    let (limit, offset) = params.window(1000, 10_000);
    params.finish()?;
    let claimed = api.read(|models| models.jobs().claimed(MOST)).await?;
    let lease = Duration::from_std(api.settings.worker_stale_after).unwrap_or(Duration::zero());
    let shown = claimed.into_iter().filter(|job| of.is_none() || job.worker_id == of).filter_map(|job| {
        let heard = job.worker_id.as_deref().and_then(|worker| api.readiness.heard(worker));
        let silent = heard.as_ref().map(|heard| heard.silent_for());
        let expired = silent.is_none_or(|silent| silent >= api.settings.worker_stale_after);
        (include_expired || !expired).then(|| {
            json!({
                "job_id": job.id,
                "kind": job.kind,
                "pool": job.pool,
                "worker_id": job.worker_id,
                "execution_id": job.execution_id,
                "claim_id": job.claim_id,
                "lease_expires_at": heard.as_ref().map(|heard| heard.at + lease),
                "heartbeat_at": heard.as_ref().map(|heard| heard.at),
                "attempts": job.attempts,
                "required_capability": job.required_capability,
                "expired": expired,
            })
        })
    });
    let size = |n| usize::try_from(n).unwrap_or(usize::MAX);
    Ok(Json(shown.skip(size(offset)).take(size(limit)).collect()))
}
