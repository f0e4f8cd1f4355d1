//! `POST /alert-rules/backtest`: what a rule would have said. As NDJSON it says how far it is, and its last line is the answer.

use std::time::Duration;

use axum::Json;
use axum::body::Body as Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use beampipe_domain::rule::{Rule, Spec};
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::super::extract::Body;
use super::super::problem::{FieldError, Problem};
use super::{Api, draft, unknown};
use crate::alerts::backtest::{self, Report, Trial};

/// The longest time that is tried out, in days.
const LONGEST_DAYS: i64 = 92;
/// Each takes a processor while it runs.
static AT_ONCE: Semaphore = Semaphore::const_new(1);
const NDJSON: &str = "application/x-ndjson";
/// How often a line says how far it is.
const SAID_EVERY: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// A rule that is there.
    rule_id: Option<Uuid>,
    /// One that is not saved, or what is changed of the one that is there.
    rule: Option<Map<String, Value>>,
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
}

impl Api {
    async fn tried(&self, asked: Asked) -> Result<(Uuid, Spec), Problem> {
        let present = match asked.rule_id {
            None => None,
            Some(id) => match self.handle.load::<Rule>(&id.to_string()).await?.state {
                Rule::Active(facts) => Some((id, facts.spec)),
                Rule::Absent | Rule::Removed(_) => return Err(unknown(id)),
            },
        };
        match (asked.rule, present) {
            (None, Some(present)) => Ok(present),
            (Some(draft), present) => {
                let (spec, errors) = draft::read(draft, present.as_ref().map(|(_, spec)| spec));
                let id = present.map_or_else(|| self.clock().id(), |(id, _)| id);
                match spec {
                    Some(spec) if errors.is_empty() => Ok((id, spec)),
                    _ => {
                        let under = |error: FieldError| FieldError {
                            field: format!("rule.{}", error.field),
                            ..error
                        };
                        Err(Problem::fields("invalid-rule", errors.into_iter().map(under).collect()))
                    }
                }
            }
            (None, None) => {
                let hint = "rule_id of a rule that is there, rule as for POST /alert-rules, or both";
                Err(Problem::field("invalid-body", "rule_id", "is missing, and so is rule", hint))
            }
        }
    }
}

fn shape(asked: &(Uuid, DateTime<Utc>, DateTime<Utc>), report: Report, took: Duration) -> Value {
    let (rule, from, to) = asked;
    json!({
        "rule_id": rule,
        "from": from,
        "to": to,
        "events_read": report.events_read,
        "points": report.points,
        "took_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "fired": report.fired,
        "resolved": report.resolved,
        "messages_total": report.messages_total,
        "messages": report.messages,
        "held_back_total": report.held_back_total,
        "held_back": report.held_back,
    })
}

/// What `write` sends, a line each.
fn async_stream<F>(
    write: impl FnOnce(mpsc::Sender<Value>) -> F,
) -> impl futures::Stream<Item = Result<String, std::convert::Infallible>>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (lines, read) = mpsc::channel(16);
    tokio::spawn(write(lines));
    ReceiverStream::new(read).map(|line| Ok(format!("{line}\n")))
}

pub async fn run(
    State(api): State<Api>,
    headers: HeaderMap,
    Body(asked): Body<Asked>,
) -> Result<Response, Problem> {
    let now = api.clock().now();
    let (from, to) = (asked.from, asked.to.unwrap_or(now).min(now));
    if from >= to || to - from > TimeDelta::days(LONGEST_DAYS) {
        let hint = format!("a time before `to` and at most {LONGEST_DAYS} days before it");
        return Err(Problem::field("invalid-body", "from", "cannot be used", hint));
    }
    let (rule, spec) = api.tried(asked).await?;
    let asked = (rule, from, to);
    let Ok(place) = AT_ONCE.try_acquire() else {
        return Err(Problem::new("overloaded", "another backtest is running").retry_after(10));
    };
    let (log, runtime) = (api.handle.log().clone(), tokio::runtime::Handle::current());
    let head = log.head().position;
    let trial = Trial { rule, spec, from, to };
    let (tell, mut told) = tokio::sync::watch::channel(None);
    let mut tried = tokio::task::spawn_blocking(move || {
        let _place = place;
        let began = std::time::Instant::now();
        let report = runtime.block_on(backtest::run(&*log, &trial, |now| {
            tell.send_replace(Some(now));
        }));
        report.map(|report| (report, began.elapsed()))
    });
    let wanted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !wanted.contains(NDJSON) {
        let (report, took) = tried.await.map_err(Problem::internal)??;
        return Ok(Json(shape(&asked, report, took)).into_response());
    }
    // A long log takes longer than a request may: lines say how far it is, the last one has the answer.
    let lines = async_stream(move |lines| async move {
        loop {
            tokio::select! {
                ended = &mut tried => {
                    let line = match ended.map_err(Problem::internal) {
                        Ok(Ok((report, took))) => json!({"report": shape(&asked, report, took)}),
                        Ok(Err(error)) => json!({"problem": Problem::from(error).detail()}),
                        Err(problem) => json!({"problem": problem.detail()}),
                    };
                    let _ = lines.send(line).await;
                    return;
                }
                changed = told.changed() => {
                    let now = *told.borrow_and_update();
                    if let (Ok(()), Some(now)) = (changed, now) {
                        let line = json!({"progress": {"events_read": now.events_read, "at": now.at, "head": head}});
                        if lines.send(line).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(SAID_EVERY).await;
                    }
                }
            }
        }
    });
    Ok(([(CONTENT_TYPE, NDJSON)], Bytes::from_stream(lines)).into_response())
}
