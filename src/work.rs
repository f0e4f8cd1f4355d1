//! **Work**: what the service does by itself. The [`scheduler`], one process by a [`lease`], decides what is to be done now (discovery, admission,
//! reconciliation) and enqueues it; the [`queue`] hands it out; a [`worker`] does it, one file a kind under [`jobs`];
//! [`probes`] look at what the work depends on; [`room`] says
//! who goes on where a profile has room for some; [`submit`] hands executions over and settles what was lost.
//!
//! Invariants: everything here is a command to a decider, so two of anything are harmless; a job is claimed by an append,
//! so it has one worker; a dependency that hangs holds only the lane of the jobs that need it. What is known only to this
//! process (how often a session was looked at, when it is looked at next) is presence and not an event.

pub mod cluster;
pub mod jobs;
pub mod lease;
pub mod probes;
pub mod queue;
pub mod room;
pub mod scheduler;
pub mod stage;
pub mod submit;
pub mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::execution::{self, Created};
use beampipe_domain::profile::{Deployment, SlurmRemote};
use beampipe_domain::project;
use beampipe_log::{Direction, Filter};
use beampipe_projections::Models;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

use crate::archives::tap::{Limits, TapClient};
use crate::artifacts::Artifacts;
use crate::backends::dim::Dim;
use crate::backends::simulated::{self, Settings, Simulated, World};
use crate::backends::slurm::cluster::Cluster;
use crate::backends::{self, Backend};
use crate::clock::Clock;
use crate::codec;
use crate::config;
use crate::handle::{Handle, HandleError};
use crate::metrics::Metrics;
use crate::project::ProjectConfig;
use crate::ssh;

/// Everything that work is done with.
pub struct Shop {
    pub handle: Handle,
    pub models: Arc<Models>,
    pub artifacts: Artifacts,
    pub clock: Clock,
    pub settings: config::Work,
    pub dependencies: config::Dependencies,
    pub metrics: Arc<Metrics>,
    /// Names this process among all: its host, its pid, and something drawn at its start.
    pub process: String,
    worker_id: Mutex<Arc<str>>,
    /// Checks certificates.
    pub http: reqwest::Client,
    /// For profiles with `verify_ssl: false`.
    pub http_unverified: reqwest::Client,
    /// The sessions of profiles of kind `simulated`.
    pub world: World,
    simulated: simulated::Tries,
    pub polls: Polls,
    /// What the probes saw last.
    pub seen: probes::Seen,
    /// Connections to login nodes.
    pub ssh: ssh::Pool,
    /// What sites told lately.
    pub sites: cluster::Looks,
    turns: Mutex<lru::LruCache<String, Arc<tokio::sync::Mutex<()>>>>,
    archives: Mutex<HashMap<String, TapClient>>,
    configs: Mutex<lru::LruCache<Uuid, Arc<ProjectConfig>>>,
}

/// How a job ends when it does not complete.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JobError {
    /// Trying again may help.
    #[error("{0}")]
    Retry(String),
    /// Trying again cannot help.
    #[error("{0}")]
    Fail(String),
    /// What it needs is away: it waits, and that is no attempt.
    #[error("{0}")]
    Wait(String),
    /// The worker stops: another one goes on.
    #[error("{0}")]
    HandBack(String),
}

impl From<HandleError> for JobError {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::Rejected(rejection) => Self::Fail(rejection.to_string()),
            HandleError::Decode(error) => Self::Fail(error.to_string()),
            other => Self::Retry(other.to_string()),
        }
    }
}

impl Shop {
    #[expect(
        clippy::too_many_arguments,
        reason = "it is the list of parts, named once where the service is wired"
    )]
    pub fn new(
        handle: Handle,
        models: Arc<Models>,
        artifacts: Artifacts,
        clock: Clock,
        settings: config::Work,
        dependencies: config::Dependencies,
        metrics: Arc<Metrics>,
        process: String,
        ssh: ssh::Pool,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            handle,
            models,
            artifacts,
            clock,
            simulated: simulated::Tries::default(),
            world: settings.simulated_dir.clone().map_or_else(World::default, World::Directory),
            settings,
            dependencies,
            metrics,
            worker_id: Mutex::new(process.as_str().into()),
            process,
            http: backends::client(true)?,
            http_unverified: backends::client(false)?,
            polls: Polls::default(),
            seen: probes::Seen::default(),
            ssh,
            sites: cluster::Looks::default(),
            turns: Mutex::new(lru::LruCache::new(std::num::NonZeroUsize::MIN.saturating_add(1023))),
            archives: Mutex::default(),
            configs: Mutex::new(lru::LruCache::new(std::num::NonZeroUsize::MIN.saturating_add(63))),
        })
    }

    /// The worker that this process is now.
    pub fn worker_id(&self) -> Arc<str> {
        self.worker_id.lock().clone()
    }

    /// Another worker from here on: one that was declared lost never works again, though its process may go on.
    pub fn be_another_worker(&self) {
        let drawn = &self.clock.id().simple().to_string()[20..];
        *self.worker_id.lock() = format!("{}-{drawn}", self.process).into();
    }

    /// What an execution was created as: the first event of its stream.
    pub async fn created(&self, execution: Uuid) -> Result<Created, JobError> {
        let stream = crate::handle::stream_name::<execution::Execution>(&execution.to_string());
        let first = self.handle.log().read_stream(&stream, 0, Direction::Forward, 1).await;
        let first = first.map_err(|error| JobError::Retry(error.to_string()))?;
        let first = first.first().ok_or_else(|| JobError::Fail(format!("no execution {execution}")))?;
        match codec::decode(first).map_err(|error| JobError::Fail(error.to_string()))? {
            beampipe_domain::Event::Execution(execution::Event::Created(created)) => Ok(*created),
            _ => Err(JobError::Fail(format!(
                "the stream of execution {execution} does not begin with its creation"
            ))),
        }
    }

    /// The revision of a project's configuration that an execution or a job pins.
    pub async fn config(
        &self,
        project_module: &str,
        config_id: Uuid,
    ) -> Result<Arc<ProjectConfig>, JobError> {
        if let Some(config) = self.configs.lock().get(&config_id) {
            return Ok(config.clone());
        }
        let filter = Filter::stream(crate::handle::stream_name::<project::Project>(project_module));
        let mut from = 0;
        loop {
            let page = self.handle.log().read_all(from, Direction::Forward, 200, &filter).await;
            let page = page.map_err(|error| JobError::Retry(error.to_string()))?;
            for recorded in &page.events {
                let event = codec::decode(recorded).map_err(|error| JobError::Fail(error.to_string()))?;
                let beampipe_domain::Event::Project(project::Event::ConfigUploaded(uploaded)) = event else {
                    continue;
                };
                if uploaded.config_id == config_id {
                    let config = ProjectConfig::from_spec(&uploaded.spec).map_err(|error| {
                        JobError::Fail(format!("configuration {config_id} cannot be read: {error}"))
                    })?;
                    let config = Arc::new(config);
                    self.configs.lock().put(config_id, config.clone());
                    return Ok(config);
                }
            }
            match page.next {
                Some(next) => from = next,
                None => {
                    return Err(JobError::Fail(format!(
                        "project {project_module} has no configuration {config_id}"
                    )));
                }
            }
        }
    }

    /// The backend that a pinned profile names.
    pub fn backend(&self, deployment: &Deployment) -> Result<Arc<dyn Backend>, String> {
        match deployment {
            Deployment::RestRemote(remote) => {
                let http = if remote.verify_ssl { &self.http } else { &self.http_unverified };
                let bound = Duration::from_secs(self.settings.dim_timeout_seconds);
                Ok(Arc::new(Dim::new(http.clone(), &remote.base_url()).with_timeouts(bound, bound)))
            }
            Deployment::Simulated(simulated) => {
                let settings = Settings {
                    latency_ms: 0,
                    run_ms: simulated.latency_ms,
                    failure_probability: simulated.failure_probability,
                    loss_probability: simulated.loss_probability,
                    seed: simulated.seed,
                };
                let backend = Simulated::new(self.world.clone(), settings);
                Ok(Arc::new(backend.counting(self.simulated.clone())))
            }
            Deployment::SlurmRemote(_) => Err("a cluster has no manager that answers by itself".into()),
        }
    }

    /// The cluster that a pinned profile names.
    pub fn cluster(&self, remote: &SlurmRemote) -> Result<Cluster, String> {
        Ok(Cluster::new(self.ssh.clone(), cluster::target(remote)?))
    }

    /// The turn to hand over to a place: one hand-over at a time, see [`submit`].
    pub fn turn(&self, place: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.lock().get_or_insert(place.to_owned(), Arc::default).clone()
    }

    /// The client of an archive: one for all jobs, so that they pace their requests together.
    pub fn archive(&self, address: &str, limits: Limits) -> Result<TapClient, String> {
        let base: url::Url = address.parse().map_err(|error| format!("{address}: {error}"))?;
        let key = format!("{base} {limits:?}");
        let mut archives = self.archives.lock();
        let client = archives.entry(key).or_insert_with(|| TapClient::new(self.http.clone(), base, limits));
        Ok(client.clone())
    }

    /// How long to wait before the next try after `failures` in a row: doubling, jittered, at most five minutes.
    pub fn backoff(&self, failures: u32) -> Duration {
        let base = self.settings.retry_base_ms.max(1) as f64;
        let doubled = base * f64::from(2_u32.saturating_pow(failures.min(16)));
        Duration::from_millis((doubled.min(300_000.0) * self.clock.jitter()) as u64)
    }
}

/// What is known of a watched session only here and now.
#[derive(Clone, Debug, Serialize)]
pub struct Poll {
    /// Looks since this worker took the watch over, from 1.
    pub round: u64,
    pub started_at: DateTime<Utc>,
    pub last_poll_at: DateTime<Utc>,
    pub next_poll_at: DateTime<Utc>,
    /// Why the last look saw nothing, if so.
    pub trouble: Option<String>,
    /// What the last look saw that is not worth an event: why a job waits now.
    pub note: Option<String>,
}

/// The looks of this process, by execution.
#[derive(Clone, Debug, Default)]
pub struct Polls(Arc<Mutex<HashMap<Uuid, Poll>>>);

impl Polls {
    pub fn note(&self, execution: Uuid, poll: Poll) {
        self.0.lock().insert(execution, poll);
    }

    pub fn forget(&self, execution: Uuid) {
        self.0.lock().remove(&execution);
    }

    pub fn get(&self, execution: Uuid) -> Option<Poll> {
        self.0.lock().get(&execution).cloned()
    }

    pub fn all(&self) -> HashMap<Uuid, Poll> {
        self.0.lock().clone()
    }
}
