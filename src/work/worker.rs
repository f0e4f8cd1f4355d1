//! A **worker**: claims jobs and does them, until it is stopped.
//!
//! Jobs of kinds that wait for different things run in lanes of their own, and what waits for an archive or a manager has
//! room of its own in each project: one that hangs fills the room of the projects that use it and no other's. The worker announces itself in the log; its heartbeat, with what it holds and how its watches go, is
//! presence. It keeps its claims by its heartbeat; a claim whose worker's heartbeat stood still for longer than a lease, by
//! this worker's own monotonic clock, is taken over by naming it. A stop lets running jobs end for a while, then hands
//! them back. A drained worker ends its work and claims none; its watches, which last as long as what they watch, it gives
//! to [`others`] who can take them, and keeps, or takes back, those that nobody else can: no live execution is unwatched
//! while a worker is there that could watch it.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use beampipe_domain::job::Kind;
use beampipe_domain::worker::{Command, Started, Worker};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::lane::{DISCOVER, EXECUTE, Lane, TICK, WATCH};
use self::others::{Others, Takers, WATCH_ROOM};
use super::room::{self, Room};
use super::{Shop, jobs, queue};
use crate::handle::{Context, HandleError};

// How claims change hands.
mod takeover;
// What runs beside what.
mod lane;
// What is heard of other workers.
mod others;

/// What this worker holds, by job.
type Held = Arc<Mutex<HashMap<Uuid, Holding>>>;

struct Holding {
    kind: Kind,
    /// What a worker has to be able to do for it.
    needs: Option<String>,
    stop: CancellationToken,
}

/// What a worker may claim now.
#[derive(Clone, Copy, PartialEq)]
enum May {
    Everything,
    /// Watches that nobody else can take: it is draining.
    Watches,
    Nothing,
}

struct Crew {
    shop: Arc<Shop>,
    id: Arc<str>,
    /// Whether no other process can be working on this log.
    alone: bool,
    lanes: Vec<Lane>,
    held: Held,
    /// Who else could take watches, by the last heartbeats.
    takers: Mutex<Takers>,
    /// Fires when a lane has room again.
    room: Arc<Notify>,
    tasks: TaskTracker,
    /// Ends the watches first and what else runs later.
    stop_watches: CancellationToken,
    stop_jobs: CancellationToken,
}

/// Works until `stop`; `alone` says that no other process can be working on this log.
///
/// A worker that was silent for longer than its lease finds itself declared lost: its claims are others' now, and what it
/// still appends for them is refused. It drops them and starts again as another worker.
pub async fn run(shop: Arc<Shop>, stop: CancellationToken, alone: bool) {
    let mut failures = 0;
    loop {
        match work(shop.clone(), &stop, alone).await {
            Ok(Left::Stopped) => return,
            Ok(Left::Lost) => {
                failures = 0;
                tracing::warn!(worker = %shop.worker_id(), "this worker was declared lost; another one starts in its place");
            }
            Err(error) => {
                failures += 1;
                tracing::error!(%error, "the worker has ended; it is started again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(shop.backoff(failures).min(Duration::from_secs(10))) => {}
                }
            }
        }
        shop.be_another_worker();
    }
}

/// Why a worker ended.
enum Left {
    Stopped,
    Lost,
}

async fn work(shop: Arc<Shop>, stop: &CancellationToken, alone: bool) -> Result<Left, HandleError> {
    let id = shop.worker_id();
    let context = Context::system(&shop.clock, &format!("worker/{id}"));
    let settings = &shop.settings;
    let limit = settings.concurrency * 2 + settings.watch_concurrency;
    let started = Started {
        instance_name: settings.instance_name.clone(),
        host: host_name(),
        pool: settings.pool.clone(),
        capabilities: settings.capabilities.clone(),
        concurrency_limit: u32::try_from(limit).unwrap_or(u32::MAX),
        process_id: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    shop.handle.handle::<Worker>(&id, &context, Command::Start(started)).await?;
    let crew = Crew {
        lanes: vec![
            Lane::new(TICK, 2, false),
            Lane::new(DISCOVER, settings.concurrency, true),
            Lane::new(EXECUTE, settings.concurrency, true),
            Lane::new(WATCH, settings.watch_concurrency, false),
        ],
        held: Held::default(),
        takers: Mutex::default(),
        room: Arc::new(Notify::new()),
        tasks: TaskTracker::new(),
        stop_watches: CancellationToken::new(),
        stop_jobs: CancellationToken::new(),
        id: id.clone(),
        alone,
        shop: shop.clone(),
    };
    crew.beat().await;
    if alone {
        crew.bury_predecessors(&context).await?;
    }
    let mut changes = shop.models.positions();
    let mut beats = tokio::time::interval(Duration::from_secs(settings.heartbeat_seconds));
    let mut others = Others::default();
    loop {
        crew.claim_what_is_ready().await;
        // A job may fall due without any event: look at least twice a second.
        tokio::select! {
            () = stop.cancelled() => break,
            _ = beats.tick() => {
                crew.beat().await;
                match crew.is_lost().await {
                    Ok(false) => {}
                    Ok(true) => {
                        crew.drop_everything().await;
                        return Ok(Left::Lost);
                    }
                    Err(error) => tracing::warn!(%error, "cannot see whether this worker is still taken for alive"),
                }
                if let Err(error) = crew.take_over(&context, &mut others).await {
                    tracing::warn!(%error, "cannot look for lost workers");
                }
                crew.give_watches_away(&others);
            }
            changed = changes.changed() => if changed.is_err() { break },
            () = crew.room.notified() => {}
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
    let handed_back = crew.end().await;
    shop.handle.handle::<Worker>(&id, &context, Command::Stop { handed_back }).await?;
    Ok(Left::Stopped)
}

impl Crew {
    /// Says that this worker is alive, what it holds, and how its watches go.
    async fn beat(&self) {
        let mut kinds: HashMap<&str, u64> = HashMap::new();
        for holding in self.held.lock().values() {
            *kinds.entry(holding.kind.as_str()).or_default() += 1;
        }
        let watches = self.lanes.iter().find(|lane| lane.is_for_watches());
        let facts = json!({
            "role": "worker",
            "active_leases": kinds.values().sum::<u64>(),
            "leases_by_kind": kinds,
            WATCH_ROOM: watches.map_or(0, Lane::free),
            "polls": self.shop.polls.all(),
        });
        self.shop.handle.log().beat(&self.id, facts).await;
    }

    /// Claims as much as the lanes have room for.
    async fn claim_what_is_ready(&self) {
        let may = self.may_claim();
        for lane in &self.lanes {
            if may == May::Nothing || may == May::Watches && !lane.is_for_watches() {
                continue;
            }
            let Some(full) = lane.full() else { continue };
            let now = self.shop.clock.now();
            let capabilities = &self.shop.settings.capabilities;
            // More than there is room for, because some may be held or claimed already.
            let without_room = lane.without_room.load(Relaxed);
            let wanted = 64 + (self.held.lock().len().min(256) + without_room.min(10_000)) as u64;
            let jobs = self.shop.models.jobs();
            let mut ready = match jobs.ready(now, capabilities, Some(lane.kinds), &full, wanted) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::warn!(%error, "cannot see which jobs are ready");
                    return;
                }
            };
            if may == May::Watches {
                let takers = self.takers.lock();
                ready.retain(|row| !takers.can(row.required_capability.as_deref()));
            }
            if !self.alone {
                ready.sort_by_key(|row| self.own_order(row));
            }
            let mut waiting = 0;
            for row in ready {
                if self.held.lock().contains_key(&row.id) {
                    continue;
                }
                if !self.has_room(&row).await {
                    waiting += 1;
                    continue;
                }
                let Some(permit) = lane.permit(row.project_module.as_deref()) else { continue };
                self.claim(row.id, None, permit).await;
            }
            lane.without_room.store(waiting, Relaxed);
        }
    }

    /// Another order in each worker, so that they do not all go for the same job: a claim that loses is an append in vain.
    fn own_order(&self, row: &beampipe_projections::jobs::Job) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (&self.id, row.id).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether the profile of a job's execution has room for it.
    async fn has_room(&self, row: &beampipe_projections::jobs::Job) -> bool {
        let (Some(Kind::Execute), Some(execution)) = (row.parsed_kind(), row.execution_id) else {
            return true;
        };
        match room::of(&self.shop, execution).await {
            Ok(found) => found == Room::Free,
            Err(error) => {
                tracing::warn!(job = %row.id, %error, "cannot see whether there is room for an execution");
                false
            }
        }
    }

    fn may_claim(&self) -> May {
        match self.shop.models.workers().get(&self.id) {
            Ok(Some(worker)) if worker.status == "draining" => May::Watches,
            Ok(Some(worker)) if worker.status != "active" => May::Nothing,
            _ => May::Everything,
        }
    }

    async fn claim(&self, job: Uuid, taken_from: Option<Uuid>, permit: OwnedSemaphorePermit) {
        let claimed = queue::claim(&self.shop, job, taken_from, CancellationToken::new()).await;
        let mut claimed = match claimed {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%job, %error, "a job could not be claimed");
                return;
            }
        };
        let watch = WATCH.contains(&claimed.order.kind);
        claimed.stop = if watch { self.stop_watches.child_token() } else { self.stop_jobs.child_token() };
        let holding = Holding {
            kind: claimed.order.kind,
            needs: claimed.order.required_capability.clone(),
            stop: claimed.stop.clone(),
        };
        self.held.lock().insert(claimed.id, holding);
        let (shop, held, room) = (self.shop.clone(), self.held.clone(), self.room.clone());
        self.tasks.spawn(async move {
            do_one(&shop, &claimed).await;
            held.lock().remove(&claimed.id);
            drop(permit);
            room.notify_one();
        });
    }

    /// Whether somebody has declared this worker lost.
    async fn is_lost(&self) -> Result<bool, HandleError> {
        Ok(self.shop.handle.load::<Worker>(&self.id).await?.state == Worker::Ended)
    }

    /// Ends what runs: none of it is this worker's any more.
    async fn drop_everything(self) {
        self.stop_watches.cancel();
        self.stop_jobs.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(10), self.tasks.wait()).await.is_err() {
            tracing::warn!("some jobs of a lost worker did not stop; what they append is refused");
        }
    }

    /// Lets running jobs end, then hands the rest back; answers how many were handed back.
    async fn end(self) -> u64 {
        let watches = self.held.lock().values().filter(|one| WATCH.contains(&one.kind)).count() as u64;
        self.stop_watches.cancel();
        self.tasks.close();
        let patience = Duration::from_secs(self.shop.settings.drain_seconds);
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_ok() {
            return watches;
        }
        let rest = self.held.lock().len() as u64;
        self.stop_jobs.cancel();
        if tokio::time::timeout(Duration::from_secs(10), self.tasks.wait()).await.is_err() {
            tracing::warn!("some jobs did not stop; their leases run out");
        }
        watches + rest
    }
}

async fn do_one(shop: &Shop, job: &jobs::Claimed) {
    let started = Instant::now();
    let kind = job.order.kind;
    let ended = match kind {
        // A watch stops by itself between two looks; a tick is short.
        Kind::DimPoll | Kind::SlurmPollTick | Kind::DiscoverBatch => jobs::run(shop, job).await,
        _ => tokio::select! {
            ended = jobs::run(shop, job) => ended,
            () = job.stop.cancelled() => Err(super::JobError::HandBack("the worker stops".into())),
        },
    };
    let duration = started.elapsed();
    shop.metrics.job_duration_seconds.with_label_values(&[kind.as_str()]).observe(duration.as_secs_f64());
    if let Err(error) = &ended {
        tracing::warn!(job = %job.id, %kind, attempt = job.attempt, %error, "a job did not complete");
    }
    let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // What was done has been recorded by its own commands; only the job's own end is at stake here.
    for attempt in 0.. {
        match queue::settle(shop, job, duration_ms, ended.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(job = %job.id, %error, "the end of a job could not be recorded"),
        }
        // A log that refuses appends (a full disk) takes them again by itself.
        if job.stop.is_cancelled() && attempt > 3 {
            return;
        }
        tokio::time::sleep(shop.backoff(attempt).min(Duration::from_secs(10))).await;
    }
}

/// The name of this machine.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}
