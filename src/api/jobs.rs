//! The queue: jobs as a list, asking for one, and bringing a dead letter back.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe_domain::id;
use beampipe_domain::job::{Command, Enqueued, Job, Kind};
use beampipe_domain::project::Project;
use beampipe_projections::jobs as rows;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Id, Params};
use super::known;
use super::problem::{FieldError, Problem};
use super::route::{Access, Route};
use super::sources::{goes_on, next_link, window};
use beampipe_domain::execution::Execution;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/jobs", Access::Viewer, list),
        Route::post("/jobs", Access::Admin, enqueue),
        Route::get("/jobs/{id}", Access::Viewer, get),
        Route::post("/jobs/{id}/requeue", Access::Admin, requeue),
    ]
}

fn shape(api: &Api, row: &rows::Job) -> Value {
    let lease = api.settings.worker_stale_after;
    // A lease lives while its worker's heart beats: it ends that long after the last beat that was heard.
    let locked_until = row.worker_id.as_deref().and_then(|worker| {
        let heard = api.readiness.heard(worker)?;
        chrono::Duration::from_std(lease).ok().map(|lease| heard.at + lease)
    });
    json!({
        "uuid": row.id,
        "kind": row.kind,
        "payload": row.payload,
        "status": row.status,
        "execution_id": row.execution_id,
        "project_module": row.project_module,
        "phase": row.payload.get("phase"),
        "attempts": row.attempts,
        "max_attempts": row.max_attempts,
        "next_run_at": row.next_run_at,
        "locked_until": locked_until,
        "worker_id": row.worker_id,
        "required_capability": row.required_capability,
        "idempotency_key": row.idempotency_key,
        "last_error": row.last_error,
        "result": row.result,
        "duration_ms": row.duration_ms,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "finished_at": row.finished_at,
    })
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    let kind = params.word("kind", &kinds);
    let status = params.word("status", &["queued", "running", "completed", "dead_lettered"]);
    let (window, limit) = window(&mut params, 100, 1000);
    params.finish()?;
    let only_dead = status.as_deref() == Some("dead_lettered");
    let rows = api
        .read(move |models| if only_dead { models.jobs().dead(limit) } else { models.jobs().list(window) })
        .await?;
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) && !only_dead => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    // Narrowed within the page: the link goes on, so a page may have fewer than were asked for.
    let wanted = |row: &&rows::Job| {
        kind.as_ref().is_none_or(|kind| *kind == row.kind)
            && status.as_ref().is_none_or(|status| *status == row.status)
    };
    Ok((headers, Json(rows.iter().filter(wanted).map(|row| shape(&api, row)).collect())))
}

impl Api {
    async fn shown_job(&self, job: Uuid) -> Result<Value, Problem> {
        let loaded = self.known::<Job>(&job.to_string()).await?;
        if let Some(loaded) = &loaded {
            if loaded.head.is_none() {
                return Err(Problem::new("job-unknown", format!("there is no job {job}")));
            }
            self.settle(loaded.position).await;
        }
        let row = self.read(move |models| models.jobs().get(job)).await?;
        Ok(shape(self, &known::row(row, loaded.is_some(), &format!("job {job}"))?))
    }
}

async fn get(State(api): State<Api>, Id(job): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    Ok(Json(api.shown_job(job).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    kind: String,
    payload: Option<Value>,
    execution_id: Option<Uuid>,
    idempotency_key: Option<String>,
}

/// What a worker must be able to do for a kind.
fn capability(kind: Kind) -> Option<String> {
    match kind {
        Kind::DiscoverBatch => Some("tap".to_owned()),
        // Of their execution.
        Kind::Execute | Kind::DimPoll => None,
        Kind::SchedulerTick
        | Kind::ExecutionSchedulerTick
        | Kind::DimPollTick
        | Kind::SlurmPollTick
        | Kind::AlertEvaluatorTick => None,
    }
}

async fn enqueue(
    State(api): State<Api>,
    caller: Caller,
    Body(order): Body<Order>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let mut errors = vec![];
    let kind = Kind::parse(&order.kind);
    if kind.is_none() {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        let shown: String = order.kind.chars().take(60).collect();
        errors
            .push(FieldError::new("kind", format!("{shown:?} is not a kind of job")).hint(known.join(", ")));
    }
    let payload = order.payload.unwrap_or_else(|| json!({}));
    if !payload.is_object() || payload.to_string().len() > 64 * 1024 {
        errors.push(FieldError::new("payload", "cannot be used").hint("an object of at most 64 KiB"));
    }
    if order.idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 200) {
        errors.push(FieldError::new("idempotency_key", "has the wrong length").hint("1 to 200 characters"));
    }
    let project_module = match payload.get("project_module") {
        None | Some(Value::Null) => None,
        Some(Value::String(module)) => {
            if api.handle.load::<Project>(module).await?.state.active.is_none() {
                errors.push(
                    FieldError::new(
                        "payload.project_module",
                        format!("project {module:?} has no configuration"),
                    )
                    .hint("GET /projects lists those that have"),
                );
            }
            Some(module.clone())
        }
        Some(_) => {
            errors.push(FieldError::new("payload.project_module", "is no text").hint("a project's name"));
            None
        }
    };
    if matches!(kind, Some(Kind::Execute | Kind::DimPoll)) && order.execution_id.is_none() {
        errors.push(FieldError::new("execution_id", "is missing").hint("this kind works on an execution"));
    }
    match kind {
        Some(Kind::DiscoverBatch) => {
            if let Err(error) = serde_json::from_value::<crate::work::jobs::discover::Order>(payload.clone())
            {
                errors.push(FieldError::new("payload", error.to_string()).hint(
                    "{project_module, source_ids: [uuid, …]}; POST /sources/discover takes identifiers",
                ));
            }
        }
        Some(kind @ Kind::AlertEvaluatorTick) => {
            errors.push(FieldError::new("kind", format!("this release does no {kind} jobs")));
        }
        Some(kind @ Kind::SlurmPollTick) => {
            let hint = "a submission asks for the watch of its login node by itself";
            errors.push(FieldError::new("kind", format!("{kind} jobs are not asked for")).hint(hint));
        }
        _ => {}
    }
    let (mut project_of_execution, mut capability_of_execution) = (None, None);
    if let Some(execution) = order.execution_id {
        let loaded = api.handle.load::<Execution>(&execution.to_string()).await?;
        match loaded.state.facts() {
            Some(facts) => {
                project_of_execution = Some(facts.project_module.clone());
                capability_of_execution = Some(facts.capability.clone());
            }
            None => errors.push(
                FieldError::new("execution_id", format!("there is no execution {execution}"))
                    .hint("GET /executions lists them"),
            ),
        }
    }
    let (Some(kind), true) = (kind, errors.is_empty()) else {
        return Err(Problem::fields("invalid-body", errors));
    };
    if let Some(key) = &order.idempotency_key {
        // The key holds while its job is unfinished; what this process has not seen yet is waited for.
        api.settle(api.handle.log().head().position).await;
        let key = key.clone();
        if let Some(row) = api.read(move |models| models.jobs().unfinished_by_key(&key)).await? {
            return Ok((StatusCode::ACCEPTED, Json(shape(&api, &row))));
        }
    }
    let now = api.clock().now();
    let job = match (&order.idempotency_key, &caller.key) {
        // Two at the same moment make one: both stand in the same second.
        (Some(key), None) => id::caused_job(kind.as_str(), format!("{key}@{}", now.timestamp()).as_bytes()),
        _ => caller.creates("/jobs", &api),
    };
    let enqueue = Command::Enqueue(Enqueued {
        kind,
        payload,
        project_module: project_module.or(project_of_execution),
        execution_id: order.execution_id,
        required_capability: capability(kind).or(capability_of_execution),
        idempotency_key: order.idempotency_key,
        max_attempts: api.settings.job_max_attempts,
        next_run_at: now,
    });
    let done = api.handle.handle::<Job>(&job.to_string(), &caller.context(), enqueue).await?;
    api.settle(done.position).await;
    Ok((StatusCode::ACCEPTED, Json(api.shown_job(job).await?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Requeue {
    reason: Option<String>,
}

async fn requeue(
    State(api): State<Api>,
    caller: Caller,
    Id(job): Id,
    Body(order): Body<Requeue>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let reason = order.reason.unwrap_or_else(|| "no reason was given".to_owned());
    if reason.chars().count() > 2000 {
        let error = FieldError::new("reason", "is too long").hint("at most 2000 characters");
        return Err(Problem::fields("invalid-body", vec![error]));
    }
    let requeue = Command::Requeue { next_run_at: api.clock().now(), reason };
    let done = api.handle.handle::<Job>(&job.to_string(), &caller.context(), requeue).await?;
    api.settle(done.position).await;
    Ok((StatusCode::ACCEPTED, Json(api.shown_job(job).await?)))
}
