//! Silences: for some time nobody is told of alerts with certain labels. A silence is not changed; it is ended, and another one
//! is made.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe_domain::silence::{Command, Created, Matcher, Op, Silence};
use beampipe_projections::alerts as rows;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Id, Params};
use super::known;
use super::problem::Problem;
use super::route::{Access, Route};
use super::sources::{goes_on, next_link, window};

/// So far ahead a silence may begin, in days.
const FARTHEST_DAYS: i64 = 366;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/silences", Access::Viewer, list),
        Route::post("/silences", Access::Operator, create),
        Route::get("/silences/{id}", Access::Viewer, get),
        Route::delete("/silences/{id}", Access::Operator, expire),
    ]
}

/// `pending` before its time, `active` in it, `expired` after it.
fn state(row: &rows::Silence, now: DateTime<Utc>) -> &'static str {
    match row {
        _ if row.expired_at.is_some() || row.ends_at <= now => "expired",
        _ if row.starts_at > now => "pending",
        _ => "active",
    }
}

fn shape(api: &Api, row: &rows::Silence, now: DateTime<Utc>) -> Value {
    json!({
        "uuid": row.id,
        "matchers": row.matchers,
        "comment": row.comment,
        "author": api.names.resolve(&api.models, &row.created_by),
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "expired_at": row.expired_at,
        "state": state(row, now),
        "created_at": row.created_at,
    })
}

fn unknown(silence: Uuid) -> Problem {
    Problem::new("silence-unknown", format!("there is no silence {silence}"))
}

impl Api {
    async fn shown_silence(&self, silence: Uuid) -> Result<Value, Problem> {
        let loaded = self.known::<Silence>(&silence.to_string()).await?;
        if let Some(loaded) = &loaded {
            if loaded.head.is_none() {
                return Err(unknown(silence));
            }
            self.settle(loaded.position).await;
        }
        let row = self.read(move |models| models.alerts().silence(silence)).await?;
        let row = known::row(row, loaded.is_some(), &format!("silence {silence}"))?;
        Ok(shape(self, &row, self.clock().now()))
    }

    /// Makes a silence; the same request again answers the first one, with its times.
    pub async fn create_silence(
        &self,
        caller: &Caller,
        route: &'static str,
        set: Created,
    ) -> Result<(StatusCode, Json<Value>), Problem> {
        if set.comment.chars().count() > 2000 {
            return Err(Problem::field("invalid-body", "comment", "is too long", "at most 2000 characters"));
        }
        let silence = caller.creates(route, self);
        if caller.key.is_some()
            && let Silence::Set(_) | Silence::Expired(_) =
                self.handle.load::<Silence>(&silence.to_string()).await?.state
        {
            return Ok((StatusCode::OK, Json(self.shown_silence(silence).await?)));
        }
        let create = Command::Create(set);
        let done = self.handle.handle::<Silence>(&silence.to_string(), &caller.context(), create).await?;
        self.settle(done.position).await;
        Ok((StatusCode::CREATED, Json(self.shown_silence(silence).await?)))
    }
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let include_expired = params.flag("include_expired").unwrap_or(false);
    let (window, limit) = window(&mut params, 100, 1000);
    params.finish()?;
    let now = api.clock().now();
    let still_at = (!include_expired).then_some(now);
    let rows = api.read(move |models| models.alerts().silences(still_at, window)).await?;
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    Ok((headers, Json(rows.iter().map(|row| shape(&api, row, now)).collect())))
}

async fn get(State(api): State<Api>, Id(silence): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    Ok(Json(api.shown_silence(silence).await?))
}

/// A matcher, with `op`, or with the two flags that Alertmanager has for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SentMatcher {
    name: String,
    value: String,
    op: Option<String>,
    #[serde(rename = "isRegex")]
    is_regex: Option<bool>,
    #[serde(rename = "isEqual")]
    is_equal: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    matchers: Vec<SentMatcher>,
    comment: String,
    starts_at: Option<DateTime<Utc>>,
    ends_at: Option<DateTime<Utc>>,
    /// Instead of `ends_at`.
    duration_minutes: Option<u32>,
}

fn matcher(index: usize, sent: SentMatcher) -> Result<Matcher, Problem> {
    let SentMatcher { name, value, op, is_regex, is_equal } = sent;
    let at = |field: &str| format!("matchers[{index}].{field}");
    if name.len() > 200 || value.len() > 1000 {
        return Err(Problem::field("invalid-body", &at("value"), "is too long", "at most 1000 characters"));
    }
    let op = match (op.as_deref(), is_equal.unwrap_or(true), is_regex.unwrap_or(false)) {
        (Some(word), ..) => {
            let words: Vec<_> = Op::ALL.iter().map(|op| op.as_str()).collect();
            let hint = format!("one of {}", words.join(" "));
            Op::parse(word)
                .ok_or_else(|| Problem::field("invalid-body", &at("op"), "cannot be used", hint))?
        }
        (None, true, false) => Op::Is,
        (None, false, false) => Op::IsNot,
        (None, true, true) => Op::Matches,
        (None, false, true) => Op::MatchesNot,
    };
    Ok(Matcher { name, op, value })
}

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Body(order): Body<Order>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let matchers = order.matchers.into_iter().enumerate();
    let matchers = matchers.map(|(index, sent)| matcher(index, sent)).collect::<Result<Vec<_>, _>>()?;
    let starts_at = order.starts_at.unwrap_or_else(|| api.clock().now());
    let ends_at = match (order.ends_at, order.duration_minutes) {
        (Some(ends_at), None) => ends_at,
        (None, Some(minutes)) => starts_at + TimeDelta::minutes(i64::from(minutes)),
        (sent, _) => {
            let what = if sent.is_some() { "and duration_minutes were both sent" } else { "is missing" };
            let hint = "one of ends_at and duration_minutes: when the silence ends";
            return Err(Problem::field("invalid-body", "ends_at", what, hint));
        }
    };
    if starts_at > api.clock().now() + TimeDelta::days(FARTHEST_DAYS) {
        let hint = format!("at most {FARTHEST_DAYS} days from now");
        return Err(Problem::field("invalid-body", "starts_at", "is too far away", hint));
    }
    if ends_at <= api.clock().now() {
        return Err(Problem::field("invalid-body", "ends_at", "is over", "a time to come"));
    }
    api.create_silence(&caller, "/silences", Created { matchers, comment: order.comment, starts_at, ends_at })
        .await
}

async fn expire(State(api): State<Api>, caller: Caller, Id(silence): Id) -> Result<StatusCode, Problem> {
    let expire = Command::Expire { at: api.clock().now() };
    let done = api.handle.handle::<Silence>(&silence.to_string(), &caller.context(), expire).await?;
    api.settle(done.position).await;
    Ok(StatusCode::NO_CONTENT)
}
