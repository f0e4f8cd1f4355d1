//! Workers: who works, and letting one finish what it has. Heartbeats are presence: null when this process has heard none.

use axum::Json;
use axum::extract::State;
use beampipe_domain::worker::{Command, Worker};
use beampipe_projections::workers as rows;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

mod leases;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Name, Params};
use super::known;
use super::problem::{FieldError, Problem};
use super::route::{Access, Route};

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/workers", Access::Viewer, list),
        Route::get("/workers/pools", Access::Viewer, leases::pools),
        Route::get("/workers/leases", Access::Viewer, leases::leases),
        Route::get("/workers/{id}", Access::Viewer, get),
        Route::post("/workers/{id}/drain", Access::Admin, drain),
        Route::post("/workers/{id}/resume", Access::Admin, resume),
    ]
}

fn shape(api: &Api, row: &rows::Worker, leases: u64, now: DateTime<Utc>) -> Value {
    let heard = api.readiness.heard(&row.id);
    let silent = heard.as_ref().map(|heard| heard.silent_for());
    let health = match row.status.as_str() {
        "stopped" => "stopped",
        _ if silent.is_none_or(|silent| silent >= api.settings.worker_stale_after) => "stale",
        "draining" => "draining",
        _ => "healthy",
    };
    let age = heard.as_ref().map(|heard| (now - heard.at).num_milliseconds().max(0) as f64 / 1000.0);
    json!({
        "id": row.id,
        "instance_name": row.instance_name,
        "host": row.host,
        "role": "worker",
        "pool": row.pool,
        "capabilities": row.capabilities,
        "labels": {},
        "concurrency_limit": row.concurrency_limit,
        "status": row.status,
        "health": health,
        "active_leases": leases,
        "heartbeat_age_seconds": age,
        "last_heartbeat_at": heard.map(|heard| heard.at),
        "started_at": row.started_at,
        "draining_at": row.draining_at,
        "stopped_at": row.stopped_at,
        "lost": row.lost,
        "reason": row.reason,
        "process_id": row.process_id,
        "version": row.version,
    })
}

async fn list(State(api): State<Api>, mut params: Params) -> Result<Json<Vec<Value>>, Problem> {
    let include_stopped = params.flag("include_stopped").unwrap_or(false);
    let (limit, offset) = params.window(1000, 10_000);
    params.finish()?;
    let rows = api
        .read(move |models| {
            let rows = models.workers().list(include_stopped, limit.saturating_add(offset))?;
            rows.into_iter()
                .map(|row| Ok((models.jobs().leases_of(&row.id)?, row)))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let now = api.clock().now();
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    Ok(Json(rows.iter().skip(skip).map(|(leases, row)| shape(&api, row, *leases, now)).collect()))
}

impl Api {
    async fn shown_worker(&self, worker: &str) -> Result<Value, Problem> {
        let loaded = self.known::<Worker>(worker).await?;
        let shown: String = worker.chars().take(60).collect();
        if let Some(loaded) = &loaded {
            if loaded.head.is_none() {
                return Err(Problem::new("worker-unknown", format!("there is no worker {shown:?}")));
            }
            self.settle(loaded.position).await;
        }
        let name = worker.to_owned();
        let found = self
            .read(move |models| match models.workers().get(&name)? {
                Some(row) => Ok(Some((models.jobs().leases_of(&name)?, row))),
                None => Ok(None),
            })
            .await?;
        let (leases, row) = known::row(found, loaded.is_some(), &format!("worker {shown:?}"))?;
        Ok(shape(self, &row, leases, self.clock().now()))
    }
}

async fn get(State(api): State<Api>, Name(worker): Name, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    Ok(Json(api.shown_worker(&worker).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    reason: Option<String>,
}

async fn drain(
    State(api): State<Api>,
    caller: Caller,
    Name(worker): Name,
    Body(order): Body<Drain>,
) -> Result<Json<Value>, Problem> {
    let reason = order.reason.unwrap_or_else(|| "no reason was given".to_owned());
    if reason.chars().count() > 2000 {
        let error = FieldError::new("reason", "is too long").hint("at most 2000 characters");
        return Err(Problem::fields("invalid-body", vec![error]));
    }
    let drain = Command::Drain { reason };
    let done = api.handle.handle::<Worker>(&worker, &caller.context(), drain).await?;
    api.settle(done.position).await;
    Ok(Json(api.shown_worker(&worker).await?))
}

async fn resume(State(api): State<Api>, caller: Caller, Name(worker): Name) -> Result<Json<Value>, Problem> {
    let done = api.handle.handle::<Worker>(&worker, &caller.context(), Command::Resume).await?;
    api.settle(done.position).await;
    Ok(Json(api.shown_worker(&worker).await?))
}
