//! Creates executions. Everything that could not be executed is refused here, all of it at once: an unknown project,
//! profile or source, a source that was not discovered, a profile that cannot be reached.
//!
//! What the execution is made of is pinned: the configuration's revision, the profile as it is now, each source's
//! metadata as it was discovered last.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use beampipe_domain::execution::{Command, Created, Event, Execution, PinnedProfile, RequestedSource};
use beampipe_domain::profile::{Deployment, Profile};
use beampipe_domain::project::Project;
use beampipe_domain::source::Source;
use beampipe_domain::{Event as AnyEvent, id};
use beampipe_log::Direction;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::Api;
use crate::api::authenticate::Caller;
use crate::api::extract::Body;
use crate::api::idempotency;
use crate::api::problem::{FieldError, Problem};
use crate::backends::slurm::check as slurm;
use crate::codec;
use crate::handle::{HandleError, stream_name};
use crate::project::ProjectConfig;
use crate::project::metadata::sbid_of;

/// The most sources of one execution.
const MOST: usize = 1000;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    project_module: String,
    sources: Vec<Wanted>,
    archive_name: Option<String>,
    deployment_profile_id: Option<Uuid>,
    deployment_profile_name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    source_identifier: String,
    sbids: Option<Vec<String>>,
}

/// What an order comes to.
struct Plan {
    config_id: Uuid,
    version: u64,
    spec_sha256: String,
    config: Arc<ProjectConfig>,
    profile: Option<PinnedProfile>,
    sources: Vec<RequestedSource>,
}

/// Checks an order; what is wrong is added to `errors`. `None` when the project itself is not known.
async fn plan(api: &Api, order: &Order, errors: &mut Vec<FieldError>) -> Result<Option<Plan>, Problem> {
    if order.sources.is_empty() || order.sources.len() > MOST {
        let message = format!("{} sources", order.sources.len());
        errors.push(FieldError::new("sources", message).hint(format!("1 to {MOST} sources")));
    }
    let project = api.handle.load::<Project>(&order.project_module).await?.state;
    let Some((version, spec_sha256)) = project.active.clone() else {
        errors.push(
            FieldError::new(
                "project_module",
                format!("project {:?} has no configuration", order.project_module),
            )
            .hint("upload one with POST /project-configs"),
        );
        return Ok(None);
    };
    let config_id = id::config(&order.project_module, version);
    api.settle(api.handle.log().head().position).await;
    let config = api.project_config(config_id).await?.ok_or_else(|| {
        Problem::new("read-model-behind", "the project's configuration is not in the read model yet")
            .retry_after(1)
    })?;
    if let Some(archive) = &order.archive_name {
        let known = config.endpoints();
        let named = *archive == config.automation.execution.archive_name;
        if !named && !known.contains_key(archive) && !config.adapters.required.contains(archive) {
            let names: Vec<String> = known.into_keys().collect();
            let shown: String = archive.chars().take(60).collect();
            errors.push(
                FieldError::new("archive_name", format!("the project knows no archive {shown:?}"))
                    .hint(names.join(", ")),
            );
        }
    }
    let profile = match profile_of(api, order, &project, &config, errors).await? {
        Some(profile_id) => pin(api, order, profile_id, errors).await?,
        None => None,
    };
    let sources = sources_of(api, order, errors).await?;
    Ok(Some(Plan { config_id, version, spec_sha256, config, profile, sources }))
}

/// Which profile is meant: the one that is named, or the project's default.
async fn profile_of(
    api: &Api,
    order: &Order,
    project: &Project,
    config: &ProjectConfig,
    errors: &mut Vec<FieldError>,
) -> Result<Option<Uuid>, Problem> {
    let named = order.deployment_profile_name.as_deref().map(id::profile);
    match (order.deployment_profile_id, named) {
        (Some(by_id), Some(by_name)) if by_id != by_name => {
            errors.push(
                FieldError::new("deployment_profile_name", "is another profile than deployment_profile_id")
                    .hint("one of the two"),
            );
            Ok(None)
        }
        (Some(profile), _) | (None, Some(profile)) => Ok(Some(profile)),
        (None, None) => {
            let automatic = config.automation.execution.deployment_profile_name.as_deref().map(id::profile);
            let default = project.default_profile.or(automatic);
            if default.is_none() {
                let _ = api;
                errors.push(
                    FieldError::new(
                        "deployment_profile_name",
                        "is needed: the project has no default profile",
                    )
                    .hint("name a profile, or make one the default with is_default"),
                );
            }
            Ok(default)
        }
    }
}

/// The profile as it is now, if an execution can run on it.
async fn pin(
    api: &Api,
    order: &Order,
    profile_id: Uuid,
    errors: &mut Vec<FieldError>,
) -> Result<Option<PinnedProfile>, Problem> {
    let field = if order.deployment_profile_id.is_some() {
        "deployment_profile_id"
    } else {
        "deployment_profile_name"
    };
    let Profile::Active(facts) = api.handle.load::<Profile>(&profile_id.to_string()).await?.state else {
        errors.push(
            FieldError::new(field, "names no deployment profile").hint("GET /deployment-profiles lists them"),
        );
        return Ok(None);
    };
    let spec = &facts.spec;
    if spec.project_module.as_ref().is_some_and(|module| *module != order.project_module) {
        let owner = spec.project_module.as_deref().unwrap_or_default();
        errors.push(
            FieldError::new(field, format!("profile {:?} belongs to project {owner:?}", spec.name))
                .hint("a profile of this project, or of none"),
        );
    }
    match &spec.deployment {
        Deployment::RestRemote(_) | Deployment::SlurmRemote(_)
            if spec.translation.tm_url.is_none() && api.settings.default_tm_url.is_none() =>
        {
            errors.push(
                FieldError::new(field, format!("profile {:?} names no translator", spec.name))
                    .hint("set translation.tm_url in the profile, or the server's default"),
            );
        }
        // One that was stored before an update may lack what is needed today.
        Deployment::SlurmRemote(remote) if remote.remote_user.is_none() => errors.push(
            FieldError::new(field, format!("profile {:?} names no remote_user", spec.name))
                .hint("set deployment.remote_user: the user to log in as on the login node"),
        ),
        Deployment::SlurmRemote(remote) => errors.extend(slurm::check(remote).into_iter().map(|wrong| {
            let what = format!("profile {:?}: deployment.{} {}", spec.name, wrong.field, wrong.message);
            FieldError::new(field, what).hint(wrong.hint)
        })),
        Deployment::RestRemote(_) | Deployment::Simulated(_) => {}
    }
    Ok(Some(PinnedProfile {
        profile_id,
        revision: facts.revision,
        spec_sha256: facts.spec_sha256.clone(),
        spec: facts.spec,
    }))
}

async fn sources_of(
    api: &Api,
    order: &Order,
    errors: &mut Vec<FieldError>,
) -> Result<Vec<RequestedSource>, Problem> {
    let mut sources: Vec<RequestedSource> = vec![];
    for (i, wanted) in order.sources.iter().enumerate().take(MOST) {
        let field = format!("sources[{i}].source_identifier");
        let source_id = id::source(&order.project_module, &wanted.source_identifier);
        if sources.iter().any(|known| known.source_id == source_id) {
            errors.push(FieldError::new(field, "is named twice").hint("name a source once"));
            continue;
        }
        if wanted.sbids.as_ref().is_some_and(|sbids| sbids.is_empty() || sbids.len() > 1000) {
            errors.push(
                FieldError::new(format!("sources[{i}].sbids"), "names no scheduling block, or too many")
                    .hint("1 to 1000 of them, or null for all"),
            );
        }
        let shown: String = wanted.source_identifier.chars().take(60).collect();
        match api.handle.load::<Source>(&source_id.to_string()).await?.state {
            Source::Absent | Source::Removed(_) => errors.push(
                FieldError::new(field, format!("{shown:?} is not registered in {}", order.project_module))
                    .hint("register it with POST /sources"),
            ),
            Source::Registered(facts) if facts.metadata_sha256.is_none() => errors.push(
                FieldError::new(field, format!("{shown:?} has no discovered data"))
                    .hint("POST /sources/discover; GET /sources/{id}/status says what is missing"),
            ),
            Source::Registered(facts) => sources.push(RequestedSource {
                source_id,
                source_identifier: facts.source_identifier,
                sbids: wanted.sbids.clone(),
                signature: facts.signature,
                metadata_sha256: facts.metadata_sha256,
            }),
        }
    }
    sources.sort_by(|a, b| a.source_identifier.cmp(&b.source_identifier));
    Ok(sources)
}

/// How much of a source an execution would take.
async fn preview(
    api: &Api,
    source: &RequestedSource,
    errors: &mut Vec<FieldError>,
) -> Result<(usize, Value), Problem> {
    let Some(sha256) = &source.metadata_sha256 else { return Ok((0, Value::Null)) };
    let prepared = api.prepared(sha256).await?;
    let mut sbids = std::collections::BTreeSet::new();
    let mut datasets = 0;
    for record in &prepared.records {
        let sbid = sbid_of(record);
        if source.sbids.as_ref().is_none_or(|wanted| wanted.contains(&sbid)) {
            datasets += 1;
            sbids.insert(sbid);
        }
    }
    for missing in source.sbids.iter().flatten().filter(|wanted| !sbids.contains(*wanted)) {
        errors.push(
            FieldError::new("sources", format!("{} has no SBID {missing}", source.source_identifier))
                .hint(format!("its scheduling blocks: {}", prepared.sbids.join(", "))),
        );
    }
    Ok((
        datasets,
        json!({
            "source_identifier": source.source_identifier,
            "sbid_count": sbids.len(),
            "dataset_count": datasets,
        }),
    ))
}

/// Counts what the sources have, and adds what is wrong with the SBIDs that were asked for.
async fn previews(
    api: &Api,
    sources: &[RequestedSource],
    errors: &mut Vec<FieldError>,
) -> Result<(usize, Vec<Value>), Problem> {
    let mut total = 0;
    let mut shown = vec![];
    for source in sources {
        let (datasets, preview) = preview(api, source, errors).await?;
        total += datasets;
        shown.push(preview);
    }
    Ok((total, shown))
}

pub async fn prepare(State(api): State<Api>, Body(order): Body<Order>) -> Result<Json<Value>, Problem> {
    let mut errors = vec![];
    let plan = plan(&api, &order, &mut errors).await?;
    let sources = plan.map(|plan| plan.sources).unwrap_or_default();
    let (total, previews) = previews(&api, &sources, &mut errors).await?;
    let said: Vec<String> = errors
        .iter()
        .map(|error| match &error.hint {
            Some(hint) => format!("{}: {} ({hint})", error.field, error.message),
            None => format!("{}: {}", error.field, error.message),
        })
        .collect();
    Ok(Json(json!({
        "project_module": order.project_module,
        "valid": errors.is_empty(),
        "errors": said,
        "total_datasets": total,
        "sources_preview": previews,
    })))
}

pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    Body(order): Body<Order>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let execution = caller.creates("/executions", &api);
    let mut errors = vec![];
    let plan = plan(&api, &order, &mut errors).await?;
    if let Some(plan) = &plan
        && plan.sources.iter().any(|source| source.sbids.is_some())
    {
        previews(&api, &plan.sources, &mut errors).await?;
    }
    // What was created under this key before is answered, whatever has changed since.
    if caller.key.is_some()
        && let Some(created) = created_before(&api, execution).await?
    {
        if !is_of(&created, &order) {
            return Err(idempotency::conflict());
        }
        return Ok((StatusCode::OK, Json(api.shown_execution(execution).await?)));
    }
    let (Some(plan), true) = (plan, errors.is_empty()) else {
        return Err(Problem::fields("invalid-body", errors));
    };
    let Plan { config_id, version, spec_sha256, config, profile: Some(profile), sources } = plan else {
        return Err(Problem::internal("a plan without errors has no profile"));
    };
    let archive_name =
        order.archive_name.clone().unwrap_or_else(|| config.automation.execution.archive_name.clone());
    let created = Created {
        project_module: order.project_module.clone(),
        archive_name,
        source_identifiers: sources.iter().map(|source| source.source_identifier.clone()).collect(),
        discovery_signature: crate::work::scheduler::common_signature(&sources),
        sources,
        profile,
        project_config_id: config_id,
        project_config_version: version,
        project_spec_sha256: spec_sha256,
        automatic: false,
        created_by_id: Some(caller.principal.account_id),
    };
    let command = Command::Create(Box::new(created));
    match api.handle.handle::<Execution>(&execution.to_string(), &caller.context(), command).await {
        Ok(done) => {
            api.settle(done.position).await;
            Ok((StatusCode::CREATED, Json(api.shown_execution(execution).await?)))
        }
        // The same key at the same moment, through another process.
        Err(HandleError::Rejected(rejection)) if rejection.code == "execution-exists" => {
            match created_before(&api, execution).await? {
                Some(created) if is_of(&created, &order) => {
                    Ok((StatusCode::OK, Json(api.shown_execution(execution).await?)))
                }
                _ => Err(idempotency::conflict()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// What an execution was created as, if it was.
async fn created_before(api: &Api, execution: Uuid) -> Result<Option<Created>, Problem> {
    let stream = stream_name::<Execution>(&execution.to_string());
    let first = api.handle.log().read_stream(&stream, 0, Direction::Forward, 1).await?;
    let Some(first) = first.first() else { return Ok(None) };
    match codec::decode(first).map_err(HandleError::from)? {
        AnyEvent::Execution(Event::Created(created)) => Ok(Some(*created)),
        _ => Ok(None),
    }
}

/// Whether `created` is what `order` asks for.
fn is_of(created: &Created, order: &Order) -> bool {
    let mut wanted: Vec<(&str, &Option<Vec<String>>)> =
        order.sources.iter().map(|source| (source.source_identifier.as_str(), &source.sbids)).collect();
    wanted.sort_by(|a, b| a.0.cmp(b.0));
    let named = order.deployment_profile_name.as_deref().map(id::profile).or(order.deployment_profile_id);
    created.project_module == order.project_module
        && order.archive_name.as_ref().is_none_or(|name| *name == created.archive_name)
        && named.is_none_or(|profile| profile == created.profile.profile_id)
        && created.sources.len() == wanted.len()
        && created.sources.iter().zip(wanted).all(|(source, (identifier, sbids))| {
            source.source_identifier == identifier && source.sbids == *sbids
        })
}
