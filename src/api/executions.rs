//! Executions: creating them, asking for what is to be done with them, and looking at them.
//!
//! Whether one exists and what it is in is asked of the log; how it looks, of the read models.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use beampipe_domain::admission::has_room;
use beampipe_domain::execution::Execution;
use beampipe_domain::job::Kind;
use beampipe_projections::executions as rows;
use beampipe_projections::{Models, ReadModelError, Window};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::extract::{Id, Params};
use super::known;
use super::problem::Problem;
use super::route::{Access, Route};
use super::shape::execution::{self as shape, Beside};
use super::sources::next_link;

/// Execute, retry, cancel, abandon.
mod act;
/// Bytes and their list.
mod artifacts;
/// Prepare and create.
mod create;
/// Status, summary, ledger snapshot, observations.
mod look;

/// The status words of the API.
const STATUSES: &[&str] = &[
    "pending",
    "running",
    "awaiting_scheduler",
    "not_submitted",
    "completed",
    "failed",
    "retrying",
    "cancelled",
];

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/executions", Access::Viewer, list),
        Route::post("/executions", Access::Operator, create::create),
        Route::post("/executions/prepare", Access::Operator, create::prepare),
        Route::get("/executions/{id}", Access::Viewer, get),
        Route::patch("/executions/{id}", Access::Operator, act::patch),
        Route::post("/executions/{id}/execute", Access::Operator, act::execute),
        Route::post("/executions/{id}/retry", Access::Operator, act::retry),
        Route::post("/executions/{id}/submission/abandon", Access::Admin, act::abandon),
        Route::get("/executions/{id}/status", Access::Viewer, look::status),
        Route::get("/executions/{id}/summary", Access::Viewer, look::summary),
        Route::get("/executions/{id}/ledger-snapshot", Access::Viewer, look::ledger_snapshot),
        Route::get("/executions/{id}/observations", Access::Viewer, look::observations),
        Route::get("/executions/{id}/artifacts", Access::Viewer, artifacts::list),
        Route::get("/executions/{id}/artifacts/{sha256}", Access::Viewer, artifacts::bytes),
    ]
}

fn unknown(execution: Uuid) -> Problem {
    Problem::new("execution-unknown", format!("there is no execution {execution}"))
}

/// What the read models have beside an execution's row.
/// How far a line for a profile is counted to say how long it is.
const MOST_COUNTED: u64 = 1000;

fn beside(models: &Models, row: &rows::Execution) -> Result<Beside, ReadModelError> {
    let mut beside = Beside { sessions: models.executions().sessions(row.id)?, ..Beside::default() };
    if !row.is_terminal() {
        let preparing = row.submission_state == "preparing";
        beside.job = match row.job_id.filter(|_| preparing) {
            Some(job) => {
                beside.no_room = no_room(models, row)?;
                models.jobs().get(job)?
            }
            None => models.jobs().unfinished_for_execution(row.id, Kind::DimPoll)?,
        };
    }
    Ok(beside)
}

/// Why the profile of an execution has no room for it, if so.
fn no_room(models: &Models, row: &rows::Execution) -> Result<Option<String>, ReadModelError> {
    let Some(profile) = models.projects().profile(row.profile_id)? else { return Ok(None) };
    if let Some(reason) = profile.paused_reason.filter(|_| !profile.removed) {
        let name = profile.spec.name;
        return Ok(Some(format!("deployment profile {name} to be resumed, which is paused: {reason}")));
    }
    let Some(most) = profile.spec.max_concurrent_executions.filter(|_| !profile.removed) else {
        return Ok(None);
    };
    let executions = models.executions();
    let Some(place) = executions.place_in_line(row.id)?.filter(|place| place.do_submit) else {
        return Ok(None);
    };
    let ahead = executions.ahead_in_line(row.profile_id, place.executing_position, MOST_COUNTED)?;
    Ok((!has_room(Some(most), ahead)).then(|| {
        let profile = profile.spec.name;
        let ahead = if ahead < MOST_COUNTED { ahead.to_string() } else { format!("at least {ahead}") };
        format!("room on deployment profile {profile}: at most {most} at once, and {ahead} asked for before it have not ended")
    }))
}

impl Api {
    /// Adds what only this process knows, and what the project says.
    async fn complete(&self, row: &rows::Execution, mut beside: Beside) -> Result<Beside, Problem> {
        if !row.is_terminal() {
            beside.poll = self.readiness.poll(row.id);
            beside.capabilities = self.readiness.capabilities();
        }
        if let Some(config) = self.project_config(row.project_config_id).await? {
            let wish = &config.output_verification;
            beside.verification = (wish.required, wish.inventory_schema.clone());
        }
        Ok(beside)
    }

    /// Executions in a list.
    pub async fn shown_executions(&self, rows: Vec<rows::Execution>) -> Result<Vec<Value>, Problem> {
        let with = self
            .read(move |models| {
                rows.into_iter()
                    .map(|row| Ok((beside(models, &row)?, row)))
                    .collect::<Result<Vec<_>, ReadModelError>>()
            })
            .await?;
        let mut shown = Vec::with_capacity(with.len());
        for (beside, row) in with {
            let beside = self.complete(&row, beside).await?;
            shown.push(shape::whole(&row, &beside));
        }
        Ok(shown)
    }

    /// The row of an execution that the log knows, and what is beside it.
    async fn execution_row(&self, execution: Uuid) -> Result<(rows::Execution, Beside), Problem> {
        let loaded = self.known::<Execution>(&execution.to_string()).await?;
        if let Some(loaded) = &loaded {
            if loaded.head.is_none() {
                return Err(unknown(execution));
            }
            self.settle(loaded.position).await;
        }
        let found = self
            .read(move |models| match models.executions().get(execution)? {
                Some(row) => Ok(Some((beside(models, &row)?, row))),
                None => Ok(None),
            })
            .await?;
        let (beside, row) = known::row(found, loaded.is_some(), &format!("execution {execution}"))?;
        let beside = self.complete(&row, beside).await?;
        Ok((row, beside))
    }

    /// The execution as `GET` shows it, with its manifest.
    async fn shown_execution(&self, execution: Uuid) -> Result<Value, Problem> {
        let (row, mut beside) = self.execution_row(execution).await?;
        beside.manifest = self.manifest(&row).await?;
        Ok(shape::whole(&row, &beside))
    }

    /// The manifest of the present attempt; `None` when there is none yet, or it is too large to be shown inside
    /// something else (it stays an artifact).
    async fn manifest(&self, row: &rows::Execution) -> Result<Option<Value>, Problem> {
        const LARGEST: usize = 1024 * 1024;
        let Some(sha256) = &row.manifest_sha256 else { return Ok(None) };
        match self.artifacts.get(sha256).await {
            Ok(bytes) if bytes.len() <= LARGEST => Ok(serde_json::from_slice(&bytes).ok()),
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(execution = %row.id, %error, "a manifest cannot be shown");
                Ok(None)
            }
        }
    }
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Value>), Problem> {
    let module = params.text("project_module");
    let status = params.word("status", STATUSES);
    let per_page = params.number("items_per_page", 1..=500);
    let limit = params.number("limit", 1..=500);
    let per_page = per_page.or(limit).unwrap_or(50);
    let page = params.number("page", 1..=10_000_000).unwrap_or(1);
    let offset = params.number("offset", 0..=1_000_000_000);
    let cursor = params.number("cursor", 0..=u64::MAX);
    params.finish()?;
    let window = match cursor {
        Some(before) => Window::before(before, per_page),
        None => Window::at(offset.unwrap_or((page - 1) * per_page), per_page),
    };
    let (rows, total) = api
        .read(move |models| models.executions().list(module.as_deref(), status.as_deref(), window))
        .await?;
    let next = rows.last().filter(|_| rows.len() as u64 == per_page).map(|row| row.created_position);
    let headers = next.map(|next| next_link(&uri, next)).unwrap_or_default();
    let items = api.shown_executions(rows).await?;
    Ok((
        headers,
        Json(json!({
            "items": items,
            "total": total,
            "page": page,
            "items_per_page": per_page,
            "next_cursor": next.map(|next| next.to_string()),
        })),
    ))
}

async fn get(State(api): State<Api>, Id(execution): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    Ok(Json(api.shown_execution(execution).await?))
}
