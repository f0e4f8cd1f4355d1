//! **Staging**: from an execution's sources to a physical graph, each step an artifact and an event.
//!
//! Deterministic as far as it is ours: the same pinned sources, configuration and graph give the same manifest and the same
//! patched graph, so a job that starts over records nothing twice.

use std::collections::BTreeSet;
use std::time::Instant;

use beampipe_domain::Rejection;
use beampipe_domain::execution::{
    Artifact, Command, Created, Execution, GraphPrepared, ManifestBuilt, Receipt, Submission, Translated,
};
use beampipe_domain::profile::{Algorithm, Deployment, SlurmRemote};
use bytes::Bytes;
use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use super::cluster::{Site, warnings as cluster_warnings};
use super::jobs::Claimed;
use super::submit::{HandOver, Over, slurm};
use super::{JobError, Shop};
use crate::backends::graph::PhysicalGraph;
use crate::backends::slurm::script;
use crate::backends::translator::{self, TranslateError, Translator};
use crate::handle::HandleError;
use crate::project::graph::{self as graphs, GraphError};
use crate::project::manifest::{self, Selection};
use crate::project::metadata::Prepared;

/// The manifest, for people who look into a session's directory: the graph has it inside.
const MANIFEST_FILE: &str = "manifest.json";

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
            let islands = created.profile.spec.translation.num_islands.max(1);
            let (translator, tm_url) = translator_of(shop, created)?;
            let partitions = created.profile.spec.translation.num_par.max(1);
            let template = partition(&translator, created, &graph, partitions, islands, session).await?;
            let host = remote.dim_host_for_tm.as_deref().unwrap_or(&remote.deploy_host);
            let port = remote.dim_port_for_tm.unwrap_or(remote.deploy_port);
            let physical =
                translator.map(&template, host, port, islands).await.map_err(translation_failed)?;
            (physical, tm_url)
        }
        // Which nodes the job will have is only known inside it: the launcher maps the template onto them.
        Deployment::SlurmRemote(remote) => {
            let (translator, tm_url) = translator_of(shop, created)?;
            let (nodes, islands) = (script::nodes(remote), remote.num_islands.max(1));
            let partitions = created.profile.spec.translation.num_par.max(nodes);
            (partition(&translator, created, &graph, partitions, islands, session).await?, tm_url)
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

/// The translator of an execution's profile, and where it is.
fn translator_of(shop: &Shop, created: &Created) -> Result<(Translator, String), StageError> {
    let translation = &created.profile.spec.translation;
    let Some(tm_url) = translation.tm_url.as_deref().or(shop.settings.tm_url.as_deref()) else {
        let error = "neither the profile's translation.tm_url nor the server's work.tm_url is set".to_owned();
        return Err(StageError::Never { class: "configuration", error });
    };
    let bound = std::time::Duration::from_secs(shop.settings.translator_timeout_seconds);
    Ok((Translator::new(shop.http.clone(), tm_url).with_timeout(bound), tm_url.to_owned()))
}

/// The graph's drops in partitions, not mapped onto nodes.
async fn partition(
    translator: &Translator,
    created: &Created,
    graph: &Bytes,
    partitions: u32,
    islands: u32,
    session: Uuid,
) -> Result<Bytes, StageError> {
    let algorithm = match created.profile.spec.translation.algo {
        Algorithm::Metis => translator::Algorithm::Metis,
        Algorithm::Mysarkar => translator::Algorithm::Mysarkar,
    };
    let name = session.to_string();
    let template = translator.unroll_and_partition(graph, algorithm, partitions, islands, &name).await;
    template.map_err(translation_failed)
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
pub async fn hand_over(shop: &Shop, execution: Uuid, state: &Execution) -> Result<Over, JobError> {
    let submission = state.submission().ok_or_else(|| JobError::Fail("no hand-over was announced".into()))?;
    let created = shop.created(execution).await?;
    let deployment = created.profile.spec.deployment.clone();
    if let Deployment::SlurmRemote(remote) = &deployment {
        let over = to_cluster(shop, execution, state, submission, remote, &created).await?;
        return Ok(Over::Cluster(Box::new(over)));
    }
    let backend = shop.backend(&deployment).map_err(JobError::Fail)?;
    let session_id = submission.session_id;
    let session = session_id.to_string();
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
    Ok(Over::Manager(HandOver { execution, session_id, session, backend, graph, receipt, turn }))
}

async fn to_cluster(
    shop: &Shop,
    execution: Uuid,
    state: &Execution,
    submission: &Submission,
    remote: &SlurmRemote,
    created: &Created,
) -> Result<slurm::HandOver, JobError> {
    let session = submission.session_id.to_string();
    let directory = script::directory(remote, &session);
    let run = created.source_identifiers.join(", ");
    let named = script::Session { id: &session, directory: &directory, run: &run };
    let text = script::render(remote, named).map_err(|error| JobError::Fail(error.to_string()))?;
    let graph = physical_graph(shop, execution).await?;
    let mut files = vec![
        slurm::File { name: script::SCRIPT_FILE, bytes: text.into(), mode: 0o750 },
        slurm::File {
            name: script::LAUNCHER_FILE,
            bytes: Bytes::from_static(script::LAUNCHER.as_bytes()),
            mode: 0o640,
        },
        slurm::File { name: script::TEMPLATE_FILE, bytes: graph, mode: 0o640 },
    ];
    if let Some(sha256) = state.work().and_then(|work| work.manifest_sha256.as_ref()) {
        let bytes = shop.artifacts.get(sha256).await.map_err(|error| JobError::Retry(error.to_string()))?;
        files.push(slurm::File { name: MANIFEST_FILE, bytes, mode: 0o640 });
    }
    let cluster = shop.cluster(remote).map_err(JobError::Fail)?;
    // Once it may have been submitted, it is too late for warnings.
    let warnings = match state {
        Execution::Submitting { .. } => cluster_warnings(shop, &cluster, remote).await,
        _ => vec![],
    };
    let deadline_at = submission.deadline_at.unwrap_or_else(|| shop.clock.now());
    let margin = TimeDelta::seconds(shop.settings.slurm_settle_seconds as i64);
    Ok(slurm::HandOver {
        execution,
        session_id: submission.session_id,
        site: Site::of(remote).map_err(JobError::Fail)?,
        cluster,
        warnings,
        turn: shop.turn(&session),
        session,
        directory,
        files,
        announced_at: deadline_at - margin,
        deadline_at,
    })
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
