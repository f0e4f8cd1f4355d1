//! Deployment profiles. Everything that is wrong with one is said at once. Which profile is a project's default is a fact of
//! the project, set through `is_default` here.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use beampipe_domain::id;
use beampipe_domain::profile::{Command, Profile, Spec, Translation};
use beampipe_domain::project::{self, Project};
use beampipe_projections::executions::Live;
use beampipe_projections::projects as rows;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Id, Params};
use super::known;
use super::problem::{FieldError, Problem};
use super::route::{Access, Route};
use crate::handle::HandleError;
use crate::project::canonical;

/// What is wrong with a profile.
mod check;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/deployment-profiles", Access::Viewer, list),
        Route::post("/deployment-profiles", Access::Admin, create),
        Route::get("/deployment-profiles/{id}", Access::Viewer, get),
        Route::patch("/deployment-profiles/{id}", Access::Admin, update),
        Route::delete("/deployment-profiles/{id}", Access::Admin, remove),
        Route::post("/deployment-profiles/{id}/pause", Access::Operator, pause),
        Route::post("/deployment-profiles/{id}/resume", Access::Operator, resume),
    ]
}

fn shape(row: &rows::Profile) -> Value {
    let spec = &row.spec;
    json!({
        "uuid": row.id,
        "name": spec.name,
        "description": spec.description,
        "project_module": spec.project_module,
        "is_default": row.is_default,
        "max_concurrent_executions": spec.max_concurrent_executions,
        "translation": spec.translation,
        "deployment": spec.deployment,
        "revision": row.profile_revision,
        "spec_sha256": row.spec_sha256,
        "paused": row.paused_reason.is_some(),
        "paused_reason": row.paused_reason,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    })
}

fn unknown(profile: Uuid) -> Problem {
    Problem::new("profile-unknown", format!("there is no deployment profile {profile}"))
}

async fn list(State(api): State<Api>, mut params: Params) -> Result<Json<Vec<Value>>, Problem> {
    let module = params.text("project_module");
    let (limit, offset) = params.window(1000, 1000);
    params.finish()?;
    let rows = api.read(|models| models.projects().profiles()).await?;
    let of_module = |row: &&rows::Profile| {
        module.is_none() || row.project_module.is_none() || row.project_module == module
    };
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let take = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Json(rows.iter().filter(of_module).skip(skip).take(take).map(shape).collect()))
}

impl Api {
    async fn profile_row(&self, profile: Uuid) -> Result<rows::Profile, Problem> {
        let loaded = self.known::<Profile>(&profile.to_string()).await?;
        if let Some(loaded) = &loaded {
            if !matches!(loaded.state, Profile::Active(_)) {
                return Err(unknown(profile));
            }
            self.settle(loaded.position).await;
        }
        let row = self.read(move |models| models.projects().profile(profile)).await?;
        let row = known::row(row, loaded.is_some(), &format!("deployment profile {profile}"))?;
        if loaded.is_none() && row.removed {
            return Err(unknown(profile));
        }
        Ok(row)
    }
}

async fn get(State(api): State<Api>, Id(profile): Id, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    Ok(Json(shape(&api.profile_row(profile).await?)))
}

/// A profile as it is sent: the spec, and whether it is to be the project's default. The parts are read one by one, so
/// that everything wrong with them is found.
#[derive(Deserialize)]
#[serde(transparent)]
struct Draft(Map<String, Value>);

/// A draft that was understood.
struct Understood {
    spec: Spec,
    is_default: Option<bool>,
}

/// What an answer has beside a draft: consoles send whole answers back.
const READ_ONLY: &[&str] =
    &["uuid", "revision", "spec_sha256", "created_at", "updated_at", "paused", "paused_reason"];

fn take<T: serde::de::DeserializeOwned>(
    draft: &mut Map<String, Value>,
    field: &str,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    let value = draft.remove(field).filter(|value| !value.is_null())?;
    match serde_path_to_error::deserialize(value) {
        Ok(value) => Some(value),
        Err(error) => {
            let inner = error.path().to_string();
            let at = if inner == "." { field.to_owned() } else { format!("{field}.{inner}") };
            errors.push(FieldError::new(at, error.into_inner().to_string()).hint("see docs/api.md"));
            None
        }
    }
}

/// Reads a draft; everything that is wrong goes into `errors`.
fn understand(mut draft: Map<String, Value>, errors: &mut Vec<FieldError>) -> Option<Understood> {
    let name: Option<String> = take(&mut draft, "name", errors);
    let description = take(&mut draft, "description", errors);
    let project_module = take(&mut draft, "project_module", errors);
    let is_default = take(&mut draft, "is_default", errors);
    let max_concurrent_executions = take(&mut draft, "max_concurrent_executions", errors);
    let mut missing = |field: &str, hint: &str| errors.push(FieldError::new(field, "is missing").hint(hint));
    if name.is_none() {
        missing("name", "the profile's name, its identity");
    }
    let translation: Option<Translation> = match draft.get("translation") {
        None | Some(Value::Null) => {
            Some(Translation { num_par: 1, num_islands: 1, ..Translation::default() })
        }
        Some(Value::Object(given)) => {
            check::unread(given, "translation", errors, check::TRANSLATION);
            let given = check::without_nulls(given);
            draft.insert("translation".into(), Value::Object(given));
            take(&mut draft, "translation", errors)
        }
        Some(_) => take(&mut draft, "translation", errors),
    };
    draft.remove("translation");
    let deployment = check::deployment(draft.remove("deployment"), errors);
    for field in draft.keys().filter(|field| !READ_ONLY.contains(&field.as_str())) {
        errors.push(FieldError::new(field, "is not a field of a profile").hint(
            "name, description, project_module, is_default, max_concurrent_executions, translation, deployment",
        ));
    }
    let mut spec = Spec {
        name: name?,
        description,
        project_module,
        max_concurrent_executions,
        translation: translation?,
        deployment: deployment?,
    };
    // Consoles send 0 for one DIM; the translator wants at least one island.
    spec.translation.num_islands = spec.translation.num_islands.max(1);
    check::spec(&spec, errors);
    Some(Understood { spec, is_default })
}

fn digest(spec: &Spec) -> Result<String, Problem> {
    serde_json::to_value(spec).map(|value| canonical::sha256(&value)).map_err(Problem::internal)
}

async fn check_project(
    api: &Api,
    spec: &Spec,
    is_default: Option<bool>,
    errors: &mut Vec<FieldError>,
) -> Result<(), Problem> {
    let Some(module) = &spec.project_module else {
        if is_default == Some(true) {
            errors.push(
                FieldError::new("is_default", "a default needs a project")
                    .hint("name project_module, or send false"),
            );
        }
        return Ok(());
    };
    if api.handle.load::<Project>(module).await?.state.active.is_none() {
        errors.push(
            FieldError::new("project_module", format!("project {module:?} has no configuration"))
                .hint("upload one with POST /project-configs, or null for every project"),
        );
    }
    Ok(())
}

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Body(Draft(draft)): Body<Draft>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let mut errors = vec![];
    let understood = understand(draft, &mut errors);
    if let Some(Understood { spec, is_default }) = &understood {
        check_project(&api, spec, *is_default, &mut errors).await?;
    }
    let (Some(Understood { spec, is_default }), true) = (understood, errors.is_empty()) else {
        return Err(Problem::fields("invalid-profile", errors));
    };
    let profile = id::profile(&spec.name);
    let spec_sha256 = digest(&spec)?;
    let create = Command::Create { spec: spec.clone(), spec_sha256: spec_sha256.clone() };
    let (mut position, mut status) = (0, StatusCode::CREATED);
    match api.handle.handle::<Profile>(&profile.to_string(), &caller.context(), create).await {
        Ok(done) => position = done.position,
        Err(HandleError::Rejected(rejection)) if rejection.code == "profile-exists" => {
            // The same profile under the same idempotency key, after a restart.
            let present = api.handle.load::<Profile>(&profile.to_string()).await?.state;
            let same = matches!(&present, Profile::Active(facts) if facts.spec_sha256 == spec_sha256);
            if caller.key.is_none() || !same {
                return Err(rejection.into());
            }
            status = StatusCode::OK;
        }
        Err(error) => return Err(error.into()),
    }
    let position = position.max(set_default(&api, &caller, profile, &spec, is_default).await?);
    api.settle(position).await;
    Ok((status, Json(shape(&api.profile_row(profile).await?))))
}

/// Makes the profile its project's default, or ends that it is.
async fn set_default(
    api: &Api,
    caller: &Caller,
    profile: Uuid,
    spec: &Spec,
    is_default: Option<bool>,
) -> Result<u64, Problem> {
    let (Some(module), Some(is_default)) = (&spec.project_module, is_default) else { return Ok(0) };
    let present = api.handle.load::<Project>(module).await?.state.default_profile;
    let wanted = match is_default {
        true => Some((profile, spec.name.clone())),
        false if present == Some(profile) => None,
        false => return Ok(0),
    };
    let command = project::Command::SetDefaultProfile { profile: wanted };
    Ok(api.handle.handle::<Project>(module, &caller.context(), command).await?.position)
}

async fn update(
    State(api): State<Api>,
    caller: Caller,
    Id(profile): Id,
    Body(Draft(changes)): Body<Draft>,
) -> Result<Json<Value>, Problem> {
    let Profile::Active(facts) = api.handle.load::<Profile>(&profile.to_string()).await?.state else {
        return Err(unknown(profile));
    };
    let Value::Object(mut draft) = serde_json::to_value(&facts.spec).map_err(Problem::internal)? else {
        return Err(Problem::internal("a profile is not an object"));
    };
    // What is absent stays; null takes an optional field away.
    for (field, value) in changes {
        match (draft.get_mut(&field), value) {
            // A deployment of another kind replaces the whole; of the same kind it is merged.
            (Some(Value::Object(present)), Value::Object(given))
                if field == "translation"
                    || given.get("kind").is_none_or(|kind| Some(kind) == present.get("kind")) =>
            {
                present.extend(given);
            }
            (_, Value::Null) if matches!(field.as_str(), "name" | "translation" | "deployment") => {}
            (_, value) => {
                draft.insert(field, value);
            }
        }
    }
    let mut errors = vec![];
    let understood = understand(draft, &mut errors);
    if let Some(Understood { spec, is_default }) = &understood {
        check_project(&api, spec, *is_default, &mut errors).await?;
    }
    let (Some(Understood { spec, is_default }), true) = (understood, errors.is_empty()) else {
        return Err(Problem::fields("invalid-profile", errors));
    };
    let spec_sha256 = digest(&spec)?;
    let update = Command::Update { spec: spec.clone(), spec_sha256 };
    let done = api.handle.handle::<Profile>(&profile.to_string(), &caller.context(), update).await?;
    let position = done.position.max(set_default(&api, &caller, profile, &spec, is_default).await?);
    api.settle(position).await;
    Ok(Json(shape(&api.profile_row(profile).await?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    reason: Option<String>,
}

/// Nothing is admitted to it any more; what runs there goes on. So a profile is drained.
async fn pause(
    State(api): State<Api>,
    caller: Caller,
    Id(profile): Id,
    Body(pause): Body<Pause>,
) -> Result<Json<Value>, Problem> {
    let reason = pause.reason.unwrap_or_else(|| "no reason was given".to_owned());
    if reason.chars().count() > 2000 {
        return Err(Problem::field("invalid-body", "reason", "is too long", "at most 2000 characters"));
    }
    switch(&api, &caller, profile, Command::Pause { reason, automatic: false }).await
}

async fn resume(State(api): State<Api>, caller: Caller, Id(profile): Id) -> Result<Json<Value>, Problem> {
    switch(&api, &caller, profile, Command::Resume { automatic: false }).await
}

async fn switch(api: &Api, caller: &Caller, profile: Uuid, command: Command) -> Result<Json<Value>, Problem> {
    let done = api.handle.handle::<Profile>(&profile.to_string(), &caller.context(), command).await?;
    api.settle(done.position).await;
    Ok(Json(shape(&api.profile_row(profile).await?)))
}

async fn remove(State(api): State<Api>, caller: Caller, Id(profile): Id) -> Result<StatusCode, Problem> {
    let row = api.profile_row(profile).await?;
    // What the read model lags behind with is waited for, so that an execution of a moment ago counts.
    api.settle(api.handle.log().head().position).await;
    let (defaults, live) = api
        .read(move |models| {
            let defaults: Vec<String> = models
                .projects()
                .list()?
                .into_iter()
                .filter(|project| project.default_profile_id == Some(profile))
                .map(|project| project.project_module)
                .collect();
            let live = models.executions().in_flight_on_profile(profile)?;
            Ok((defaults, live))
        })
        .await?;
    if !defaults.is_empty() {
        let detail = format!("profile {:?} is the default of {}", row.name, defaults.join(", "));
        return Err(Problem::new("profile-in-use", detail));
    }
    if live > 0 {
        let executions = api.read(|models| models.executions().live(Live::All, 1000)).await?;
        let named: Vec<String> = executions
            .iter()
            .filter(|execution| execution.profile_id == profile)
            .take(5)
            .map(|execution| execution.id.to_string())
            .collect();
        let detail = format!(
            "{live} executions that have not ended are pinned to profile {:?}, such as {}",
            row.name,
            named.join(", ")
        );
        return Err(Problem::new("profile-in-use", detail));
    }
    let done = api.handle.handle::<Profile>(&profile.to_string(), &caller.context(), Command::Remove).await?;
    api.settle(done.position).await;
    Ok(StatusCode::NO_CONTENT)
}
