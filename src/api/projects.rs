//! Projects and their configurations; pausing and resuming one, or all admission.

use std::num::NonZeroUsize;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use beampipe_domain::project::{ALL, Command, Project};
use beampipe_projections::projects::Config;
use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Name, Params, media_type, receive};
use super::problem::{FieldError, Problem};
use super::route::{Access, Route};
use crate::project::validate::validate_spec;
use crate::project::{Diagnostic, ProjectConfig, Severity, ValidationReport, graph, validate};

/// How many configurations are kept as they are used.
const KEPT: usize = 256;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/projects", Access::Viewer, list),
        Route::get("/projects/contracts", Access::Viewer, contracts),
        Route::get("/projects/contracts/{id}", Access::Viewer, contract),
        Route::post("/projects/{module}/pause", Access::Operator, pause),
        Route::post("/projects/{module}/resume", Access::Operator, resume),
        Route::post("/admission/pause", Access::Operator, pause_all),
        Route::post("/admission/resume", Access::Operator, resume_all),
        Route::post("/project-configs", Access::Admin, upload),
        Route::get("/project-configs/{id}", Access::Viewer, get),
        Route::get("/project-configs/{id}/versions", Access::Viewer, versions),
    ]
}

/// Configurations as they are used, by revision: a revision never changes.
pub struct Configs(Mutex<LruCache<Uuid, Arc<ProjectConfig>>>);

impl Default for Configs {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(KEPT).expect("it is not zero"))))
    }
}

impl Api {
    /// A revision of a configuration; `None` when the read model does not have it.
    pub async fn project_config(&self, config: Uuid) -> Result<Option<Arc<ProjectConfig>>, Problem> {
        if let Some(known) = self.configs.0.lock().get(&config) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(row) = self.read(move |models| models.projects().config(config)).await? else {
            return Ok(None);
        };
        let parsed = ProjectConfig::from_spec(&row.spec)
            .map_err(|error| Problem::internal(format!("configuration {config} cannot be read: {error}")))?;
        let parsed = Arc::new(parsed);
        self.configs.0.lock().put(config, Arc::clone(&parsed));
        Ok(Some(parsed))
    }
}

async fn list(State(api): State<Api>, mut params: Params) -> Result<Json<Vec<Value>>, Problem> {
    let (limit, offset) = params.window(1000, 1000);
    params.finish()?;
    let (rows, everything) =
        api.read(|models| Ok((models.projects().list()?, models.projects().all_paused()?))).await?;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let take = usize::try_from(limit).unwrap_or(usize::MAX);
    let shape = |row: &beampipe_projections::projects::Project| {
        json!({
            "project_id": row.project_module,
            "version": row.active_version,
            "active": row.active_version.is_some(),
            "default_profile_id": row.default_profile_id,
            "default_profile_name": row.default_profile_name,
            "paused": row.paused_reason.is_some() || everything.is_some(),
            "paused_reason": row.paused_reason.as_ref().or(everything.as_ref()),
            "paused_at": row.paused_at,
            "created_at": row.created_at,
        })
    };
    Ok(Json(rows.iter().skip(skip).take(take).map(shape).collect()))
}

fn report_of(row: &Config) -> ValidationReport {
    validate_spec(row.spec.clone()).report
}

async fn contracts(State(api): State<Api>, params: Params) -> Result<Json<Vec<ValidationReport>>, Problem> {
    params.finish()?;
    let reports = api
        .read(|models| {
            let mut reports = vec![];
            for project in models.projects().list()? {
                reports.extend(
                    models.projects().active_config(&project.project_module)?.as_ref().map(report_of),
                );
            }
            Ok(reports)
        })
        .await?;
    Ok(Json(reports))
}

async fn contract(
    State(api): State<Api>,
    Name(id): Name,
    params: Params,
) -> Result<Json<ValidationReport>, Problem> {
    params.finish()?;
    Ok(Json(report_of(&api.config_row(&id).await?)))
}

impl Api {
    /// The configuration that a project id (its active one) or a revision's UUID means.
    async fn config_row(&self, id: &str) -> Result<Config, Problem> {
        let name = id.to_owned();
        let uuid = Uuid::try_parse(id).ok();
        let row = self
            .read(move |models| match uuid {
                Some(uuid) => models.projects().config(uuid),
                None => models.projects().active_config(&name),
            })
            .await?;
        row.ok_or_else(|| {
            let shown: String = id.chars().take(60).collect();
            Problem::new("config-unknown", format!("neither a project nor a revision is called {shown:?}"))
        })
    }
}

fn shape_config(row: &Config) -> Value {
    json!({
        "uuid": row.id,
        "project_id": row.project_module,
        "version": row.version,
        "spec": row.spec,
        "spec_sha256": row.spec_sha256,
        "active": row.active,
        "uploaded_at": row.uploaded_at,
    })
}

async fn get(State(api): State<Api>, Name(id): Name, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let row = api.config_row(&id).await?;
    let mut shape = shape_config(&row);
    shape["uploaded_by"] = json!(api.names.resolve(&api.models, &row.uploaded_by));
    Ok(Json(shape))
}

async fn versions(
    State(api): State<Api>,
    Name(id): Name,
    mut params: Params,
) -> Result<Json<Vec<Value>>, Problem> {
    let (limit, offset) = params.window(100, 1000);
    params.finish()?;
    let module = api.config_row(&id).await?.project_module;
    let rows = api.read(move |models| models.projects().configs(&module)).await?;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let take = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Json(rows.iter().skip(skip).take(take).map(shape_config).collect()))
}

async fn upload(State(api): State<Api>, caller: Caller, request: Request) -> Result<Response, Problem> {
    const TAKEN: &[&str] =
        &["text/plain", "application/x-yaml", "application/yaml", "text/yaml", "text/x-yaml"];
    let media = media_type(request.headers());
    if !media.as_deref().is_some_and(|media| TAKEN.contains(&media)) {
        let given = media.unwrap_or_else(|| "not given".into());
        let detail = format!("Content-Type is {given}; this route takes application/x-yaml or text/plain");
        return Err(Problem::new("unsupported-media-type", detail));
    }
    let bytes = receive(request, api.settings.max_body_bytes).await?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Problem::new("malformed-yaml", format!("the body is no UTF-8 text: {error}")))?
        .to_owned();
    let validation = tokio::task::spawn_blocking(move || validate(&text)).await.map_err(Problem::internal)?;
    let report = validation.report;
    let (true, Some(spec)) = (report.valid, validation.spec) else {
        let count = report.errors.len();
        let first = report.errors.first().map(|e| format!("{}: {}", e.path, e.message)).unwrap_or_default();
        let detail = if count > 1 { format!("{first} (and {} more)", count - 1) } else { first };
        return Err(Problem::new("invalid-config", detail)
            .with("project_id", &report.project_id)
            .with("valid", false)
            .with("warnings", &report.warnings)
            .with("spec_sha256", &report.spec_sha256)
            .errors(&report.errors));
    };
    let mut report = report;
    if let Some(config) = &validation.config {
        report.warnings.extend(graph_warnings(&api, config).await);
    }
    let module = report.project_id.clone();
    let upload = Command::UploadConfig {
        project_module: module.clone(),
        spec_sha256: report.spec_sha256.clone(),
        spec,
    };
    let done = api.handle.handle::<Project>(&module, &caller.context(), upload).await?;
    api.settle(done.position).await;
    let mut body = serde_json::to_value(&report).map_err(Problem::internal)?;
    if let Some((version, _)) = &done.state.active {
        body["version"] = json!(version);
        body["uuid"] = json!(beampipe_domain::id::config(&module, *version));
    }
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// What is wrong with the graph as this process sees it. A warning, because a worker may see another directory; a URL is
/// not fetched for somebody who only uploads its name.
async fn graph_warnings(api: &Api, config: &ProjectConfig) -> Vec<Diagnostic> {
    let warning = |path: &str, code: &str, message: String, hint: &str| Diagnostic {
        path: path.to_owned(),
        severity: Severity::Warning,
        code: code.to_owned(),
        message,
        hint: Some(hint.to_owned()),
    };
    let graph = match graph::load_file(&config.graph, &api.settings.graph_dir).await {
        None => return vec![],
        Some(Ok(graph)) => graph,
        Some(Err(error)) => {
            let hint = "executions wait or fail until it is there; relative paths start at work.graph_dir";
            return vec![warning("graph.path", "graph_not_usable", error.to_string(), hint)];
        }
    };
    let nodes = graph.value()["nodeDataArray"].as_array().cloned().unwrap_or_default();
    let named = |name: &str| nodes.iter().filter(|node| node["name"] == name).count();
    let patches = config.graph_patches.iter().enumerate();
    let missing = patches.filter(|(_, patch)| named(&patch.target.equals) != 1).map(|(index, patch)| {
        let message =
            format!("the graph has {} nodes `{}`", named(&patch.target.equals), patch.target.equals);
        let path = format!("graph_patches[{index}].match.equals");
        warning(&path, "patch_target", message, "name a node that is there once")
    });
    missing.collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    reason: Option<String>,
}

async fn pause(
    State(api): State<Api>,
    caller: Caller,
    Name(module): Name,
    Body(pause): Body<Pause>,
) -> Result<Json<Value>, Problem> {
    let reason = pause.reason.unwrap_or_else(|| "no reason was given".to_owned());
    if reason.chars().count() > 2000 {
        let error = FieldError::new("reason", "is too long").hint("at most 2000 characters");
        return Err(Problem::fields("invalid-body", vec![error]));
    }
    let command = Command::Pause { project_module: module.clone(), reason };
    change(&api, &caller, &module, command).await
}

async fn resume(State(api): State<Api>, caller: Caller, Name(module): Name) -> Result<Json<Value>, Problem> {
    if module != ALL && api.handle.load::<Project>(&module).await?.head.is_none() {
        let shown: String = module.chars().take(60).collect();
        return Err(Problem::new("project-unknown", format!("project {shown:?} has no configuration")));
    }
    let command = Command::Resume { project_module: module.clone() };
    change(&api, &caller, &module, command).await
}

async fn pause_all(state: State<Api>, caller: Caller, body: Body<Pause>) -> Result<Json<Value>, Problem> {
    pause(state, caller, Name(ALL.to_owned()), body).await
}

async fn resume_all(state: State<Api>, caller: Caller) -> Result<Json<Value>, Problem> {
    resume(state, caller, Name(ALL.to_owned())).await
}

async fn change(api: &Api, caller: &Caller, module: &str, command: Command) -> Result<Json<Value>, Problem> {
    let done = api.handle.handle::<Project>(module, &caller.context(), command).await?;
    api.settle(done.position).await;
    Ok(Json(json!({
        "project_module": module,
        "paused": done.state.paused.is_some(),
        "reason": done.state.paused,
    })))
}
