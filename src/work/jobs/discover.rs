//! `discover_batch`: looks some sources of one project up in their archives.
//!
//! Each source gets one event with its outcome and how long it took. A job whose sources all failed has failed: it is tried
//! again when an archive was the cause, and is a dead letter when the data themselves were.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::source::{Check, Command, Outcome, Source};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Claimed;
use crate::handle::HandleError;
use crate::project::ProjectConfig;
use crate::project::discover::{AdapterMap, Outcome as Found, TapQuery, discover};
use crate::work::probes::archives_away;
use crate::work::{JobError, Shop};

/// Sources of one batch that are looked up at once; the archives are paced per service as well.
const AT_ONCE: usize = 4;
/// The bound on one source, over all its queries.
const SOURCE_BOUND: Duration = Duration::from_secs(600);

/// The payload of the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub project_module: String,
    pub source_ids: Vec<Uuid>,
}

/// How one source came out, for the job's own outcome.
enum Ended {
    Good,
    /// The archive was the cause.
    Away(String),
    /// The data were the cause.
    Unusable(String),
}

pub async fn run(shop: &Shop, job: &Claimed) -> Result<Option<Value>, JobError> {
    let order: Order = serde_json::from_value(job.order.payload.clone())
        .map_err(|error| JobError::Fail(format!("the payload cannot be read: {error}")))?;
    let project = &order.project_module;
    let (config_id, version, config) = active_config(shop, project).await?;
    let adapters = adapters(shop, &config)?;
    // Known to be away: nothing is asked, and no attempt is burnt.
    if let Some(adapter) = config.adapters.required.iter().find(|adapter| !adapters.contains_key(*adapter)) {
        return Err(JobError::Wait(format!("the archive {adapter} is down")));
    }
    let ends: Vec<Result<Option<Ended>, JobError>> = futures::stream::iter(order.source_ids.iter().copied())
        .map(|source| one(shop, job, source, (config_id, version), &config, &adapters))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let (mut good, mut away, mut unusable) = (0, vec![], vec![]);
    for end in ends {
        match end? {
            Some(Ended::Good) => good += 1,
            Some(Ended::Away(error)) => away.push(error),
            Some(Ended::Unusable(error)) => unusable.push(error),
            None => {}
        }
    }
    if job.stop.is_cancelled() {
        return Err(JobError::HandBack("the worker stops".into()));
    }
    let result = json!({"found": good, "archive_away": away.len(), "unusable": unusable.len()});
    match (good, away.first(), unusable.first()) {
        (0, Some(error), _) => Err(JobError::Retry(format!("all sources failed; the first: {error}"))),
        (0, None, Some(error)) => Err(JobError::Fail(format!("all sources failed; the first: {error}"))),
        _ => Ok(Some(result)),
    }
}

/// The configuration that discovery follows now.
async fn active_config(shop: &Shop, project: &str) -> Result<(Uuid, u64, Arc<ProjectConfig>), JobError> {
    let state = shop.handle.load::<beampipe_domain::project::Project>(project).await?.state;
    let (version, _) =
        state.active.ok_or_else(|| JobError::Fail(format!("project {project} has no configuration")))?;
    let config_id = beampipe_domain::id::config(project, version);
    Ok((config_id, version, shop.config(project, config_id).await?))
}

/// The archives that are not known to be away.
fn adapters(shop: &Shop, config: &ProjectConfig) -> Result<AdapterMap, JobError> {
    let away = archives_away(shop, config);
    let mut adapters: AdapterMap = BTreeMap::new();
    for (name, address) in config.endpoints() {
        if away.contains_key(&name) {
            continue;
        }
        let client = shop.archive(&address, config.tap_limits());
        let client: Arc<dyn TapQuery> =
            Arc::new(client.map_err(|e| JobError::Fail(format!("adapter {name}: {e}")))?);
        adapters.insert(name, client);
    }
    Ok(adapters)
}

async fn one(
    shop: &Shop,
    job: &Claimed,
    source: Uuid,
    (project_config_id, project_config_version): (Uuid, u64),
    config: &ProjectConfig,
    adapters: &AdapterMap,
) -> Result<Option<Ended>, JobError> {
    if job.stop.is_cancelled() {
        return Ok(None);
    }
    let key = source.to_string();
    let Source::Registered(facts) = shop.handle.load::<Source>(&key).await?.state else { return Ok(None) };
    let started = std::time::Instant::now();
    let looking = discover(config, &facts.source_identifier, adapters, shop.clock.now());
    let found = tokio::select! {
        found = tokio::time::timeout(SOURCE_BOUND, looking) => found,
        () = job.stop.cancelled() => return Ok(None),
    };
    let (outcome, ended) = match found {
        Err(_) => {
            let limit_seconds = SOURCE_BOUND.as_secs();
            let error = format!("{}: not done within {limit_seconds} s", facts.source_identifier);
            (Outcome::Timeout { step: "source".into(), limit_seconds }, Ended::Away(error))
        }
        Ok(discovery) => sorted(shop, &facts.source_identifier, config, discovery.outcome).await?,
    };
    let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let check = Check { job_id: job.id, project_config_id, project_config_version, duration_ms };
    let command = Command::RecordDiscovery { outcome, check };
    match shop.handle.handle::<Source>(&key, &job.context, command).await {
        Ok(_) => Ok(Some(ended)),
        // Removed while it was looked up.
        Err(HandleError::Rejected(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn sorted(
    shop: &Shop,
    identifier: &str,
    config: &ProjectConfig,
    found: Found,
) -> Result<(Outcome, Ended), JobError> {
    Ok(match found {
        Found::Prepared(prepared) => {
            let bytes = serde_json::to_vec(&prepared).map_err(|error| JobError::Fail(error.to_string()))?;
            let stored = shop.artifacts.put(bytes.into()).await;
            let stored = stored.map_err(|error| JobError::Retry(error.to_string()))?;
            let outcome = Outcome::Found {
                signature: prepared.signature,
                dataset_count: prepared.datasets as u64,
                sbids: prepared.sbids,
                metadata_sha256: stored.sha256,
            };
            (outcome, Ended::Good)
        }
        Found::NoDatasets => (Outcome::NoDatasets, Ended::Good),
        Found::Held(held) => {
            let reasons = held.iter().map(|held| format!("SBID {}: {}", held.sbid, held.reason));
            let reasons: Vec<String> =
                reasons.collect::<std::collections::BTreeSet<_>>().into_iter().take(5).collect();
            let error = format!("all {} datasets are held: {}", held.len(), reasons.join("; "));
            (
                Outcome::Error { step: "require".into(), error: error.clone() },
                Ended::Unusable(format!("{identifier}: {error}")),
            )
        }
        Found::TapSkipped { adapter } => {
            let address = config.endpoints().remove(&adapter).unwrap_or_default();
            let reason = format!("{} is down", shop.seen.archive(&adapter, &address));
            let ended = Ended::Away(format!("{identifier}: {reason}"));
            (Outcome::TapSkipped { adapter, reason }, ended)
        }
        Found::Timeout { step, message } => {
            let limit_seconds = config.adapters.tap.timeout_seconds;
            (Outcome::Timeout { step, limit_seconds }, Ended::Away(format!("{identifier}: {message}")))
        }
        Found::Error { step, message, may_be_retried, .. } => {
            let error = format!("{identifier}: {step}: {message}");
            let ended = if may_be_retried { Ended::Away(error) } else { Ended::Unusable(error) };
            (Outcome::Error { step, error: message }, ended)
        }
    })
}
