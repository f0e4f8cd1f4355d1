//! The **scheduler**: looks at the read models at a steady pace and asks for what is to be done now.
//!
//! One process acts, see [`lease`](super::lease). A tick is a timer, not a job and not an event; what it asks for are commands, so that two schedulers cost a few refused
//! appends and nothing else. Discovery: sources that are due. Admission: pending sources become executions, as far as
//! limits allow. Reconciliation: a to-do list of halves (a source admitted to an execution that does not exist, an
//! execution that nobody works on), finished by commands that a repetition does not change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_domain::admission::{self, Candidate, Counts, Limits, Skip};
use beampipe_domain::execution::{self, Created, Execution, PinnedProfile, RequestedSource};
use beampipe_domain::id;
use beampipe_domain::job::Kind;
use beampipe_domain::profile::Deployment;
use beampipe_domain::source::{self, Source};
use beampipe_projections::Window;
use beampipe_projections::executions::Live;
use beampipe_projections::projects::{Config, Profile, Project};
use beampipe_projections::sources::Staleness;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::cluster::Site;
use super::jobs::discover;
use super::lease::Acting;
use super::{JobError, Shop, queue};
use crate::handle::{Context, HandleError};
use crate::project::ProjectConfig;
use crate::project::config::ExecutionAutomation;

/// Unfinished discovery jobs of one project that are looked at to see what they cover.
const COVERED_JOBS: u64 = 1000;
/// How long after a look that failed a source is looked at again, unless it is stale sooner.
const RETRY_MINUTES: i64 = 60;
/// Live executions that one reconciliation looks at.
const LIVE: u64 = 10_000;

/// Ticks, while this process acts as scheduler, until it is stopped.
pub async fn run(shop: Arc<Shop>, mut acting: Acting, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(shop.settings.tick_seconds));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            // A lease that was just taken is acted on at once.
            changed = acting.changed() => if changed.is_err() { return },
        }
        let Some(from) = *acting.borrow_and_update() else { continue };
        // It acts on what its predecessor did, or it would ask for the same again.
        let patience = Duration::from_secs(shop.settings.tick_seconds);
        if !shop.models.wait_for(from, patience).await || !shop.models.caught_up() {
            continue;
        }
        let context = Context::system(&shop.clock, "scheduler");
        for (kind, outcome) in [
            ("reconcile", timed(&shop, "reconcile", reconcile(&shop, &context)).await),
            ("discovery", timed(&shop, "discovery", discovery(&shop, &context)).await),
            ("execution", timed(&shop, "execution", admit_all(&shop, &context)).await),
        ] {
            if let Err(error) = outcome {
                tracing::warn!(kind, %error, "a scheduler tick could not do its work");
            }
        }
    }
}

async fn timed<T>(
    shop: &Shop,
    kind: &str,
    work: impl Future<Output = Result<T, JobError>>,
) -> Result<(), JobError> {
    let started = Instant::now();
    let outcome = work.await;
    shop.metrics
        .scheduler_tick_duration_seconds
        .with_label_values(&[kind])
        .observe(started.elapsed().as_secs_f64());
    outcome.map(|_| ())
}

fn unread(error: impl std::fmt::Display) -> JobError {
    JobError::Retry(error.to_string())
}

/// Enqueues the discovery of whatever is due, project by project.
async fn discovery(shop: &Shop, context: &Context) -> Result<(), JobError> {
    for project in shop.models.projects().list().map_err(unread)? {
        let module = &project.project_module;
        let Some(active) = shop.models.projects().active_config(module).map_err(unread)? else { continue };
        let config = shop.config(module, active.id).await?;
        if let Err(error) = discover_project(shop, context, module, &config).await {
            tracing::warn!(project = module, %error, "discovery of a project could not be asked for");
        }
    }
    Ok(())
}

async fn discover_project(
    shop: &Shop,
    context: &Context,
    module: &str,
    config: &ProjectConfig,
) -> Result<(), JobError> {
    let automation = &config.automation.discovery;
    // Asking an archive that is down would only burn attempts: what is due stays due.
    let away = super::probes::archives_away(shop, config);
    if config.adapters.required.iter().any(|adapter| away.contains_key(adapter)) {
        return Ok(());
    }
    let unfinished =
        shop.models.jobs().unfinished(Kind::DiscoverBatch, module, COVERED_JOBS).map_err(unread)?;
    let room = usize(automation.concurrent_discovery_batch_limit)
        .saturating_sub(unfinished.len())
        .min(usize(automation.tick_discovery_batch_limit));
    if room == 0 || unfinished.len() >= usize(automation.queue_max_depth) {
        return Ok(());
    }
    let covered: HashSet<Uuid> = unfinished
        .iter()
        .filter_map(|job| serde_json::from_value::<discover::Order>(job.payload.clone()).ok())
        .flat_map(|order| order.source_ids)
        .collect();
    let now = shop.clock.now();
    let batch = usize(automation.batch_size).max(1);
    let wanted = (room * batch).min(usize(automation.tick_discovery_source_limit));
    let staleness = Staleness {
        now,
        default_stale_hours: automation.stale_after_hours,
        retry_minutes: RETRY_MINUTES.min((automation.stale_after_hours * 60.0) as i64),
    };
    let limit = (wanted + covered.len()) as u64;
    let due = shop.models.sources().due_for_discovery(module, staleness, limit).map_err(unread)?;
    let asked_for = |row: &beampipe_projections::sources::Source| row.discovery_requested_at.is_some();
    let due: Vec<_> = due
        .into_iter()
        // What a person asked for is looked up even where nothing is looked up by itself.
        .filter(|row| !covered.contains(&row.id) && (automation.enabled || asked_for(row)))
        .take(wanted)
        .collect();
    for batch in due.chunks(batch) {
        // What is known of each source, and the hour: the same cause in a later hour is asked for again, so that a dead
        // letter does not hold its sources for ever.
        let mut cause = Sha256::new_with_prefix(module.as_bytes());
        for row in batch {
            cause.update(row.id.as_bytes());
            cause.update(row.revision.to_be_bytes());
        }
        cause.update((now.timestamp() / 3600).to_be_bytes());
        let ids = batch.iter().map(|row| row.id).collect();
        queue::ensure_discovery(shop, context, module, &cause.finalize(), ids).await?;
    }
    Ok(())
}

/// Admits what is pending, project by project.
async fn admit_all(shop: &Shop, context: &Context) -> Result<(), JobError> {
    for project in shop.models.projects().list().map_err(unread)? {
        if let Err(error) = admit(shop, context, &project).await {
            tracing::warn!(project = project.project_module, %error, "admission of a project failed");
        }
    }
    Ok(())
}

/// Admission that a person asked for: of one project, or of all.
pub async fn on_demand(shop: &Shop, context: &Context, module: Option<&str>) -> Result<Value, JobError> {
    let mut outcome = BTreeMap::new();
    for project in shop.models.projects().list().map_err(unread)? {
        if module.is_none_or(|module| module == project.project_module) {
            let (admitted, skip) = admit(shop, context, &project).await?;
            outcome.insert(project.project_module, json!({"admitted": admitted, "skip_reason": skip}));
        }
    }
    Ok(json!(outcome))
}

/// Admits what is pending in one project; answers how many executions came of it, and why not more.
async fn admit(shop: &Shop, context: &Context, project: &Project) -> Result<(usize, Option<Skip>), JobError> {
    let module = &project.project_module;
    let active = shop.models.projects().active_config(module).map_err(unread)?;
    let Some(active) = active else { return Ok((0, Some(Skip::Disabled))) };
    let config = shop.config(module, active.id).await?;
    let automation = &config.automation.execution;
    let profile = profile_for(shop, project, automation)?;
    let decision = decide(shop, project, automation, profile.as_ref())?;
    let skip = decision.skip;
    let mut admitted = 0;
    if let Some(profile) = profile {
        for batch in decision.executions {
            admitted += usize::from(carry_out(shop, context, &active, &config, &profile, batch).await?);
        }
    }
    for _ in 0..admitted {
        shop.metrics.admitted(module, None);
    }
    if let Some(skip) = skip {
        shop.metrics.admitted(module, Some(skip.as_str()));
    }
    Ok((admitted, skip))
}

fn profile_for(
    shop: &Shop,
    project: &Project,
    automation: &ExecutionAutomation,
) -> Result<Option<Profile>, JobError> {
    let id = match &automation.deployment_profile_name {
        Some(name) => Some(id::profile(name)),
        None => project.default_profile_id,
    };
    let Some(id) = id else { return Ok(None) };
    let profile = shop.models.projects().profile(id).map_err(unread)?;
    Ok(profile.filter(|profile| !profile.removed))
}

fn decide(
    shop: &Shop,
    project: &Project,
    automation: &ExecutionAutomation,
    profile: Option<&Profile>,
) -> Result<admission::Decision, JobError> {
    let executions = shop.models.executions();
    let now = shop.clock.now();
    let everything = shop.models.projects().all_paused().map_err(unread)?;
    let limits = Limits {
        enabled: automation.enabled && profile.is_some(),
        paused: everything
            .or_else(|| project.paused_reason.clone())
            .or_else(|| profile.and_then(|p| p.paused_reason.clone())),
        max_sources_per_execution: usize(automation.max_sources_per_execution),
        min_sources_to_trigger: usize(automation.min_sources_to_trigger),
        max_wait_seconds: i64::try_from(automation.max_wait_minutes)
            .ok()
            .map(|minutes| minutes.saturating_mul(60)),
        sources_per_tick: Some(usize(automation.tick_execution_source_limit)),
        executions_per_tick: Some(usize(automation.tick_execution_run_limit)),
        project_in_flight: Some(usize(automation.concurrent_execution_run_limit)),
        profile_in_flight: profile.and_then(|p| p.spec.max_concurrent_executions).map(|max| max as usize),
        installation_in_flight: shop.settings.max_in_flight,
    };
    let counts = Counts {
        installation: usize(executions.in_flight().map_err(unread)?),
        project: usize(executions.in_flight_in_project(&project.project_module).map_err(unread)?),
        profile: match profile {
            Some(profile) => usize(executions.in_flight_on_profile(profile.id).map_err(unread)?),
            None => 0,
        },
    };
    let limit = automation.tick_execution_source_limit.saturating_add(1).min(10_000);
    let pending = shop.models.sources().pending(&project.project_module, limit).map_err(unread)?;
    let mut candidates = Vec::with_capacity(pending.len());
    let mut not_ready = 0;
    for row in pending {
        let Some(signature) = row.signature else { continue };
        // Run by hand meanwhile, or being run: admission would only repeat it.
        let executed = row.executed_signature.as_ref() == Some(&signature);
        let last = executions.by_source(row.id, Window::first(1)).map_err(unread)?;
        if executed || last.first().is_some_and(|execution| !execution.is_terminal()) {
            not_ready += 1;
            continue;
        }
        let waited_seconds = row.pending_at.map_or(0, |since| (now - since).num_seconds());
        candidates.push(Candidate { source_id: row.id, signature, waited_seconds });
    }
    let decision = admission::decide(&limits, counts, &candidates);
    if not_ready > 0 && decision.skip == Some(Skip::NoPendingSources) {
        return Ok(admission::Decision { skip: Some(Skip::SourcesSkippedNotReady), ..decision });
    }
    Ok(decision)
}

/// Reserves each source of a batch, then creates the execution with what was won; answers whether anything was.
async fn carry_out(
    shop: &Shop,
    context: &Context,
    active: &Config,
    config: &ProjectConfig,
    profile: &Profile,
    batch: Vec<Candidate>,
) -> Result<bool, JobError> {
    let Some(first) = batch.first() else { return Ok(false) };
    let head = shop.handle.load::<Source>(&first.source_id.to_string()).await?.head;
    let Some(head) = head else { return Ok(false) };
    let execution_id = id::admitted(first.source_id, &head.hash.0);
    let mut won = Vec::new();
    for candidate in batch {
        let command = source::Command::Admit { execution_id, signature: candidate.signature };
        match shop.handle.handle::<Source>(&candidate.source_id.to_string(), context, command).await {
            Ok(_) => won.push(candidate.source_id),
            // Discovered anew, disabled or admitted by another scheduler meanwhile.
            Err(HandleError::Rejected(_) | HandleError::Outdated { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    crate::fault::point("source_admitted");
    if won.is_empty() {
        return Ok(false);
    }
    create(shop, context, active, config, profile, execution_id, won).await?;
    Ok(true)
}

/// Creates the execution that sources were admitted to, and asks for its execution.
async fn create(
    shop: &Shop,
    context: &Context,
    active: &Config,
    config: &ProjectConfig,
    profile: &Profile,
    execution_id: Uuid,
    source_ids: Vec<Uuid>,
) -> Result<(), JobError> {
    let mut sources = Vec::new();
    for source_id in source_ids {
        let loaded = shop.handle.load::<Source>(&source_id.to_string()).await?;
        let Some(facts) = loaded.state.facts() else { continue };
        sources.push(RequestedSource {
            source_id,
            source_identifier: facts.source_identifier.clone(),
            sbids: None,
            signature: facts.admitted.as_ref().map(|(_, signature)| signature.clone()),
            metadata_sha256: facts.metadata_sha256.clone(),
        });
    }
    sources.sort_by(|a, b| a.source_identifier.cmp(&b.source_identifier));
    let created = Created {
        project_module: active.project_module.clone(),
        archive_name: config.automation.execution.archive_name.clone(),
        source_identifiers: sources.iter().map(|source| source.source_identifier.clone()).collect(),
        discovery_signature: common_signature(&sources),
        sources,
        profile: PinnedProfile {
            profile_id: profile.id,
            revision: profile.profile_revision,
            spec_sha256: profile.spec_sha256.clone(),
            spec: profile.spec.clone(),
        },
        project_config_id: active.id,
        project_config_version: active.version,
        project_spec_sha256: active.spec_sha256.clone(),
        automatic: true,
        created_by_id: None,
    };
    let key = execution_id.to_string();
    let command = execution::Command::Create(Box::new(created));
    match shop.handle.handle::<Execution>(&key, context, command).await {
        Err(HandleError::Rejected(rejection)) if rejection.code == "execution-exists" => {}
        done => drop(done?),
    }
    execute(shop, context, execution_id).await
}

/// The one signature of an execution's data: of its source, or over those of all.
pub fn common_signature(sources: &[RequestedSource]) -> Option<String> {
    match sources {
        [one] => one.signature.clone(),
        many => {
            let mut digest = Sha256::new();
            for source in many {
                digest.update(source.source_identifier.as_bytes());
                digest.update([0]);
                digest.update(source.signature.as_deref()?.as_bytes());
                digest.update([0]);
            }
            Some(hex::encode(digest.finalize()))
        }
    }
}

/// Asks for the execution of an automatic execution, whole.
async fn execute(shop: &Shop, context: &Context, execution_id: Uuid) -> Result<(), JobError> {
    let key = execution_id.to_string();
    let attempt = shop.handle.load::<Execution>(&key).await?.state.facts().map_or(1, |facts| facts.attempt);
    let job_id = id::execution_job(Kind::Execute.as_str(), execution_id, attempt);
    let command = execution::Command::Execute { job_id, do_stage: true, do_submit: true };
    match shop.handle.handle::<Execution>(&key, context, command).await {
        Ok(_) => queue::ensure_execute(shop, context, execution_id).await,
        Err(HandleError::Rejected(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Finishes halves: what one process began and did not end.
pub async fn reconcile(shop: &Shop, context: &Context) -> Result<(), JobError> {
    let mut halves: HashMap<(Uuid, String), Vec<Uuid>> = HashMap::new();
    for row in shop.models.sources().halves(1000).map_err(unread)? {
        if let Some(execution_id) = row.admitted_execution_id {
            halves.entry((execution_id, row.project_module)).or_default().push(row.id);
        }
    }
    for ((execution_id, module), source_ids) in halves {
        if let Err(error) = finish_half(shop, context, execution_id, &module, source_ids).await {
            tracing::warn!(%execution_id, %error, "an admission could not be finished");
        }
    }
    for row in shop.models.executions().live(Live::All, LIVE).map_err(unread)? {
        if let Err(error) = see_to(shop, context, &row).await {
            tracing::warn!(execution = %row.id, %error, "an execution could not be seen to");
        }
    }
    Ok(())
}

async fn finish_half(
    shop: &Shop,
    context: &Context,
    execution_id: Uuid,
    module: &str,
    source_ids: Vec<Uuid>,
) -> Result<(), JobError> {
    let projects = shop.models.projects();
    let Some(project) = projects.get(module).map_err(unread)? else { return Ok(()) };
    let Some(active) = projects.active_config(module).map_err(unread)? else { return Ok(()) };
    let config = shop.config(module, active.id).await?;
    let Some(profile) = profile_for(shop, &project, &config.automation.execution)? else { return Ok(()) };
    create(shop, context, &active, &config, &profile, execution_id, source_ids).await
}

/// Sees that a live execution has the job it needs.
async fn see_to(
    shop: &Shop,
    context: &Context,
    row: &beampipe_projections::executions::Execution,
) -> Result<(), JobError> {
    if row.status == "pending" {
        // What a person created waits for a person; what admission created is executed.
        return if row.automatic { execute(shop, context, row.id).await } else { Ok(()) };
    }
    let jobs = shop.models.jobs();
    let working = jobs.unfinished_for_execution(row.id, Kind::Execute).map_err(unread)?.is_some()
        || jobs.unfinished_for_execution(row.id, Kind::DimPoll).map_err(unread)?.is_some()
        || is_watched_on_its_cluster(shop, row).map_err(unread)?;
    if working {
        return Ok(());
    }
    match shop.handle.load::<Execution>(&row.id.to_string()).await?.state {
        Execution::Preparing { .. } => queue::ensure_execute(shop, context, row.id).await,
        Execution::Submitting { .. } | Execution::Uncertain { .. } | Execution::Submitted { .. } => {
            queue::ensure_watch(shop, context, row.id).await
        }
        Execution::Absent | Execution::Pending { .. } | Execution::Ended { .. } => Ok(()),
    }
}

/// Whether the watch of its login node has an execution that was handed over, or may have been.
fn is_watched_on_its_cluster(
    shop: &Shop,
    row: &beampipe_projections::executions::Execution,
) -> Result<bool, beampipe_projections::ReadModelError> {
    let Some(Deployment::SlurmRemote(remote)) = row.profile_spec.as_ref().map(|spec| &spec.deployment) else {
        return Ok(false);
    };
    let (Ok(site), true) = (Site::of(remote), row.submission_pending_at.is_some()) else { return Ok(false) };
    let watch = shop.models.jobs().get(queue::watch_of(&site))?;
    Ok(watch.is_some_and(|job| job.status == "queued" || job.status == "running"))
}

fn usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
