//! `GET /alerts/explain`: why somebody was told of an execution, or by a rule, or was not.

use axum::Json;
use axum::extract::State;
use beampipe_domain::execution::Execution;
use beampipe_domain::rule::Rule;
use beampipe_projections::alerts as rows;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::extract::Params;
use super::super::problem::Problem;
use super::Api;
use crate::alerts::explain::{self, About, Answer};
use crate::alerts::hear::HearError;

impl From<HearError> for Problem {
    fn from(error: HearError) -> Self {
        match error {
            HearError::Log(error) => error.into(),
            HearError::Unknown(error) => Self::internal(error),
        }
    }
}

/// What became of a message.
fn delivery(row: &rows::Delivery, attempts: &[rows::Attempt], channel: Option<&rows::Channel>) -> Value {
    json!({
        "uuid": row.id,
        "message": row.message,
        "channel_id": row.channel_id,
        "channel_name": channel.map(|channel| &channel.name),
        "status": row.status,
        "error": row.error,
        "next_attempt_at": row.next_attempt_at,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
        "attempts": attempts.iter().map(|one| json!({
            "attempt": one.attempt, "started_at": one.started_at, "latency_ms": one.latency_ms,
            "code": one.code, "error": one.error, "retry_at": one.retry_at,
        })).collect::<Vec<_>>(),
    })
}

impl Api {
    async fn deliveries_of(&self, causes: Vec<Uuid>) -> Result<Vec<Value>, Problem> {
        self.read(move |models| {
            let alerts = models.alerts();
            let mut found: Vec<rows::Delivery> = vec![];
            for cause in causes {
                for row in alerts.deliveries_of(cause)? {
                    if found.iter().all(|known| known.id != row.id) {
                        found.push(row);
                    }
                }
            }
            let shown = found.iter().map(|row| {
                Ok(delivery(row, &alerts.attempts(row.id)?, alerts.channel(row.channel_id)?.as_ref()))
            });
            shown.collect()
        })
        .await
    }

    /// An answer with what the log has of its alerts.
    async fn told(&self, answer: Answer, at: chrono::DateTime<chrono::Utc>) -> Result<Value, Problem> {
        let (mut verdict, mut why, mut alerts) = (answer.verdict, answer.why, vec![]);
        let once = answer.body["trigger_kind"] == "execution_terminal";
        for alert in &answer.alerts {
            let events = explain::events(&**self.handle.log(), alert, at).await?;
            let causes = events.iter().map(|(id, _)| *id).collect();
            let events: Vec<Value> = events.into_iter().map(|(_, event)| event).collect();
            let held = events.iter().rev().find_map(|event| event["held_back"].as_object());
            match (once && verdict != "no_channel", events.is_empty(), held) {
                (true, true, _) => {
                    (verdict, why) =
                        ("waiting", format!("{why}; it is judged at the next point of the grid"));
                }
                (true, false, Some(held)) => {
                    let by = held.get("by").and_then(Value::as_str).unwrap_or_default();
                    (verdict, why) = ("held_back", format!("{why}; {by} held it back"));
                }
                _ => {}
            }
            let deliveries = self.deliveries_of(causes).await?;
            alerts.push(json!({"id": alert, "events": events, "deliveries": deliveries}));
        }
        let mut body = answer.body;
        body["rule_id"] = json!(answer.rule);
        body["verdict"] = verdict.into();
        body["why"] = why.into();
        body["alerts"] = alerts.into();
        Ok(body)
    }
}

pub async fn explain(State(api): State<Api>, mut params: Params) -> Result<Json<Value>, Problem> {
    let (execution, rule) = (params.uuid("execution"), params.uuid("rule"));
    let at = params.time("at");
    let about = match (execution, rule) {
        (Some(id), None) => Some(About::Execution(id)),
        (None, Some(id)) => Some(About::Rule(id)),
        _ => {
            params.refuse("execution", "is needed, or rule, and not both", "execution=<uuid> or rule=<uuid>");
            None
        }
    };
    params.finish()?;
    let Some(about) = about else { return Err(Problem::new("bad-query", "nothing was asked")) };
    let (id, there) = match about {
        About::Execution(id) => (id, api.handle.load::<Execution>(&id.to_string()).await?.head.is_some()),
        About::Rule(id) => (id, api.handle.load::<Rule>(&id.to_string()).await?.head.is_some()),
    };
    if !there {
        let (slug, what) = match about {
            About::Execution(_) => ("execution-unknown", "execution"),
            About::Rule(_) => ("rule-unknown", "alert rule"),
        };
        return Err(Problem::new(slug, format!("there is no {what} {id}")));
    }
    let now = api.clock().now();
    let at = at.unwrap_or(now).min(now);
    api.settle(api.handle.log().head().position).await;
    let log = api.handle.log().clone();
    let runtime = tokio::runtime::Handle::current();
    // Folding a long log takes a processor for seconds; requests are answered meanwhile.
    let folded = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let (facts, ends) = explain::facts_at(&*log, about, at).await?;
            Ok::<_, HearError>(explain::answers(&facts, &ends, about, at))
        })
    });
    let answers = folded.await.map_err(Problem::internal)??;
    let mut rules = vec![];
    for answer in answers {
        rules.push(api.told(answer, at).await?);
    }
    let why = match (&about, rules.is_empty()) {
        (_, false) => None,
        (About::Execution(_), true) => Some("no rule that tells of executions was there at that time"),
        (About::Rule(_), true) => Some("the rule was not there at that time"),
    };
    Ok(Json(json!({
        "at": at,
        "execution_id": execution,
        "rule_id": rule,
        "why": why,
        "rules": rules,
    })))
}
