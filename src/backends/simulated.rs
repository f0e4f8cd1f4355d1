//! A **simulated** backend, for load tests and named so wherever it appears: no process runs, no data is touched.
//!
//! What happens to a session depends on the seed and the session's name only, so a load test repeats. Its sessions
//! live in a [`World`], which several processes may share, and keep no graph.

use super::evidence::{DropState, ErrorDrop, LogLine};
use super::graph::PhysicalGraph;
use super::{Backend, Created, Evidence, Look, LookError, Progress, State, Step, SubmitError};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;
use std::time::Duration;

mod world;
pub use world::{Session, World};

/// How the simulated world behaves. Probabilities are in `0.0..=1.0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long every answer takes.
    pub latency_ms: u64,
    /// How long a run lasts from its deployment.
    pub run_ms: u64,
    /// Of a run to end as failed.
    pub failure_probability: f64,
    /// Of the answer to a step to be lost; every second of those steps happened all the same.
    pub loss_probability: f64,
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { latency_ms: 5, run_ms: 1_000, failure_probability: 0.0, loss_probability: 0.0, seed: 0 }
    }
}

/// A view of a [`World`] under some [`Settings`].
#[derive(Debug, Clone)]
pub struct Simulated {
    world: World,
    settings: Settings,
    tries: Tries,
}

/// How often each step of each session was tried in this process.
#[derive(Debug, Clone)]
pub struct Tries(Arc<Mutex<lru::LruCache<(String, Step), u32>>>);

impl Default for Tries {
    fn default() -> Self {
        let most = std::num::NonZeroUsize::MIN.saturating_add(65_535);
        Self(Arc::new(Mutex::new(lru::LruCache::new(most))))
    }
}

impl Tries {
    /// Tries before this one.
    fn count(&self, session: &str, step: Step) -> u32 {
        let mut tries = self.0.lock();
        let count = tries.get_or_insert_mut((session.to_owned(), step), || 0);
        *count += 1;
        *count - 1
    }
}

impl Simulated {
    pub fn new(world: World, settings: Settings) -> Self {
        Self { world, settings, tries: Tries::default() }
    }

    /// With the tries that were counted before.
    pub fn counting(self, tries: Tries) -> Self {
        Self { tries, ..self }
    }

    /// A number in `0.0..1.0` that depends on the seed, the session and the purpose.
    fn drawn(&self, session: &str, purpose: &str) -> f64 {
        let digest = Sha256::new()
            .chain_update(self.settings.seed.to_be_bytes())
            .chain_update(purpose)
            .chain_update([0])
            .chain_update(session)
            .finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        // 53 bits are what a double holds exactly.
        (u64::from_be_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
    }

    async fn answer_late(&self) {
        tokio::time::sleep(Duration::from_millis(self.settings.latency_ms)).await;
    }

    /// Does a step, unless it is drawn to be lost on the way there; loses its answer, when it is drawn to be.
    async fn step<T>(
        &self,
        step: Step,
        session: &str,
        act: impl FnOnce(&World) -> Result<T, SubmitError>,
    ) -> Result<T, SubmitError> {
        self.answer_late().await;
        // Another try is another draw, or a step that was lost once would be lost for ever.
        let tried = self.tries.count(session, step);
        let purpose =
            if tried == 0 { format!("loss of {step}") } else { format!("loss of {step}, try {tried}") };
        let drawn = self.drawn(session, &purpose);
        let lost = drawn < self.settings.loss_probability;
        if lost && drawn >= self.settings.loss_probability / 2.0 {
            return Err(unknown(step));
        }
        let done = act(&self.world);
        if lost { Err(unknown(step)) } else { done }
    }

    fn state(&self, name: &str, session: &Session) -> State {
        let run = Duration::from_millis(self.settings.run_ms);
        match session.running_for {
            _ if session.cancelled => State::Cancelled,
            None if session.drops == 0 => State::Pristine,
            None => State::Building,
            Some(elapsed) if elapsed < run => State::Running,
            Some(_) if self.drawn(name, "failure") < self.settings.failure_probability => State::Failed,
            Some(_) => State::Finished,
        }
    }

    fn find(&self, name: &str) -> Result<Option<(Session, State)>, LookError> {
        let found = self.world.find(name).map_err(|error| unseen(&error))?;
        Ok(found.map(|session| (session, self.state(name, &session))))
    }
}

fn unseen(error: &io::Error) -> LookError {
    LookError::Unreachable { peer: "the simulated world".into(), detail: error.to_string(), cause: None }
}

/// A step that could not even be tried, or whose session is not there.
fn undone(step: Step) -> impl Fn(io::Error) -> SubmitError {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => refused(step, "no such session"),
        _ => SubmitError::NotSent { step, detail: format!("the simulated world: {error}"), cause: None },
    }
}

fn unknown(step: Step) -> SubmitError {
    SubmitError::Unknown { step, detail: "the simulated answer was lost".into(), cause: None }
}

fn refused(step: Step, detail: &str) -> SubmitError {
    SubmitError::Refused { step, status: 555, kinds: vec!["Simulated".into()], detail: detail.into() }
}

#[async_trait]
impl Backend for Simulated {
    async fn forget(&self, session: &str) -> Result<(), SubmitError> {
        self.step(Step::Forget, session, |world| {
            match world.forget(session).map_err(undone(Step::Forget))? {
                true => Ok(()),
                false => Err(refused(Step::Forget, "no such session")),
            }
        })
        .await
    }

    async fn create(&self, session: &str) -> Result<Created, SubmitError> {
        self.step(Step::Create, session, |world| match world.take(session).map_err(undone(Step::Create))? {
            true => Ok(Created::New),
            false => Ok(Created::Existed),
        })
        .await
    }

    async fn append(&self, session: &str, physical_graph: Bytes) -> Result<(), SubmitError> {
        let graph = PhysicalGraph::parse(&physical_graph);
        self.step(Step::Append, session, |world| {
            let graph = graph.map_err(|error| refused(Step::Append, &error.to_string()))?;
            match world.fill(session, graph.len()).map_err(undone(Step::Append))? {
                true => Ok(()),
                false => Err(refused(Step::Append, "there is no such session, or it has a graph")),
            }
        })
        .await
    }

    async fn deploy(&self, session: &str, _roots: &[String]) -> Result<(), SubmitError> {
        self.step(Step::Deploy, session, |world| {
            match world.deploy(session).map_err(undone(Step::Deploy))? {
                true => Ok(()),
                false => Err(unknown(Step::Deploy)),
            }
        })
        .await
    }

    async fn look(&self, session: &str) -> Result<Look, LookError> {
        self.answer_late().await;
        Ok(match self.find(session)? {
            None => Look::Absent,
            Some((_, state)) => {
                let raw = serde_json::json!({ "simulated": state });
                Look::Present { state, raw }
            }
        })
    }

    async fn size(&self, session: &str) -> Result<usize, LookError> {
        self.answer_late().await;
        Ok(self.find(session)?.map_or(0, |(session, _)| session.drops))
    }

    async fn progress(&self, session: &str) -> Result<Progress, LookError> {
        self.answer_late().await;
        let Some((found, state)) = self.find(session)? else { return Ok(Progress::default()) };
        let total = found.drops;
        let share = match (&state, found.running_for) {
            (State::Finished, _) => 1.0,
            (_, Some(elapsed)) => elapsed.as_secs_f64() * 1_000.0 / (self.settings.run_ms.max(1) as f64),
            (_, None) => 0.0,
        };
        let failed = usize::from(state == State::Failed);
        let completed = ((total as f64 * share.min(1.0)) as usize).min(total.saturating_sub(failed));
        let running = if share > 0.0 && share < 1.0 { total.saturating_sub(completed).min(1) } else { 0 };
        Ok(Progress { total, completed, running, failed })
    }

    async fn cancel(&self, session: &str) -> Result<(), SubmitError> {
        let running = self.find(session).ok().flatten().map(|(_, state)| state);
        self.step(Step::Cancel, session, |world| match running {
            Some(State::Running | State::Cancelled) => {
                world.cancel(session).map(|_| ()).map_err(undone(Step::Cancel))
            }
            _ => Err(refused(Step::Cancel, "the session does not run")),
        })
        .await
    }

    async fn evidence(&self, session: &str, physical_graph: &[u8]) -> Result<Evidence, LookError> {
        let progress = self.progress(session).await?;
        let state = self.find(session)?.map_or(State::Other("absent".into()), |(_, state)| state);
        let graph = PhysicalGraph::parse(physical_graph).unwrap_or_default();
        let last = graph.drops.last().filter(|_| progress.failed > 0);
        let error_drops: Vec<ErrorDrop> = last
            .map(|drop| ErrorDrop {
                oid: drop.oid.clone(),
                name: drop.name.clone(),
                dropclass: drop.dropclass.clone(),
                culprit: true,
                status: DropState { status: 3, exec_status: None },
                log: vec![LogLine {
                    time: String::new(),
                    level: "ERROR".into(),
                    module: "simulated".into(),
                    message: "a simulated failure".into(),
                }],
                log_missing: None,
            })
            .into_iter()
            .collect();
        Ok(Evidence {
            session_id: session.to_owned(),
            state,
            error_drops_count: progress.failed,
            progress,
            error_drops,
        })
    }
}
