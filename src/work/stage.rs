//! **Staging**: from an execution's sources to a physical graph, each step an artifact and an event.
//!
//! Deterministic as far as it is ours: the same pinned sources, configuration and graph give the same manifest and the same
//! patched graph, so a job that starts over records nothing twice.

use std::collections::BTreeSet;
use std::time::Instant;

use beampipe_domain::Rejection;
use beampipe_domain::execution::{
    Artifact, Command, Created, Execution, GraphPrepared, ManifestBuilt, Receipt, Translated,
};
use beampipe_domain::profile::{Algorithm, Deployment};
use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::jobs::Claimed;
use super::submit::HandOver;
use super::{JobError, Shop};
use crate::backends::graph::PhysicalGraph;
use crate::backends::translator::{self, TranslateError, Translator};
use crate::handle::HandleError;
use crate::project::graph::{self as graphs, GraphError};
use crate::project::manifest::{self, Selection};
use crate::project::metadata::Prepared;

/// Why there is nothing to submit.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Something outside cannot be reached.
    #[error("{error}")]
    Away { class: &'static str, error: String },
    /// Trying again may help.
    #[error("{error}")]
    Again { class: &'static str, error: String },
    /// It is wrong, and stays wrong.
    #[error("{error}")]
    Never { class: &'static str, error: String },
    /// The execution's own no.
    #[error(transparent)]
    Rejected(Rejection),
    #[error(transparent)]
    Job(#[from] JobError),
}

impl From<HandleError> for StageError {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::Rejected(rejection) => Self::Rejected(rejection),
            other => Self::Job(other.into()),
        }
    }
}

fn never(class: &'static str) -> impl Fn(String) -> StageError {
    move |error| StageError::Never { class, error }
}

/// The patched logical graph of an execution: made now, or (`do_stage` false) as an earlier attempt made it.
pub async fn graph(
    shop: &Shop,
    job: &Claimed,
    execution: Uuid,
    created: &Created,
    do_stage: bool,
) -> Result<Bytes, StageError> {
    if !do_stage {
        let staged =
            shop.models.executions().artifacts(execution).map_err(|e| JobError::Retry(e.to_string()))?;
        let patched = staged.iter().rev().find(|artifact| artifact.kind == "patched_graph");
        let Some(patched) = patched else {
            let error =
                "do_stage is false and no earlier attempt has staged anything; execute with do_stage=true";
            return Err(StageError::Never { class: "validation", error: error.into() });
        };
        return fetch(shop, &patched.sha256).await;
    }
    let key = execution.to_string();
    let config = shop.config(&created.project_module, created.project_config_id).await?;
    let prepared = prepared(shop, created).await?;
    let selections: Vec<Selection<'_>> = prepared
        .iter()
        .zip(&created.sources)
        .map(|(prepared, source)| Selection { prepared, sbids: source.sbids.as_deref() })
        .collect();
    let manifest = manifest::build(&config, &selections).map_err(|e| never("validation")(e.to_string()))?;
    let artifact = put(shop, "manifest", manifest.text.clone().into(), "application/json").await?;
    let command = Command::RecordManifest(ManifestBuilt {
        manifest_sha256: manifest.sha256.clone(),
        dataset_count: manifest.total_datasets as u64,
        artifact,
    });
    shop.handle.handle::<Execution>(&key, &job.context, command).await?;

    let source =
        graphs::load(&config.graph, &shop.http, &shop.settings.graph_dir).await.map_err(|error| {
            let (class, text) = (error.failure_class(), error.to_string());
            match error {
                // A file that is not there may be brought: nothing is wrong with the execution.
                GraphError::Fetch { .. } | GraphError::Read { .. } => StageError::Away { class, error: text },
                GraphError::Timeout | GraphError::Status { status: 500.., .. } => {
                    StageError::Again { class, error: text }
                }
                _ => StageError::Never { class, error: text },
            }
        })?;
    let patched = source.patch(&config.graph_patches, &manifest);
    let patched = patched.map_err(|error| never(error.failure_class())(error.to_string()))?;
    let source_artifact = put(shop, "source_graph", source.bytes.clone(), "application/json").await?;
    let patched_bytes = Bytes::from(patched.text);
    let patched_artifact = put(shop, "patched_graph", patched_bytes.clone(), "application/json").await?;
    let patches = patched.summary.into_iter().map(|change| beampipe_domain::execution::AppliedPatch {
        node: change.node,
        field: change.field,
        value: change.after,
    });
    let command = Command::RecordGraph(GraphPrepared {
        source_graph_sha256: source_artifact.sha256.clone(),
        patched_graph_sha256: patched_artifact.sha256.clone(),
        patches: patches.collect(),
        artifacts: vec![source_artifact, patched_artifact],
    });
    shop.handle.handle::<Execution>(&key, &job.context, command).await?;
    Ok(patched_bytes)
}

/// The metadata that the execution's creation pinned, source by source.
async fn prepared(shop: &Shop, created: &Created) -> Result<Vec<Prepared>, StageError> {
    let mut all = Vec::with_capacity(created.sources.len());
    for source in &created.sources {
        let Some(sha256) = &source.metadata_sha256 else {
            let error =
                format!("{} was not discovered when the execution was created", source.source_identifier);
            return Err(StageError::Never { class: "validation", error });
        };
        let bytes = fetch(shop, sha256).await?;
        let prepared = serde_json::from_slice(&bytes).map_err(|error| {
            never("internal")(format!("the metadata of {} cannot be read: {error}", source.source_identifier))
        })?;
        all.push(prepared);
    }
    Ok(all)
}

/// Makes the physical graph of the patched one and records it.
pub async fn translate(
    shop: &Shop,
    job: &Claimed,
    execution: Uuid,
    created: &Created,
    graph: Bytes,
) -> Result<(), StageError> {
    let key = execution.to_string();
    let started = Instant::now();
    let attempt = shop.handle.load::<Execution>(&key).await?.state.facts().map_or(1, |facts| facts.attempt);
    let session = beampipe_domain::id::session(execution, attempt);
    let (physical, translator) = match &created.profile.spec.deployment {
        Deployment::Simulated(_) => (simulated_graph(&graph, session)?, "simulated".to_owned()),
        Deployment::RestRemote(remote) => {
            let translation = &created.profile.spec.translation;
            let tm_url = translation.tm_url.as_deref().or(shop.settings.tm_url.as_deref());
            let Some(tm_url) = tm_url else {
                let error =
                    "neither the profile's translation.tm_url nor the server's work.tm_url is set".to_owned();
                return Err(StageError::Never { class: "configuration", error });
            };
            let bound = std::time::Duration::from_secs(shop.settings.translator_timeout_seconds);
            let translator = Translator::new(shop.http.clone(), tm_url).with_timeout(bound);
            let algorithm = match translation.algo {
                Algorithm::Metis => translator::Algorithm::Metis,
                Algorithm::Mysarkar => translator::Algorithm::Mysarkar,
            };
            let islands = translation.num_islands.max(1);
            let template = translator
                .unroll_and_partition(
                    &graph,
                    algorithm,
                    translation.num_par.max(1),
                    islands,
                    &session.to_string(),
                )
                .await
                .map_err(translation_failed)?;
            let host = remote.dim_host_for_tm.as_deref().unwrap_or(&remote.deploy_host);
            let port = remote.dim_port_for_tm.unwrap_or(remote.deploy_port);
            let physical =
                translator.map(&template, host, port, islands).await.map_err(translation_failed)?;
            (physical, tm_url.to_owned())
        }
        Deployment::SlurmRemote(_) => {
            let error = "this release runs executions on rest_remote and simulated profiles".to_owned();
            return Err(StageError::Never { class: "unsupported", error });
        }
    };
    let drops = PhysicalGraph::parse(&physical).map_err(|error| never("internal")(error.to_string()))?;
    let artifact = put(shop, "physical_graph", physical, "application/json").await?;
    let command = Command::RecordTranslation(Translated {
        physical_graph_sha256: artifact.sha256.clone(),
        drop_count: drops.len() as u64,
        translator,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        artifact,
    });
    shop.handle.handle::<Execution>(&key, &job.context, command).await?;
    Ok(())
}

fn translation_failed(error: TranslateError) -> StageError {
    let text = error.to_string();
    match error {
        TranslateError::Unreachable { .. } => StageError::Away { class: "connectivity", error: text },
        TranslateError::Timeout { .. } => StageError::Again { class: "timeout", error: text },
        // The translator's own word for a manager that it cannot reach is a server error of `map`.
        TranslateError::Unavailable { step: "map", .. } => {
            StageError::Away { class: "dependency_unavailable", error: text }
        }
        error if error.may_be_asked_again() => {
            StageError::Again { class: "dependency_unavailable", error: text }
        }
        _ => StageError::Never { class: "validation", error: text },
    }
}

/// One drop for each node of the logical graph: the simulated backend counts them and does nothing with them.
fn simulated_graph(graph: &[u8], session: Uuid) -> Result<Bytes, StageError> {
    let graph: Value =
        serde_json::from_slice(graph).map_err(|error| never("validation")(error.to_string()))?;
    let nodes = graph["nodeDataArray"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ids: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let drops: Vec<Value> = ids
        .into_iter()
        .map(|id| json!({"oid": format!("{session}_{id}"), "name": id, "categoryType": "Application"}))
        .collect();
    Ok(serde_json::to_vec(&drops).map_err(|error| never("internal")(error.to_string()))?.into())
}

/// Where a DIM's REST interface is, as a worker sees it.
pub fn rest_base(deployment: &Deployment) -> Option<String> {
    match deployment {
        Deployment::RestRemote(remote) => Some(remote.base_url()),
        _ => None,
    }
}

/// The physical graph that the present attempt recorded.
pub async fn physical_graph(shop: &Shop, execution: Uuid) -> Result<Bytes, JobError> {
    let state = shop.handle.load::<Execution>(&execution.to_string()).await?.state;
    let sha256 = state.work().and_then(|work| work.physical_graph_sha256.clone());
    let sha256 = sha256.ok_or_else(|| JobError::Fail("the attempt has no physical graph".into()))?;
    shop.artifacts.get(&sha256).await.map_err(|error| JobError::Retry(error.to_string()))
}

/// What is needed to go on with the hand-over that `state` has announced.
pub async fn hand_over(shop: &Shop, execution: Uuid, state: &Execution) -> Result<HandOver, JobError> {
    let submission = state.submission().ok_or_else(|| JobError::Fail("no hand-over was announced".into()))?;
    let created = shop.created(execution).await?;
    let deployment = created.profile.spec.deployment;
    let backend = shop.backend(&deployment).map_err(JobError::Fail)?;
    let session = submission.session_id.to_string();
    let clock = shop.clock.clone();
    let place = match &deployment {
        Deployment::RestRemote(remote) => remote.base_url(),
        // Simulated sessions share nothing.
        _ => session.clone(),
    };
    let urls = (backend.session_status_url(&session), backend.graph_status_url(&session));
    let receipt = Box::new(move || match &deployment {
        Deployment::RestRemote(remote) => Receipt::Dim {
            deployed_at: clock.now(),
            dim_rest_base: remote.base_url(),
            verify_ssl: remote.verify_ssl,
            session_status_url: urls.0.clone().unwrap_or_default(),
            graph_status_url: urls.1.clone().unwrap_or_default(),
        },
        _ => Receipt::Simulated { deployed_at: clock.now() },
    });
    let graph = physical_graph(shop, execution).await?;
    let turn = shop.turn(&place);
    Ok(HandOver { execution, session, backend, graph, receipt, turn })
}

async fn fetch(shop: &Shop, sha256: &str) -> Result<Bytes, StageError> {
    use crate::artifacts::ArtifactError;
    shop.artifacts.get(sha256).await.map_err(|error| match error {
        ArtifactError::Unavailable(_) => StageError::Job(JobError::Retry(error.to_string())),
        _ => StageError::Never { class: "internal", error: error.to_string() },
    })
}

async fn put(shop: &Shop, kind: &str, bytes: Bytes, media_type: &str) -> Result<Artifact, StageError> {
    let stored = shop.artifacts.put(bytes).await.map_err(|error| JobError::Retry(error.to_string()))?;
    Ok(Artifact {
        kind: kind.to_owned(),
        sha256: stored.sha256,
        size_bytes: stored.size_bytes,
        media_type: media_type.to_owned(),
    })
}
