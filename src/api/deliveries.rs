//! Deliveries: what was sent to whom, with every attempt. Newest first.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe_domain::delivery::{Command, Delivery, Message};
use beampipe_projections::alerts as rows;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Id, Params};
use super::known;
use super::problem::Problem;
use super::route::{Access, Route};
use super::sources::{goes_on, next_link, window};

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/alert-deliveries", Access::Viewer, list),
        Route::get("/alert-deliveries/{id}", Access::Viewer, get),
        Route::post("/alert-deliveries/{id}/redeliver", Access::Admin, redeliver),
    ]
}

fn shape(row: &rows::Delivery) -> Value {
    json!({
        "uuid": row.id,
        "rule_id": row.rule_id,
        "channel_id": row.channel_id,
        "channel_kind": row.channel_kind,
        "alert": row.alert,
        "project_module": row.project_module,
        "message": row.message,
        "status": row.status,
        "payload": row.payload,
        "attempts": row.attempts,
        "next_attempt_at": row.next_attempt_at,
        "code": row.code,
        "error": row.error,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
    })
}

fn shown_attempt(attempt: &rows::Attempt) -> Value {
    json!({
        "attempt": attempt.attempt,
        "attempt_id": attempt.attempt_id,
        "started_at": attempt.started_at,
        "latency_ms": attempt.latency_ms,
        "code": attempt.code,
        "error": attempt.error,
        "answer": attempt.answer,
        "retry_at": attempt.retry_at,
    })
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let messages: Vec<_> = Message::ALL.iter().map(|message| message.as_str()).collect();
    let which = rows::Deliveries {
        status: params.word("status", &["pending", "retrying", "sent", "failed"]),
        channel_id: params.uuid("channel_id"),
        rule_id: params.uuid("rule_id"),
        message: params.word("message", &messages),
        alert: params.text("alert"),
    };
    let (window, limit) = window(&mut params, 50, 500);
    params.finish()?;
    let rows = api.read(move |models| models.alerts().deliveries(&which, window)).await?;
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    Ok((headers, Json(rows.iter().map(shape).collect())))
}

fn unknown(delivery: Uuid) -> Problem {
    Problem::new("delivery-unknown", format!("there is no delivery {delivery}"))
}

async fn get(State(api): State<Api>, Id(delivery): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    Ok(Json(api.shown_delivery(delivery).await?))
}

/// What ended is tried again from the beginning of the schedule; the receiver knows it by its id.
async fn redeliver(
    State(api): State<Api>,
    caller: Caller,
    Id(delivery): Id,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let requeue = Command::Requeue { at: api.clock().now() };
    let done = api.handle.handle::<Delivery>(&delivery.to_string(), &caller.context(), requeue).await?;
    api.settle(done.position).await;
    Ok((StatusCode::ACCEPTED, Json(api.shown_delivery(delivery).await?)))
}

impl Api {
    async fn shown_delivery(&self, delivery: Uuid) -> Result<Value, Problem> {
        let loaded = self.known::<Delivery>(&delivery.to_string()).await?;
        if let Some(loaded) = &loaded {
            if loaded.head.is_none() {
                return Err(unknown(delivery));
            }
            self.settle(loaded.position).await;
        }
        let (row, attempts) = self
            .read(move |models| {
                let alerts = models.alerts();
                Ok((alerts.delivery(delivery)?, alerts.attempts(delivery)?))
            })
            .await?;
        let row = known::row(row, loaded.is_some(), &format!("delivery {delivery}"))?;
        let mut shown = shape(&row);
        shown["attempt_list"] = attempts.iter().map(shown_attempt).collect();
        Ok(shown)
    }
}
