//! Alerts: what fires, what is about to, and what was told. What made an alert fire is in its events.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe_domain::alert::{Alert, Command};
use beampipe_domain::silence::{Created, LONGEST_DAYS, MOST_MATCHERS, Matcher, Op};
use beampipe_projections::alerts as rows;
use chrono::TimeDelta;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Name, Params};
use super::known;
use super::problem::Problem;
use super::route::{Access, Route};
use super::sources::{goes_on, next_link, window};

mod explain;

/// For how long an alert is silenced if nobody says.
const SILENCE_MINUTES: u64 = 120;

/// Every state of an alert, as it is shown.
const STATES: &[&str] = &["pending", "firing", "resolved", "told"];

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/alerts", Access::Viewer, list),
        Route::get("/alerts/explain", Access::Viewer, explain::explain),
        Route::get("/alerts/{id}", Access::Viewer, get),
        Route::post("/alerts/{id}/silence", Access::Operator, silence),
        Route::post("/alerts/{id}/acknowledge", Access::Operator, acknowledge),
    ]
}

fn shape(api: &Api, row: &rows::Alert) -> Value {
    let about = |name: &str| row.about.get(name).cloned().unwrap_or_default();
    let by = row.acknowledged_by.as_deref().map(|actor| api.names.resolve(&api.models, actor));
    let held = row.held_by.as_ref().map(|by| json!({"by": by, "id": row.held_id}));
    json!({
        "id": row.id,
        "rule_id": row.rule_id,
        "rule_version": row.rule_version,
        "rule_name": row.rule_name,
        "project_module": row.project_module,
        "severity": row.severity,
        "labels": row.labels,
        "annotations": about("annotations"),
        "execution_id": about("execution_id"),
        "source_identifiers": about("source_identifiers"),
        "changed_count": about("changed_count"),
        "state": row.state,
        "since": row.since,
        "fired_at": row.fired_at,
        "times_fired": row.number,
        "last_said_at": row.said_at,
        "summary": row.summary,
        "value": row.value,
        "causes": row.causes,
        "held_back": held,
        "escalated_at": row.escalated_at,
        "acknowledged_by": by,
        "acknowledged_at": row.acknowledged_at,
        "acknowledgement": row.acknowledgement,
        "resolved_at": row.resolved_at,
        "resolved_reason": row.resolved_reason,
    })
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let state = params.word("state", STATES);
    let rule = params.uuid("rule_id");
    let (window, limit) = window(&mut params, 100, 1000);
    params.finish()?;
    let rows = api.read(move |models| models.alerts().alerts(state.as_deref(), rule, window)).await?;
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    Ok((headers, Json(rows.iter().map(|row| shape(&api, row)).collect())))
}

impl Api {
    pub async fn shown_alert(&self, alert: &str) -> Result<Value, Problem> {
        let shown: String = alert.chars().take(80).collect();
        let loaded = self.known::<Alert>(alert).await?;
        if let Some(loaded) = &loaded {
            if loaded.head.is_none() {
                return Err(Problem::new("alert-unknown", format!("there is no alert {shown:?}")));
            }
            self.settle(loaded.position).await;
        }
        let id = alert.to_owned();
        let row = self.read(move |models| models.alerts().alert(&id)).await?;
        Ok(shape(self, &known::row(row, loaded.is_some(), &format!("alert {shown:?}"))?))
    }
}

async fn get(State(api): State<Api>, Name(alert): Name, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    Ok(Json(api.shown_alert(&alert).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledgement {
    comment: Option<String>,
}

/// Somebody sees to it: the alert is not said again while it fires.
async fn acknowledge(
    State(api): State<Api>,
    caller: Caller,
    Name(alert): Name,
    Body(sent): Body<Acknowledgement>,
) -> Result<Json<Value>, Problem> {
    let comment = sent.comment.unwrap_or_default();
    if comment.chars().count() > 2000 {
        return Err(Problem::field("invalid-body", "comment", "is too long", "at most 2000 characters"));
    }
    api.shown_alert(&alert).await?;
    let command = Command::Acknowledge { comment };
    let done = api.handle.handle::<Alert>(&alert, &caller.context(), command).await?;
    api.settle(done.position).await;
    Ok(Json(api.shown_alert(&alert).await?))
}

/// What silences an alert and what is like it: everything with its labels.
pub fn matchers(alert: &Value) -> Vec<Matcher> {
    let labels = alert["labels"].as_object().cloned().unwrap_or_default();
    let matchers = labels.into_iter().map(|(name, value)| Matcher {
        name,
        op: Op::Is,
        value: value.as_str().unwrap_or_default().to_owned(),
    });
    matchers.take(MOST_MATCHERS).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quiet {
    duration_minutes: Option<u64>,
    comment: Option<String>,
}

/// A silence of just this alert: of everything that has its labels.
async fn silence(
    State(api): State<Api>,
    caller: Caller,
    Name(alert): Name,
    Body(sent): Body<Quiet>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let shown = api.shown_alert(&alert).await?;
    let minutes = sent.duration_minutes.unwrap_or(SILENCE_MINUTES);
    let longest = LONGEST_DAYS.unsigned_abs() * 24 * 60;
    if !(1..=longest).contains(&minutes) {
        let hint = format!("from 1 to {longest}");
        return Err(Problem::field("invalid-body", "duration_minutes", "is out of range", hint));
    }
    let now = api.clock().now();
    let set = Created {
        matchers: matchers(&shown),
        comment: sent.comment.unwrap_or_else(|| format!("alert {alert}")),
        starts_at: now,
        ends_at: now + TimeDelta::minutes(i64::try_from(minutes).unwrap_or(i64::MAX / 60_000)),
    };
    api.create_silence(&caller, "/alerts/silence", set).await
}
