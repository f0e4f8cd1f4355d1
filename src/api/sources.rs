//! Sources: registering them one by one or in bulk, changing and removing them, asking for their discovery, and what is
//! known of them.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use beampipe_domain::source::{Command, Event, Source};
use beampipe_domain::{id, project};
use beampipe_projections::Window;
use beampipe_projections::sources as rows;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Id, Params, nullable};
use super::known;
use super::problem::{FieldError, Problem};
use super::route::{Access, Route};
use super::shape;
use super::shape::why::Survey;
use crate::project::metadata::{Prepared, sbid_of};

/// Many at once.
mod bulk;
/// Asking for discovery.
mod discover;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/sources", Access::Viewer, list),
        Route::post("/sources", Access::Operator, register),
        Route::post("/sources/bulk", Access::Operator, bulk::register),
        Route::post("/sources/discover", Access::Operator, discover::request),
        Route::get("/sources/{id}", Access::Viewer, get),
        Route::patch("/sources/{id}", Access::Operator, update),
        Route::delete("/sources/{id}", Access::Operator, remove),
        Route::get("/sources/{id}/status", Access::Viewer, status),
        Route::get("/sources/{id}/metadata", Access::Viewer, metadata),
        Route::get("/sources/{id}/executions", Access::Viewer, executions),
    ]
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registration {
    project_module: String,
    source_identifier: String,
    enabled: Option<bool>,
}

impl Registration {
    fn id(&self) -> Uuid {
        id::source(&self.project_module, &self.source_identifier)
    }

    /// What is wrong with it by itself; `at` is where it stands in the body.
    fn errors(&self, at: &str) -> Vec<FieldError> {
        let mut errors = vec![];
        let identifier = &self.source_identifier;
        if identifier.trim() != identifier || identifier.is_empty() || identifier.chars().count() > 200 {
            errors.push(
                FieldError::new(format!("{at}source_identifier"), "cannot be used")
                    .hint("1 to 200 characters without spaces around them"),
            );
        } else if identifier.chars().any(char::is_control) {
            errors.push(
                FieldError::new(format!("{at}source_identifier"), "has control characters")
                    .hint("plain text"),
            );
        }
        errors
    }
}

/// What is wrong with a project that was named.
async fn unknown_project(api: &Api, module: &str, field: &str) -> Result<Option<FieldError>, Problem> {
    let known = module.len() <= 200 && module != project::ALL && {
        api.handle.load::<project::Project>(module).await?.state.active.is_some()
    };
    let shown: String = module.chars().take(60).collect();
    Ok((!known).then(|| {
        FieldError::new(field, format!("project {shown:?} has no configuration"))
            .hint("upload one with POST /project-configs; GET /projects lists those that are known")
    }))
}

/// Registers one source; `true` when it is new (or registered again).
async fn carry_out(api: &Api, caller: &Caller, order: &Registration) -> Result<(bool, u64), Problem> {
    let done = api
        .handle
        .decide_with::<Source>(&order.id().to_string(), &caller.context(), |loaded| {
            let present = match &loaded.state {
                Source::Registered(facts) => facts.enabled,
                Source::Absent | Source::Removed(_) => true,
            };
            Ok(Command::Register {
                project_module: order.project_module.clone(),
                source_identifier: order.source_identifier.clone(),
                // A known source keeps its setting unless the request has one.
                enabled: order.enabled.unwrap_or(present),
            })
        })
        .await?;
    Ok((matches!(done.events.first(), Some(Event::Registered(_))), done.position))
}

async fn register(
    State(api): State<Api>,
    caller: Caller,
    Body(order): Body<Registration>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let mut errors = order.errors("");
    errors.extend(unknown_project(&api, &order.project_module, "project_module").await?);
    if !errors.is_empty() {
        return Err(Problem::fields("invalid-body", errors));
    }
    let (new, position) = carry_out(&api, &caller, &order).await?;
    api.settle(position).await;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(api.shown_source(order.id()).await?)))
}

impl Api {
    /// What the project says about its sources, as far as it is known.
    pub async fn survey(&self, module: &str) -> Result<Survey, Problem> {
        let name = module.to_owned();
        let (row, everything) = self
            .read(move |models| Ok((models.projects().get(&name)?, models.projects().all_paused()?)))
            .await?;
        let config = match row.as_ref().and_then(|row| row.active_version) {
            Some(version) => self.project_config(id::config(module, version)).await?,
            None => None,
        };
        let automation = config.as_ref().map(|config| &config.automation);
        Ok(Survey {
            paused: row.and_then(|row| row.paused_reason).or(everything),
            stale_after_hours: automation.map_or(24.0, |a| a.discovery.stale_after_hours),
            discovers: automation.is_some_and(|a| a.discovery.enabled),
            executes: automation.is_some_and(|a| a.execution.enabled),
        })
    }

    /// The source as it is shown. The read model was waited for; if it is not there yet, the log says what is known.
    async fn shown_source(&self, source: Uuid) -> Result<Value, Problem> {
        if let Some(row) = self.read(move |models| models.sources().get(source)).await? {
            let survey = self.survey(&row.project_module).await?;
            return Ok(shape::source::whole(&row, &survey));
        }
        let loaded = self.handle.load::<Source>(&source.to_string()).await?;
        let facts = loaded.state.facts().ok_or_else(|| unknown(source))?;
        Ok(json!({
            "uuid": source,
            "project_module": facts.project_module,
            "source_identifier": facts.source_identifier,
            "enabled": facts.enabled,
            "created_at": loaded.created_at,
            "stale_after_hours": facts.stale_after_hours,
            "discovery_signature": facts.signature,
            "workflow_run_pending": facts.pending,
        }))
    }

    /// The row of a source that the log knows. One that was removed is shown only if `removed` is.
    async fn source_row(&self, source: Uuid, removed: bool) -> Result<rows::Source, Problem> {
        let loaded = self.known::<Source>(&source.to_string()).await?;
        if let Some(loaded) = &loaded {
            if loaded.state == Source::Absent {
                return Err(unknown(source));
            }
            self.settle(loaded.position).await;
        }
        let row = self.read(move |models| models.sources().get(source)).await?;
        let row = known::row(row, loaded.is_some(), &format!("source {source}"))?;
        let gone = match &loaded {
            Some(loaded) => matches!(loaded.state, Source::Removed(_)),
            None => row.phase == "removed",
        };
        if gone && !removed {
            let detail = format!("source {source} was removed; its events stay readable");
            return Err(Problem::new("source-not-registered", detail));
        }
        Ok(row)
    }
}

fn unknown(source: Uuid) -> Problem {
    Problem::new("source-unknown", format!("there is no source {source}"))
}

/// The part of a list that a request asks for: by cursor, or by offset as older clients do.
pub(super) fn window(params: &mut Params, default: u64, most: u64) -> (Window, u64) {
    let (limit, offset) = params.window(default, most);
    let cursor = params.number("cursor", 0..=u64::MAX);
    let window = match cursor {
        Some(before) => Window::before(before, limit),
        None => Window::at(offset, limit),
    };
    (window, limit)
}

/// `Link: rel=next` of a list whose last row was created at `last`.
pub(super) fn next_link(uri: &Uri, last: u64) -> HeaderMap {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if name != "cursor" && name != "offset" && name != "page" {
            query.append_pair(&name, &value);
        }
    }
    query.append_pair("cursor", &last.to_string());
    let mut headers = HeaderMap::new();
    if let Ok(link) = HeaderValue::from_str(&format!("<{}?{}>; rel=\"next\"", uri.path(), query.finish())) {
        headers.insert(header::LINK, link);
    }
    headers
}

/// Whether a list of `found` rows, asked for with `limit`, may go on.
pub(super) fn goes_on(found: usize, limit: u64) -> bool {
    found as u64 == limit
}

async fn list(
    State(api): State<Api>,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let module = params.text("project_module");
    let (window, limit) = window(&mut params, 100, 1000);
    params.finish()?;
    let rows = api.read(move |models| models.sources().list(module.as_deref(), window)).await?;
    let mut surveys: std::collections::HashMap<String, Survey> = std::collections::HashMap::new();
    let mut shown = Vec::with_capacity(rows.len());
    for row in &rows {
        if !surveys.contains_key(&row.project_module) {
            surveys.insert(row.project_module.clone(), api.survey(&row.project_module).await?);
        }
        shown.push(shape::source::whole(row, &surveys[&row.project_module]));
    }
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    Ok((headers, Json(shown)))
}

async fn get(State(api): State<Api>, Id(source): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let row = api.source_row(source, false).await?;
    let survey = api.survey(&row.project_module).await?;
    Ok(Json(shape::source::whole(&row, &survey)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    stale_after_hours: Option<Option<f64>>,
}

async fn update(
    State(api): State<Api>,
    caller: Caller,
    Id(source): Id,
    Body(change): Body<Change>,
) -> Result<Json<Value>, Problem> {
    if let Some(Some(hours)) = change.stale_after_hours
        && !(hours > 0.0 && hours <= 87_600.0)
    {
        return Err(Problem::field(
            "invalid-body",
            "stale_after_hours",
            format!("{hours} cannot be used"),
            "more than 0 and at most 87600 (ten years), or null for the project's setting",
        ));
    }
    let update = Command::Update { enabled: change.enabled, stale_after_hours: change.stale_after_hours };
    let done = api.handle.handle::<Source>(&source.to_string(), &caller.context(), update).await?;
    api.settle(done.position).await;
    Ok(Json(api.shown_source(source).await?))
}

async fn remove(State(api): State<Api>, caller: Caller, Id(source): Id) -> Result<StatusCode, Problem> {
    let done = api.handle.handle::<Source>(&source.to_string(), &caller.context(), Command::Remove).await?;
    api.settle(done.position).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn status(State(api): State<Api>, Id(source): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let row = api.source_row(source, true).await?;
    let survey = api.survey(&row.project_module).await?;
    Ok(Json(shape::source::status(&row, &survey, api.clock().now())))
}

async fn metadata(State(api): State<Api>, Id(source): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let row = api.source_row(source, true).await?;
    let survey = api.survey(&row.project_module).await?;
    let prepared = match &row.metadata_sha256 {
        None => None,
        Some(sha256) => Some(api.prepared(sha256).await?),
    };
    let records = prepared.as_ref().map(|prepared| prepared.records.as_slice()).unwrap_or_default();
    let metadata: Vec<Value> = records
        .iter()
        .enumerate()
        .map(|(index, record)| {
            let sbid = sbid_of(record);
            json!({
                "uuid": id::metadata(source, &sbid, index as u64),
                "project_module": row.project_module,
                "source_identifier": row.source_identifier,
                "sbid": sbid,
                "metadata_json": record,
                "created_at": row.discovered_at,
                "updated_at": null,
            })
        })
        .collect();
    Ok(Json(json!({
        "source": shape::source::whole(&row, &survey),
        "metadata_count": metadata.len(),
        "metadata": metadata,
        "flags": prepared.as_ref().map(|prepared| &prepared.flags),
        "held": prepared.as_ref().map(|prepared| &prepared.held),
        "warnings": prepared.as_ref().map(|prepared| &prepared.warnings),
    })))
}

impl Api {
    /// The prepared metadata that an artifact holds.
    pub async fn prepared(&self, sha256: &str) -> Result<Prepared, Problem> {
        let bytes = self.artifacts.get(sha256).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Problem::internal(format!("the metadata artifact {sha256} cannot be read: {error}"))
        })
    }
}

async fn executions(
    State(api): State<Api>,
    Id(source): Id,
    uri: Uri,
    mut params: Params,
) -> Result<(HeaderMap, Json<Vec<Value>>), Problem> {
    let (window, limit) = window(&mut params, 50, 500);
    params.finish()?;
    api.source_row(source, true).await?;
    let rows = api.read(move |models| models.executions().by_source(source, window)).await?;
    let headers = match rows.last() {
        Some(last) if goes_on(rows.len(), limit) => next_link(&uri, last.created_position),
        _ => HeaderMap::new(),
    };
    Ok((headers, Json(api.shown_executions(rows).await?)))
}
