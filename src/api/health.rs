//! Whether the process is there, whether it can do its job, and its numbers.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::route::{Access, Route};
use crate::metrics::{self, projected};

/// What the service calls itself.
pub const SERVICE: &str = "beampipe-core";

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/health", Access::Open, health),
        Route::get("/ready", Access::Open, ready),
        Route::get("/health/tap", Access::Open, tap),
        Route::get("/metrics", Access::Metrics, metrics),
    ]
}

pub async fn health(State(api): State<Api>) -> Json<Value> {
    Json(json!({ "status": "ok", "service": SERVICE, "version": api.settings.version }))
}

pub async fn ready(State(api): State<Api>) -> Response {
    let answer = api.readiness.answer();
    let status = if answer.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_TYPE, "application/json")];
    (status, headers, answer.body.to_string()).into_response()
}

async fn tap(State(api): State<Api>) -> Json<Value> {
    let answer = api.readiness.answer();
    Json(json!({ "casda": answer.tap_casda, "vizier": answer.tap_vizier }))
}

/// Always text, whatever `Accept` says: consoles ask for JSON. Touches neither the log nor a database nor the network.
pub async fn metrics(State(api): State<Api>) -> Response {
    observe(&api);
    let mut text = api.metrics.process_families();
    if api.models.caught_up() {
        projected::write(&mut text, &api.models.gauges(), api.clock().now());
    }
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], text)
        .into_response()
}

/// Sets the gauges of this process to what is so now.
fn observe(api: &Api) {
    let log = api.handle.log();
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let beampipe_log::Health { engine, dense, .. } = log.health();
    api.metrics.log_head_position.with_label_values(&[engine]).set(signed(log.head().position));
    for one in api.models.status() {
        let label = [one.name];
        api.metrics.projection_position.with_label_values(&label).set(signed(one.position));
        api.metrics.projection_lag_seconds.with_label_values(&label).set(one.lag_seconds);
        if dense {
            api.metrics.projection_lag_events.with_label_values(&label).set(signed(one.lag_events));
        }
    }
    if let Some(bootstrap) = api.models.bootstrap() {
        api.metrics.bootstrap_seconds.with_label_values(&[] as &[&str]).set(bootstrap.took.as_secs_f64());
        api.metrics.bootstrap_events.with_label_values(&[] as &[&str]).set(signed(bootstrap.events));
    }
    let gauges = api.models.gauges();
    for project in gauges.projects.paused.keys() {
        api.metrics.know_project(project);
    }
    let mut pools: BTreeMap<&str, i64> = BTreeMap::new();
    for (pool, _) in gauges.workers.by_pool_status.keys() {
        pools.entry(pool).or_default();
    }
    for (pool, leases) in &gauges.jobs.leases_by_pool {
        *pools.entry(pool).or_default() += signed(*leases);
    }
    for (pool, leases) in pools {
        api.metrics.worker_active_leases.with_label_values(&[pool]).set(leases);
    }
    for (pool, age) in api.readiness.oldest_heartbeat_by_pool() {
        api.metrics.worker_heartbeat_age_seconds.with_label_values(&[pool.as_str()]).set(age);
    }
}
