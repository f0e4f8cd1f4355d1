//! `POST /alert-rules/backtest`: what a rule would have said.

use axum::Json;
use axum::extract::State;
use beampipe_domain::rule::{Rule, Spec};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::super::extract::Body;
use super::super::problem::{FieldError, Problem};
use super::{Api, draft, unknown};
use crate::alerts::backtest::{self, Trial};

/// The longest time that is tried out, in days.
const LONGEST_DAYS: i64 = 92;
/// Each takes a processor while it runs.
static AT_ONCE: Semaphore = Semaphore::const_new(1);

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

pub async fn run(State(api): State<Api>, Body(asked): Body<Asked>) -> Result<Json<Value>, Problem> {
    let now = api.clock().now();
    let (from, to) = (asked.from, asked.to.unwrap_or(now).min(now));
    if from >= to || to - from > TimeDelta::days(LONGEST_DAYS) {
        let hint = format!("a time before `to` and at most {LONGEST_DAYS} days before it");
        return Err(Problem::field("invalid-body", "from", "cannot be used", hint));
    }
    let (rule, spec) = api.tried(asked).await?;
    let Ok(_place) = AT_ONCE.try_acquire() else {
        return Err(Problem::new("overloaded", "another backtest is running").retry_after(10));
    };
    let began = std::time::Instant::now();
    let (log, runtime) = (api.handle.log().clone(), tokio::runtime::Handle::current());
    let trial = Trial { rule, spec, from, to };
    let tried = tokio::task::spawn_blocking(move || runtime.block_on(backtest::run(&*log, &trial)));
    let report = tried.await.map_err(Problem::internal)??;
    Ok(Json(json!({
        "rule_id": rule,
        "from": from,
        "to": to,
        "events_read": report.events_read,
        "points": report.points,
        "took_ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "fired": report.fired,
        "resolved": report.resolved,
        "messages_total": report.messages_total,
        "messages": report.messages,
        "held_back_total": report.held_back_total,
        "held_back": report.held_back,
    })))
}
