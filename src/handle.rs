//! Carries a command out: loads the stream, folds it, decides, appends what was decided with what was loaded as the
//! expectation, and decides again when somebody else was quicker.
//!
//! A folded stream is cached with its revision and hash, so that the next command on it reads only what is new. Event id,
//! salt and time are drawn once per decision: an append whose outcome is unknown is settled by sending the same bytes
//! again, which the log answers with what it has.

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use beampipe_domain::{Aggregate, Rejection};
use beampipe_log::{
    AppendError, Appended, Direction, Expected, Log, NewEvent, Position, ReadError, StreamHead,
};
use chrono::{DateTime, Utc};
use lru::LruCache;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::clock::Clock;
use crate::codec::{self, DecodeError};

/// How many folded streams are kept.
const CACHED_STREAMS: usize = 4096;
/// How often a decision is made again before the caller hears of the contention.
const MAX_DECISIONS: usize = 64;
/// How many events of a stream are read at once.
const READ_CHUNK: usize = 1000;

/// Who asks, and what it came from.
#[derive(Clone, Debug)]
pub struct Context {
    /// `user:<uuid>`, `key:<uuid>` or `system:<role>/<id>`.
    pub actor: String,
    pub correlation_id: Uuid,
    pub causation_id: Option<Uuid>,
}

impl Context {
    /// For what the service does by itself: every such command is the start of a story of its own.
    pub fn system(clock: &Clock, role: &str) -> Self {
        Self { actor: format!("system:{role}"), correlation_id: clock.id(), causation_id: None }
    }

    /// The same story, told on because of `event`.
    pub fn because_of(&self, event: Uuid) -> Self {
        Self { causation_id: Some(event), ..self.clone() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The decider's no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The stream is not at the revision that the caller had seen.
    #[error("stream {stream} has gone on")]
    Outdated { stream: String },
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl HandleError {
    /// The code of the rejection, if it is one.
    pub fn rejection(&self) -> Option<&'static str> {
        match self {
            Self::Rejected(rejection) => Some(rejection.code),
            _ => None,
        }
    }
}

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Done<A: Aggregate> {
    pub state: A,
    /// Empty when the command changed nothing.
    pub events: Vec<A::Event>,
    pub head: Option<StreamHead>,
    /// Up to where a read model has to be to contain it.
    pub position: Position,
    /// The id of the last event that was appended.
    pub event_id: Option<Uuid>,
}

/// A folded stream.
#[derive(Clone, Debug)]
pub struct Loaded<A> {
    pub state: A,
    pub head: Option<StreamHead>,
    /// When its first event happened.
    pub created_at: Option<DateTime<Utc>>,
    /// The position of its last event.
    pub position: Position,
}

impl<A: Default> Default for Loaded<A> {
    fn default() -> Self {
        Self { state: A::default(), head: None, created_at: None, position: 0 }
    }
}

type Cache = Mutex<LruCache<String, Arc<dyn Any + Send + Sync>>>;

/// The way of every command into the log.
#[derive(Clone)]
pub struct Handle {
    log: Arc<dyn Log>,
    clock: Clock,
    cache: Arc<Cache>,
    /// How often the log had lost its end when the cache was begun.
    rewinds: Arc<AtomicU64>,
}

impl Handle {
    pub fn new(log: Arc<dyn Log>, clock: Clock) -> Self {
        let size = NonZeroUsize::new(CACHED_STREAMS).expect("the size is not zero");
        let rewinds = Arc::new(AtomicU64::new(log.rewinds()));
        Self { log, clock, cache: Arc::new(Mutex::new(LruCache::new(size))), rewinds }
    }

    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Folds the stream of `id` as it is now.
    pub async fn load<A: Aggregate>(&self, id: &str) -> Result<Loaded<A>, HandleError> {
        let stream = stream_name::<A>(id);
        let mut loaded = self.cached::<A>(&stream).unwrap_or_default();
        loop {
            let from = loaded.head.map_or(0, |head| head.revision + 1);
            let events = self.log.read_stream(&stream, from, Direction::Forward, READ_CHUNK).await?;
            let last_chunk = events.len() < READ_CHUNK;
            if let (Some(head), Some(next)) = (loaded.head, events.first())
                && next.prev_hash != Some(head.hash)
            {
                // The log lost its end and went on from elsewhere: what is cached never happened.
                self.cache.lock().pop(&stream);
                loaded = Loaded::default();
                continue;
            }
            for recorded in events {
                let event = codec::decode(&recorded)?;
                if let Some(event) = A::pick(&event) {
                    loaded.state = loaded.state.evolve(event);
                }
                loaded.head = Some(StreamHead { revision: recorded.revision, hash: recorded.hash });
                loaded.created_at.get_or_insert(recorded.occurred_at);
                loaded.position = recorded.position;
            }
            if last_chunk {
                break;
            }
        }
        if loaded.head.is_some() {
            self.cache.lock().put(stream, Arc::new(loaded.clone()));
        }
        Ok(loaded)
    }

    /// Carries `command` out on the stream of `id`.
    pub async fn handle<A: Aggregate>(
        &self,
        id: &str,
        context: &Context,
        command: A::Command,
    ) -> Result<Done<A>, HandleError>
    where
        A::Command: Clone,
    {
        self.decide_with::<A>(id, context, |_| Ok(command.clone())).await
    }

    /// Carries a command out that is made from the present state, which may reject by itself.
    pub async fn decide_with<A: Aggregate>(
        &self,
        id: &str,
        context: &Context,
        command: impl Fn(&Loaded<A>) -> Result<A::Command, Rejection>,
    ) -> Result<Done<A>, HandleError> {
        let stream = stream_name::<A>(id);
        let mut decisions = 0;
        // What is cached is tried first: the log refuses an append on it if it is old, and then the stream is read.
        let mut cached = self.cached::<A>(&stream);
        loop {
            let (loaded, fresh) = match cached.take() {
                Some(loaded) => (loaded, false),
                None => (self.load::<A>(id).await?, true),
            };
            decisions += 1;
            let decided = match command(&loaded).and_then(|command| loaded.state.decide(command)) {
                // A no, or nothing to do, may come from an old fold: look before answering.
                Err(_) if !fresh => continue,
                Ok(events) if events.is_empty() && !fresh => continue,
                decided => decided?,
            };
            if decided.is_empty() {
                let Loaded { state, head, position, .. } = loaded;
                return Ok(Done { state, events: vec![], head, position, event_id: None });
            }
            let (state, new) = self.draw(id, context, loaded.state.clone(), &decided);
            let event_id = new.last().map(|event| event.id);
            let created_at = loaded.created_at.or_else(|| new.first().map(|event| event.occurred_at));
            match self.append(&stream, Expected::from(loaded.head), new).await {
                Ok(appended) => {
                    let Appended { head, position, .. } = appended;
                    let now = Loaded { state: state.clone(), head: Some(head), created_at, position };
                    self.cache.lock().put(stream, Arc::new(now));
                    return Ok(Done { state, events: decided, head: Some(head), position, event_id });
                }
                Err(AppendError::Conflict { actual, .. }) if decisions < MAX_DECISIONS => {
                    // A stream only grows, unless the log lost its end: then what is cached never happened.
                    let known = loaded.head.map(|head| head.revision);
                    if actual.map(|head| head.revision) <= known {
                        self.cache.lock().pop(&stream);
                    }
                }
                Err(AppendError::Conflict { stream, .. }) => return Err(HandleError::Outdated { stream }),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn cached<A: Aggregate>(&self, stream: &str) -> Option<Loaded<A>> {
        // A state that was folded from what a failover lost never was: deciding on it would acknowledge what is not there.
        let rewinds = self.log.rewinds();
        if self.rewinds.swap(rewinds, Ordering::AcqRel) != rewinds {
            self.cache.lock().clear();
        }
        let cached = self.cache.lock().get(stream)?.clone();
        cached.downcast_ref::<Loaded<A>>().cloned()
    }

    /// Draws ids, salts and the time of a decision.
    fn draw<A: Aggregate>(
        &self,
        id: &str,
        context: &Context,
        state: A,
        decided: &[A::Event],
    ) -> (A, Vec<NewEvent>) {
        let occurred_at = self.clock.now();
        let mut new = Vec::with_capacity(decided.len());
        let state = decided.iter().fold(state, |state, event| {
            let state = state.evolve(event);
            let encoded = codec::encode(&event.clone().into());
            new.push(NewEvent {
                id: self.clock.id(),
                event_type: encoded.event_type.to_owned(),
                schema_version: encoded.schema_version,
                occurred_at,
                actor: context.actor.clone(),
                correlation_id: context.correlation_id,
                causation_id: context.causation_id,
                tags: state.tags(id, event),
                data: encoded.data,
                salt: self.clock.random(),
            });
            state
        });
        (state, new)
    }

    /// Appends; an unknown outcome is settled by the same bytes once more.
    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        new: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        match self.log.append(stream, expected, new.clone()).await {
            Err(AppendError::Unknown(reason)) => {
                tracing::warn!(stream, reason, "the outcome of an append is unknown; asking the log");
                self.log.append(stream, expected, new).await
            }
            outcome => outcome,
        }
    }
}

/// The name of the stream of `id`.
pub fn stream_name<A: Aggregate>(id: &str) -> String {
    format!("{}-{id}", A::CATEGORY)
}
