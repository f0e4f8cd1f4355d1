//! **Readiness**: whether this process can do its job, from state that is kept and not asked for at the moment.
//!
//! A task looks once a second at what is cheap to look at (the log's own health, the read models' lag and numbers, the beats
//! of workers) and keeps one finished answer; `/ready` hands it out. *Unready* (503): this process cannot do its job.
//! *Degraded* (200): something outside is down, nobody is there to do what is queued, or the queue does not get shorter.
//! What the probes of this process saw last comes in through [`Readiness::looks_from`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use beampipe_domain::lease::SCHEDULER;
use beampipe_domain::worker::can_do;
use beampipe_log::{Beat, Health};
use beampipe_projections::{ProjectionStatus, State};
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;

/// How often the answer is made anew.
const EVERY: Duration = Duration::from_secs(1);
/// How long the beats are waited for.
const BEATS_PATIENCE: Duration = Duration::from_millis(300);
/// How long they may be missing before that is said.
const BEATS_MISSED: Duration = Duration::from_secs(3);
/// And how often until it is good for the first time.
const AT_START: Duration = Duration::from_millis(25);
/// A read model that is further behind makes the answer `degraded`.
const LAG_LIMIT_SECONDS: f64 = 30.0;
/// How long after its lease has run out a silent scheduler should have been replaced.
const SCHEDULER_GRACE: Duration = Duration::from_secs(5);
/// Beats of processes that were not heard of for so long are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The last look at a dependency.
#[derive(Clone, Debug, Serialize)]
pub struct Look {
    pub up: bool,
    pub checked_at: DateTime<Utc>,
    pub latency_ms: u64,
    pub error: Option<String>,
}

/// How often a session was looked at by whoever watches it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Poll {
    pub round: u64,
    pub started_at: DateTime<Utc>,
    pub last_poll_at: Option<DateTime<Utc>>,
    pub next_poll_at: DateTime<Utc>,
    pub trouble: Option<String>,
    #[serde(default)]
    pub note: Option<String>,
}

/// What is known of a process by its beats.
#[derive(Clone, Debug)]
pub struct Heard {
    pub at: DateTime<Utc>,
    pub active_leases: u64,
    counter: u64,
    /// When its counter last moved, by this process's own clock.
    moved: Instant,
}

impl Heard {
    /// For how long its counter has stood still.
    pub fn silent_for(&self) -> Duration {
        self.moved.elapsed()
    }
}

/// One line of the answer.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: String,
    /// ok, degraded or error.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub ready: bool,
    pub body: Value,
    pub tap_casda: &'static str,
    pub tap_vizier: &'static str,
}

type Looks = Arc<dyn Fn() -> BTreeMap<String, Look> + Send + Sync>;

/// What is kept between two looks.
pub struct Readiness {
    answer: ArcSwap<Answer>,
    heard: Mutex<HashMap<String, Heard>>,
    /// Since when the beats cannot be read.
    deaf: Mutex<Option<Instant>>,
    polls: ArcSwap<HashMap<Uuid, Poll>>,
    capabilities: ArcSwap<Option<Vec<String>>>,
    looks: Mutex<Option<Looks>>,
    faults: Mutex<BTreeMap<&'static str, String>>,
    /// The workers of each pool that have not ended.
    pools: ArcSwap<BTreeMap<String, Vec<String>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        let body = json!({ "status": "unready", "service": super::health::SERVICE, "reasons": ["starting"] });
        let answer = Answer { ready: false, body, tap_casda: "not_configured", tap_vizier: "not_configured" };
        Self {
            answer: ArcSwap::from_pointee(answer),
            heard: Mutex::default(),
            deaf: Mutex::default(),
            polls: ArcSwap::default(),
            capabilities: ArcSwap::default(),
            looks: Mutex::default(),
            faults: Mutex::default(),
            pools: ArcSwap::default(),
        }
    }
}

impl Readiness {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Where the last looks at dependencies come from.
    pub fn looks_from(&self, looks: impl Fn() -> BTreeMap<String, Look> + Send + Sync + 'static) {
        *self.looks.lock() = Some(Arc::new(looks));
    }

    /// Says that a part of this process cannot do its job, or (with `None`) that it can again.
    pub fn fault(&self, part: &'static str, why: Option<String>) {
        let mut faults = self.faults.lock();
        match why {
            Some(why) => faults.insert(part, why),
            None => faults.remove(part),
        };
    }

    pub fn answer(&self) -> Arc<Answer> {
        self.answer.load_full()
    }

    /// What was heard of a worker.
    pub fn heard(&self, worker: &str) -> Option<Heard> {
        self.heard.lock().get(worker).cloned()
    }

    /// How an execution's session is being looked at, if a live worker says so.
    pub fn poll(&self, execution: Uuid) -> Option<Poll> {
        self.polls.load().get(&execution).cloned()
    }

    /// What live workers can do; `None` while that is not known.
    pub fn capabilities(&self) -> Option<Vec<String>> {
        (**self.capabilities.load()).clone()
    }

    /// The age in seconds of the oldest heartbeat of each pool's workers.
    pub fn oldest_heartbeat_by_pool(&self) -> Vec<(String, f64)> {
        let age = |worker: &String| self.heard(worker).map_or(0.0, |heard| heard.silent_for().as_secs_f64());
        let pools = self.pools.load();
        pools.iter().map(|(pool, ids)| (pool.clone(), ids.iter().map(age).fold(0.0, f64::max))).collect()
    }

    /// For how long the beats could not be read. Meanwhile nobody's heartbeat stands still.
    fn deaf_since(&self, now: bool) -> Duration {
        let mut deaf = self.deaf.lock();
        if !now {
            *deaf = None;
            return Duration::ZERO;
        }
        self.heard.lock().values_mut().for_each(|heard| heard.moved = Instant::now());
        deaf.get_or_insert_with(Instant::now).elapsed()
    }

    fn listen(&self, beats: Vec<Beat>, stale_after: Duration) {
        let mut polls = HashMap::new();
        let mut heard = self.heard.lock();
        for beat in beats {
            let active_leases = beat.facts.get("active_leases").and_then(Value::as_u64).unwrap_or(0);
            let known = heard.get(&beat.who).filter(|known| known.counter == beat.counter);
            let moved = known.map_or_else(Instant::now, |known| known.moved);
            // What a silent process said of its polls is not believed any more.
            if moved.elapsed() < stale_after
                && let Some(Value::Object(said)) = beat.facts.get("polls")
            {
                for (execution, poll) in said {
                    if let (Ok(execution), Ok(poll)) =
                        (Uuid::try_parse(execution), serde_json::from_value(poll.clone()))
                    {
                        polls.insert(execution, poll);
                    }
                }
            }
            let now = Heard { at: beat.at, active_leases, counter: beat.counter, moved };
            heard.insert(beat.who, now);
        }
        heard.retain(|_, heard| heard.moved.elapsed() < FORGOTTEN);
        self.polls.store(Arc::new(polls));
    }
}

impl Api {
    /// Keeps the answer fresh until the service stops.
    pub async fn keep_ready(self) {
        loop {
            self.refresh_readiness().await;
            let pause = if self.readiness.answer().ready { EVERY } else { AT_START };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// Looks, and makes the answer anew.
    pub async fn refresh_readiness(&self) {
        // That the log is away is to be said at once: what it would say of beats is not waited for.
        let unheard = match tokio::time::timeout(BEATS_PATIENCE, self.handle.log().beats()).await {
            Ok(Ok(beats)) => {
                self.readiness.listen(beats, self.settings.worker_stale_after);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} ms", BEATS_PATIENCE.as_millis())),
        };
        let deaf = self.readiness.deaf_since(unheard.is_some());
        let gathered = self
            .read(|models| {
                let workers = models.workers().list(false, 10_000)?;
                let dependencies = models.dependencies().list()?;
                let leases = models.workers().leases()?;
                let depth = models.gauges().jobs.queue_depth;
                let queued = if depth == 0 {
                    vec![]
                } else {
                    models.jobs().list(beampipe_projections::Window::first(200))?
                };
                let paused: Vec<_> = models
                    .projects()
                    .profiles()?
                    .into_iter()
                    .filter(|row| row.paused_reason.is_some())
                    .collect();
                Ok((workers, dependencies, leases, queued, paused))
            })
            .await;
        let (workers, dependencies, leases, queued, paused) = match gathered {
            Ok(gathered) => gathered,
            Err(problem) => {
                let reason = problem.detail().to_owned();
                let body =
                    json!({ "status": "unready", "service": super::health::SERVICE, "reasons": [reason] });
                let (tap_casda, tap_vizier) = ("error", "error");
                self.readiness.answer.store(Arc::new(Answer { ready: false, body, tap_casda, tap_vizier }));
                return;
            }
        };
        let now = self.clock().now();
        let mut alive: Vec<String> = vec![];
        let mut stale: Vec<String> = vec![];
        let mut able: BTreeSet<String> = BTreeSet::new();
        for worker in &workers {
            let heard = self.readiness.heard(&worker.id);
            if heard.is_some_and(|heard| heard.silent_for() < self.settings.worker_stale_after) {
                alive.push(worker.id.clone());
                if worker.status == "active" {
                    able.extend(worker.capabilities.iter().cloned());
                }
            } else {
                stale.push(worker.id.clone());
            }
        }
        let mut pools = BTreeMap::<String, Vec<String>>::new();
        for known in self.readiness.pools.load().keys() {
            pools.entry(known.clone()).or_default();
        }
        for worker in &workers {
            pools.entry(worker.pool.clone()).or_default().push(worker.id.clone());
        }
        self.readiness.pools.store(Arc::new(pools));
        self.readiness.capabilities.store(Arc::new(Some(able.iter().cloned().collect())));

        let mut checks = vec![
            database(&self.handle.log().health()),
            projections(&self.models.status(), self.models.caught_up()),
        ];
        let gauges = self.models.gauges();
        let oldest = gauges.jobs.oldest_due_at.values().flatten().min();
        let oldest_age = oldest.map_or(0.0, |due| ((now - *due).num_milliseconds() as f64 / 1000.0).max(0.0));
        checks.push(queue(oldest_age, self.settings.queue_age_limit));
        let needed: BTreeSet<Option<String>> = queued
            .iter()
            .filter(|job| job.status == "queued")
            .map(|job| job.required_capability.clone())
            .collect();
        checks.push(worker(&alive, &stale, &able, &needed));
        let lease = leases.iter().find(|lease| lease.role == SCHEDULER);
        let heard = lease.and_then(|lease| self.readiness.heard(&lease.holder));
        let silent = match (lease, &heard) {
            (_, Some(heard)) => heard.silent_for(),
            (Some(lease), None) => (now - lease.taken_at).to_std().unwrap_or_default(),
            (None, None) => Duration::ZERO,
        };
        let patience = self.settings.scheduler_lease + SCHEDULER_GRACE;
        checks.push(scheduler(lease.map(|lease| lease.holder.as_str()), silent, patience));
        if let Some(why) = unheard.filter(|_| deaf > BEATS_MISSED) {
            let reason = Some(format!("heartbeats cannot be read for {} s: {why}", deaf.as_secs()));
            checks.push(Check { name: "presence".to_owned(), status: "degraded", reason });
        }
        for row in paused {
            let name = row.spec.name;
            let why = row.paused_reason.unwrap_or_default();
            let reason = Some(format!("nothing is admitted to deployment profile {name}: {why}"));
            checks.push(Check { name: format!("profile:{name}"), status: "degraded", reason });
        }
        for (part, why) in self.readiness.faults.lock().iter() {
            checks.push(Check { name: (*part).to_owned(), status: "error", reason: Some(why.clone()) });
        }
        let looks = self.readiness.looks.lock().clone().map(|looks| looks()).unwrap_or_default();
        let mut seen = vec![];
        let mut tap = BTreeMap::new();
        for dependency in &dependencies {
            let look = looks.get(&dependency.name);
            // A look that is newer than the last event cannot contradict it for long: a change is an event at once.
            tap.insert(dependency.name.as_str(), if dependency.up { "ok" } else { "error" });
            let reason = (!dependency.up)
                .then(|| look.and_then(|look| look.error.clone()).or_else(|| dependency.reason.clone()))
                .flatten();
            let status = if dependency.up { "ok" } else { "degraded" };
            let line = (!dependency.up).then(|| {
                format!("{} is down: {}", dependency.name, reason.as_deref().unwrap_or("no reason is known"))
            });
            checks.push(Check { name: format!("dependency:{}", dependency.name), status, reason: line });
            seen.push(json!({
                "name": dependency.name,
                "up": dependency.up,
                "since": dependency.since,
                "last_checked_at": look.map(|look| look.checked_at),
                "latency_ms": look.map(|look| look.latency_ms).or(dependency.latency_ms),
                "reason": reason,
            }));
        }
        let word = |name: &str| tap.get(name).copied().unwrap_or("not_configured");
        let (tap_casda, tap_vizier) = (word("tap_casda"), word("tap_vizier"));

        let ready = checks.iter().all(|check| check.status != "error");
        let degraded = checks.iter().any(|check| check.status == "degraded");
        let status = match (ready, degraded) {
            (false, _) => "unready",
            (true, true) => "degraded",
            (true, false) => "ready",
        };
        let reasons: Vec<&String> = checks.iter().filter_map(|check| check.reason.as_ref()).collect();
        let health = self.handle.log().health();
        let head = self.handle.log().head();
        let body = json!({
            "status": status,
            "service": super::health::SERVICE,
            "version": self.settings.version,
            "database": if checks[0].status == "ok" { "ok" } else { "error" },
            "redis": "not_configured",
            "tap_casda": tap_casda,
            "tap_vizier": tap_vizier,
            "queue_depth": gauges.jobs.queue_depth,
            "jobs_running": gauges.jobs.running,
            "reasons": reasons,
            "checks": checks,
            "log": {
                "engine": health.engine,
                "append": if health.append_refused.is_none() { "ok" } else { "error" },
                "append_refused": health.append_refused,
                "damage": health.damage,
                "queued_appends": health.queued_appends,
                "head": head.position,
            },
            "projections": self.models.status(),
            "queue": {
                "depth": gauges.jobs.queue_depth,
                "running": gauges.jobs.running,
                "dead_letters": gauges.jobs.dead,
                "oldest_age_seconds": oldest_age,
                "oldest_age_limit_seconds": self.settings.queue_age_limit.as_secs(),
            },
            "workers": { "alive": alive.len(), "stale": stale.len(), "stale_ids": stale, "capabilities": able },
            "scheduler": {
                "acting": lease.map(|lease| &lease.holder),
                "since": lease.map(|lease| lease.taken_at),
                "heartbeat_age_seconds": heard.map(|heard| heard.silent_for().as_secs_f64()),
            },
            "dependencies": seen,
            "checked_at": now,
        });
        self.readiness.answer.store(Arc::new(Answer { ready, body, tap_casda, tap_vizier }));
    }
}

fn database(health: &Health) -> Check {
    let reason = health
        .append_refused
        .as_ref()
        .map(|why| format!("the log refuses appends: {why}"))
        .or_else(|| health.damage.as_ref().map(|damage| format!("the log is damaged: {damage}")));
    let status = if reason.is_none() { "ok" } else { "error" };
    Check { name: "database".to_owned(), status, reason }
}

fn projections(all: &[ProjectionStatus], caught_up: bool) -> Check {
    let name = "projections".to_owned();
    let stopped = all.iter().find_map(|one| match &one.state {
        State::Stopped { why } | State::Stalled { why } => {
            Some(format!("read model {} does not go on: {why}", one.name))
        }
        State::CatchingUp | State::Live => None,
    });
    if let Some(reason) = stopped {
        return Check { name, status: "error", reason: Some(reason) };
    }
    if !caught_up {
        let reason = Some("the read models have not caught up with the log yet".to_owned());
        return Check { name, status: "error", reason };
    }
    let late = all.iter().find(|one| one.lag_seconds > LAG_LIMIT_SECONDS);
    let reason = late.map(|one| format!("read model {} is {:.0} s behind", one.name, one.lag_seconds));
    Check { name, status: if reason.is_none() { "ok" } else { "degraded" }, reason }
}

fn scheduler(acting: Option<&str>, silent: Duration, patience: Duration) -> Check {
    let reason = match acting {
        None => Some("no process acts as scheduler: nothing is discovered or admitted by itself".to_owned()),
        Some(holder) if silent > patience => {
            Some(format!("the acting {holder} has been silent for {} s", silent.as_secs()))
        }
        Some(_) => None,
    };
    let status = if reason.is_none() { "ok" } else { "degraded" };
    Check { name: "scheduler".to_owned(), status, reason }
}

fn queue(oldest_age: f64, limit: Duration) -> Check {
    let over = oldest_age > limit.as_secs_f64();
    let reason = over.then(|| {
        format!("the oldest queued job has been due for {oldest_age:.0} s, more than {} s", limit.as_secs())
    });
    Check { name: "queue".to_owned(), status: if over { "degraded" } else { "ok" }, reason }
}

fn worker(
    alive: &[String],
    stale: &[String],
    able: &BTreeSet<String>,
    needed: &BTreeSet<Option<String>>,
) -> Check {
    let missing: Vec<&str> =
        needed.iter().flatten().filter(|need| !can_do(able, need)).map(String::as_str).collect();
    let reason = if alive.is_empty() && !stale.is_empty() {
        Some(format!("no live worker: the heartbeat of {} stands still", stale.join(", ")))
    } else if alive.is_empty() {
        Some("no live worker".to_owned())
    } else if !missing.is_empty() {
        Some(format!("jobs are queued that no live worker can do: capability {}", missing.join(", ")))
    } else if !stale.is_empty() {
        Some(format!("the heartbeat of {} stands still", stale.join(", ")))
    } else {
        None
    };
    Check { name: "worker".to_owned(), status: if reason.is_none() { "ok" } else { "degraded" }, reason }
}
