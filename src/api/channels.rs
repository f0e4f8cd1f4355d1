//! Notification channels. Secrets are write-only: a plain text is sealed, a reference is kept as it is, and answers have
//! `[REDACTED]` in the place of what was sealed. See [`draft`] for what may be sent.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe_domain::channel::{Channel, Command, Secret, Spec};
use beampipe_projections::alerts as rows;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Id, Params};
use super::known;
use super::matching::{Seen, tagged};
use super::problem::Problem;
use super::route::{Access, Route};
use super::rules::MOST_MERGES;
use super::sources::{goes_on, next_link, window};
use crate::sealing::SealError;

/// What may be sent.
mod draft;
/// What would be sent.
mod preview;
/// What is shown.
mod shown;

use shown::shape;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/notification-channels", Access::Viewer, list),
        Route::post("/notification-channels", Access::Admin, create),
        Route::post("/notification-channels/preview", Access::Admin, preview::preview),
        Route::get("/notification-channels/{id}", Access::Viewer, get),
        Route::patch("/notification-channels/{id}", Access::Admin, update),
        Route::delete("/notification-channels/{id}", Access::Admin, remove),
        Route::post("/notification-channels/{id}/test", Access::Admin, test),
    ]
}

fn unknown(channel: Uuid) -> Problem {
    Problem::new("channel-unknown", format!("there is no notification channel {channel}"))
}

impl From<SealError> for Problem {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Store(error) => {
                tracing::error!(%error, "a secret could not be sealed");
                Self::new("artifacts-unavailable", "a secret could not be sealed: the artifact store is away")
                    .retry_after(5)
            }
            other => Self::internal(other),
        }
    }
}

impl Api {
    async fn channel_row(&self, channel: Uuid) -> Result<rows::Channel, Problem> {
        let loaded = self.known::<Channel>(&channel.to_string()).await?;
        if let Some(loaded) = &loaded {
            if !matches!(loaded.state, Channel::Active(_)) {
                return Err(unknown(channel));
            }
            self.settle(loaded.position).await;
        }
        let row = self.read(move |models| models.alerts().channel(channel)).await?;
        let row = known::row(row, loaded.is_some(), &format!("notification channel {channel}"))?;
        if row.removed { Err(unknown(channel)) } else { Ok(row) }
    }

    async fn shown_channel(&self, channel: Uuid) -> Result<(HeaderMap, Json<Value>), Problem> {
        let row = self.channel_row(channel).await?;
        Ok((tagged(row.channel_revision), Json(shape(&row))))
    }

    /// Seals what was sent as plain text, and puts it where it belongs.
    async fn sealed(&self, channel: Uuid, understood: draft::Understood) -> Result<Spec, Problem> {
        let draft::Understood { mut spec, plain } = understood;
        for (field, text) in plain {
            let owner = format!("channel-{channel}");
            let sha256 = self.sender.sealing.seal(&self.artifacts, &owner, &field, &text).await?;
            spec.config.put_secret(&field, Secret::Sealed(sha256));
        }
        Ok(spec)
    }
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let (window, limit) = window(&mut params, 1000, 1000);
    params.finish()?;
    let rows = api.read(move |models| models.alerts().channels(window)).await?;
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    Ok((headers, Json(rows.iter().map(shape).collect())))
}

async fn get(
    State(api): State<Api>,
    Id(channel): Id,
    params: Params,
) -> Result<(HeaderMap, Json<Value>), Problem> {
    params.finish()?;
    api.shown_channel(channel).await
}

/// A channel as it is sent.
#[derive(Deserialize)]
#[serde(transparent)]
struct Draft(Map<String, Value>);

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Body(Draft(draft)): Body<Draft>,
) -> Result<(StatusCode, HeaderMap, Json<Value>), Problem> {
    let understood = draft::read(draft, None).map_err(|errors| Problem::fields("invalid-channel", errors))?;
    let channel = caller.creates("/notification-channels", &api);
    let spec = api.sealed(channel, understood).await?;
    let create = Command::Create { spec };
    let done = api.handle.handle::<Channel>(&channel.to_string(), &caller.context(), create).await?;
    api.settle(done.position).await;
    // Under an idempotency key it may have been created before this process started.
    let status = if done.events.is_empty() { StatusCode::OK } else { StatusCode::CREATED };
    let (headers, body) = api.shown_channel(channel).await?;
    Ok((status, headers, body))
}

async fn update(
    State(api): State<Api>,
    caller: Caller,
    Id(channel): Id,
    seen: Seen,
    Body(Draft(changes)): Body<Draft>,
) -> Result<(HeaderMap, Json<Value>), Problem> {
    // The draft is merged with a revision, so it changes that one; who named none has it merged again with the next.
    for _ in 0..MOST_MERGES {
        let Channel::Active(facts) = api.handle.load::<Channel>(&channel.to_string()).await?.state else {
            return Err(unknown(channel));
        };
        let understood = draft::read(changes.clone(), Some(&facts.spec))
            .map_err(|errors| Problem::fields("invalid-channel", errors))?;
        seen.check(facts.revision)?;
        let spec = api.sealed(channel, understood).await?;
        let update = Command::Update { spec, expected: Some(facts.revision) };
        match api.handle.handle::<Channel>(&channel.to_string(), &caller.context(), update).await {
            Err(error) if seen.0.is_none() && error.rejection() == Some("outdated") => {}
            done => {
                api.settle(done?.position).await;
                return api.shown_channel(channel).await;
            }
        }
    }
    Err(Problem::new("overloaded", "others change the channel again and again").retry_after(1))
}

async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Id(channel): Id,
    seen: Seen,
) -> Result<StatusCode, Problem> {
    let row = api.channel_row(channel).await?;
    api.settle(api.handle.log().head().position).await;
    let rules = api.read(move |models| models.alerts().rules_of_channel(channel)).await?;
    if !rules.is_empty() {
        let named: Vec<_> = rules.iter().take(5).map(|rule| rule.name.as_str()).collect();
        let detail =
            format!("{} rules tell channel {:?}, such as {}", rules.len(), row.name, named.join(", "));
        return Err(Problem::new("channel-in-use", detail));
    }
    let remove = Command::Remove { expected: seen.0 };
    let done = api.handle.handle::<Channel>(&channel.to_string(), &caller.context(), remove).await?;
    api.settle(done.position).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a message now and answers with what happened, whether or not the channel is enabled.
async fn test(State(api): State<Api>, caller: Caller, Id(channel): Id) -> Result<Json<Value>, Problem> {
    let row = api.channel_row(channel).await?;
    let (delivery, tested) = api.sender.test(channel, &row.spec, &caller.context()).await?;
    api.settle(api.handle.log().head().position).await;
    let attempts = api.read(move |models| models.alerts().attempts(delivery)).await?;
    let last = attempts.last();
    Ok(Json(json!({
        "delivery_id": delivery,
        "status": if tested.taken { "sent" } else { "failed" },
        "attempt_id": last.map(|attempt| attempt.attempt_id),
        "code": tested.code,
        "latency_ms": tested.latency_ms,
        "error": tested.error,
        "answer": last.and_then(|attempt| attempt.answer.clone()),
    })))
}
