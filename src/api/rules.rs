//! Alert rules, versioned: an answer's `ETag` is the version, `If-Match` names the one that is to be changed.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe_domain::project::Project;
use beampipe_domain::rule::{Command, Rule, Spec};
use beampipe_projections::alerts as rows;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Id, Params};
use super::known;
use super::matching::{Seen, tagged};
use super::problem::{FieldError, Problem};
use super::route::{Access, Route};
use super::sources::{goes_on, next_link, window};

mod backtest;
/// What may be sent.
mod draft;

/// How often a change is merged again with what others have made meanwhile.
pub const MOST_MERGES: usize = 50;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/alert-rules", Access::Viewer, list),
        Route::post("/alert-rules", Access::Admin, create),
        Route::post("/alert-rules/backtest", Access::Operator, backtest::run),
        Route::get("/alert-rules/{id}", Access::Viewer, get),
        Route::patch("/alert-rules/{id}", Access::Admin, update),
        Route::delete("/alert-rules/{id}", Access::Admin, remove),
    ]
}

fn shape(row: &rows::Rule, warnings: &[String]) -> Value {
    let spec = &row.spec;
    json!({
        "uuid": row.id,
        "name": spec.name,
        "project_module": spec.project_module,
        "severity": spec.severity,
        "trigger_kind": spec.trigger.kind(),
        "trigger_config": draft::trigger_config(&spec.trigger),
        "channel_ids": spec.channel_ids,
        "cooldown_minutes": spec.cooldown_minutes,
        "for_seconds": spec.for_seconds,
        "keep_firing_for_seconds": spec.keep_firing_for_seconds,
        "no_data": spec.no_data,
        "repeat_interval_seconds": spec.repeat_interval_seconds,
        "group_by": spec.group_by,
        "group_wait_seconds": spec.group_wait_seconds,
        "group_interval_seconds": spec.group_interval_seconds,
        "escalation": spec.escalation,
        "quiet_hours": draft::hours(spec.quiet_hours.as_ref()),
        "flapping": spec.flapping,
        "inhibits": spec.inhibits,
        "labels": spec.labels,
        "annotations": spec.annotations,
        "enabled": spec.enabled,
        "version": row.rule_version,
        "last_fired_at": row.last_fired_at,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "warnings": warnings,
    })
}

fn unknown(rule: Uuid) -> Problem {
    Problem::new("rule-unknown", format!("there is no alert rule {rule}"))
}

/// Why an enabled rule may tell nobody.
fn warnings(spec: &Spec, channels: &[rows::Channel]) -> Vec<String> {
    if !spec.enabled {
        return vec![];
    }
    if spec.channel_ids.is_empty() {
        return vec!["the rule names no channel: it fires and tells nobody".to_owned()];
    }
    let warn = |id: Uuid| {
        let Some(channel) = channels.iter().find(|channel| channel.id == id) else {
            return Some(format!("channel {id} is not there any more"));
        };
        match (channel.enabled, channel.last_test_status.as_deref()) {
            (false, _) => Some(format!("channel {:?} is not enabled", channel.name)),
            (true, None) => Some(format!("channel {:?} was never tested", channel.name)),
            (true, Some("failed")) => Some(format!("the last test of channel {:?} failed", channel.name)),
            (true, Some(_)) => None,
        }
    };
    named(spec).into_iter().filter_map(warn).collect()
}

/// Every channel that a rule names, each once.
fn named(spec: &Spec) -> Vec<Uuid> {
    let escalated = spec.escalation.iter().flat_map(|escalation| &escalation.channel_ids);
    let mut ids: Vec<Uuid> = spec.channel_ids.iter().chain(escalated).copied().collect();
    let mut known = std::collections::HashSet::new();
    ids.retain(|id| known.insert(*id));
    ids
}

impl Api {
    async fn rule_row(&self, rule: Uuid) -> Result<rows::Rule, Problem> {
        let loaded = self.known::<Rule>(&rule.to_string()).await?;
        if let Some(loaded) = &loaded {
            if !matches!(loaded.state, Rule::Active(_)) {
                return Err(unknown(rule));
            }
            self.settle(loaded.position).await;
        }
        let row = self.read(move |models| models.alerts().rule(rule)).await?;
        let row = known::row(row, loaded.is_some(), &format!("alert rule {rule}"))?;
        if row.removed { Err(unknown(rule)) } else { Ok(row) }
    }

    async fn shown_rule(&self, rule: Uuid) -> Result<(HeaderMap, Json<Value>), Problem> {
        let row = self.rule_row(rule).await?;
        let channels = self.channels_of(&named(&row.spec)).await?;
        Ok((tagged(row.rule_version), Json(shape(&row, &warnings(&row.spec, &channels)))))
    }

    /// The channels of these ids that were not removed.
    async fn channels_of(&self, ids: &[Uuid]) -> Result<Vec<rows::Channel>, Problem> {
        let ids = ids.to_vec();
        self.read(move |models| {
            let found = ids.iter().map(|id| models.alerts().channel(*id)).collect::<Result<Vec<_>, _>>()?;
            Ok(found.into_iter().flatten().filter(|channel| !channel.removed).collect())
        })
        .await
    }

    /// Whether what a rule names is there.
    async fn check_rule(&self, spec: &Spec, errors: &mut Vec<FieldError>) -> Result<(), Problem> {
        if let Some(module) = &spec.project_module
            && self.handle.load::<Project>(module).await?.state.active.is_none()
        {
            let error = FieldError::new("project_module", format!("project {module:?} has no configuration"));
            errors.push(error.hint("upload one with POST /project-configs, or \"\" for every project"));
        }
        // A channel of a moment ago counts.
        self.settle(self.handle.log().head().position).await;
        let escalated = spec.escalation.as_ref().map_or(&[][..], |escalation| &escalation.channel_ids);
        for (field, ids) in [("channel_ids", &spec.channel_ids[..]), ("escalation.channel_ids", escalated)] {
            let channels = self.channels_of(ids).await?;
            for (index, id) in ids.iter().enumerate() {
                if channels.iter().all(|channel| channel.id != *id) {
                    let error =
                        FieldError::new(format!("{field}[{index}]"), format!("there is no channel {id}"));
                    errors.push(error.hint("GET /notification-channels lists them"));
                }
            }
        }
        Ok(())
    }

    async fn understood(&self, draft: Map<String, Value>, present: Option<&Spec>) -> Result<Spec, Problem> {
        let (spec, mut errors) = draft::read(draft, present);
        if let Some(spec) = &spec {
            self.check_rule(spec, &mut errors).await?;
        }
        match spec {
            Some(spec) if errors.is_empty() => Ok(spec),
            _ => Err(Problem::fields("invalid-rule", errors)),
        }
    }
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let project = params.text("project_module");
    let (window, limit) = window(&mut params, 1000, 1000);
    params.finish()?;
    let (rows, channels) = api
        .read(move |models| {
            let alerts = models.alerts();
            let channels = alerts.channels(beampipe_projections::Window::first(10_000))?;
            Ok((alerts.rules(project.as_deref(), window)?, channels))
        })
        .await?;
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    Ok((headers, Json(rows.iter().map(|row| shape(row, &warnings(&row.spec, &channels))).collect())))
}

async fn get(
    State(api): State<Api>,
    Id(rule): Id,
    params: Params,
) -> Result<(HeaderMap, Json<Value>), Problem> {
    params.finish()?;
    api.shown_rule(rule).await
}

/// A rule as it is sent.
#[derive(Deserialize)]
#[serde(transparent)]
struct Draft(Map<String, Value>);

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Body(Draft(draft)): Body<Draft>,
) -> Result<(StatusCode, HeaderMap, Json<Value>), Problem> {
    let spec = api.understood(draft, None).await?;
    let rule = caller.creates("/alert-rules", &api);
    let done =
        api.handle.handle::<Rule>(&rule.to_string(), &caller.context(), Command::Create { spec }).await?;
    api.settle(done.position).await;
    let status = if done.events.is_empty() { StatusCode::OK } else { StatusCode::CREATED };
    let (headers, body) = api.shown_rule(rule).await?;
    Ok((status, headers, body))
}

async fn update(
    State(api): State<Api>,
    caller: Caller,
    Id(rule): Id,
    seen: Seen,
    Body(Draft(changes)): Body<Draft>,
) -> Result<(HeaderMap, Json<Value>), Problem> {
    // The draft is merged with a version, so it changes that one; who named none has it merged again with the next.
    for _ in 0..MOST_MERGES {
        let Rule::Active(facts) = api.handle.load::<Rule>(&rule.to_string()).await?.state else {
            return Err(unknown(rule));
        };
        seen.check(facts.version)?;
        let spec = api.understood(changes.clone(), Some(&facts.spec)).await?;
        let update = Command::Update { spec, expected: Some(facts.version) };
        match api.handle.handle::<Rule>(&rule.to_string(), &caller.context(), update).await {
            Err(error) if seen.0.is_none() && error.rejection() == Some("outdated") => {}
            done => {
                api.settle(done?.position).await;
                return api.shown_rule(rule).await;
            }
        }
    }
    Err(Problem::new("overloaded", "others change the rule again and again").retry_after(1))
}

async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Id(rule): Id,
    seen: Seen,
) -> Result<StatusCode, Problem> {
    let remove = Command::Remove { expected: seen.0 };
    let done = api.handle.handle::<Rule>(&rule.to_string(), &caller.context(), remove).await?;
    api.settle(done.position).await;
    Ok(StatusCode::NO_CONTENT)
}
