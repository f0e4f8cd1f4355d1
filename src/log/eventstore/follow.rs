//! The **reader** over `$all`: the one task that learns of events in their order and tells everybody else.
//!
//! It reads on from the last event that it has, which the server sends again first: so every step proves that the log still
//! has it. Where it has not (a restored copy), the log is read anew from its beginning, quietly, and then the hub is taken
//! back to its end: whoever has seen more is told so. What is new is verified, indexed, and then published to the hub; those
//! who wait for their own append are told last. There is nothing to resume and nothing to miss: after any failure the same
//! read is asked again. Between reads it waits for the bell that our own appends ring, or a moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use eventstore::RecordedEvent;

use super::envelope::{self, Ours};
use super::index::{Keeper, Step};
use super::{Failure, Shared};
use crate::event::Position;
use crate::event::Recorded;
use crate::leaf::Interner;
use crate::sqlite::heads::{Heads, KnownHead};
use crate::sqlite::lock::WriterLock;
use crate::{Head, ReadError, StreamHead, redaction};

/// How many events one step takes.
const STEP: usize = 1_000;
/// How long the reader waits after a step that brought something, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// How long failures go on before appends are refused.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The last event that was read.
#[derive(Clone, Copy)]
pub(super) struct Last {
    pub(super) position: eventstore::Position,
    pub(super) id: uuid::Uuid,
    /// Beats and the server's own events are removed by its scavenges; ours never are.
    pub(super) ours: bool,
}

/// Why a step read nothing.
enum Stop {
    Failed(ReadError),
    /// The last event is not in the log any more.
    Changed,
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self::Failed(error)
    }
}

pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) keeper: Option<Keeper>,
    /// Nobody else writes to the index before this one has ended.
    pub(super) _lock: WriterLock,
    pub(super) last: Option<Last>,
    /// Set while the log is read anew: up to where it is as it was, and what was read of it.
    pub(super) anew: Option<(Position, Head)>,
    /// The latest time of recording so far.
    pub(super) latest: Option<DateTime<Utc>>,
    pub(super) texts: Interner,
}

impl Reader {
    /// Reads until nothing is left.
    pub(super) async fn catch_up(&mut self) -> Result<(), ReadError> {
        let mut told = Instant::now();
        loop {
            match self.step().await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Changed) => {
                    return Err(ReadError::Unavailable("the log changes while it is read".into()));
                }
            }
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                tracing::info!(position = self.shared.hub.head().position, "the log's index is being built");
            }
        }
    }

    /// Follows until the log is closed.
    pub(super) async fn run(mut self) {
        let mut pause = PAUSE.0;
        let mut failing: Option<Instant> = None;
        while !self.shared.has_ended() {
            let read = match self.step().await {
                Err(Stop::Changed) => self.begin_anew().await.map(|()| 1),
                Err(Stop::Failed(error)) => Err(error),
                Ok(read) => Ok(read),
            };
            match read {
                Ok(read) => {
                    if read == 0 {
                        self.end_anew();
                        *self.shared.heard.lock() = Instant::now();
                    }
                    failing = None;
                    if self.anew.is_none() {
                        self.shared.back();
                    }
                    pause = if read > 0 { PAUSE.0 } else { (pause * 2).min(PAUSE.1) };
                }
                Err(ReadError::Unavailable(reason)) => {
                    let since = *failing.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE && self.anew.is_none() {
                        self.shared.away(reason);
                    }
                    pause = PAUSE.1 * 2;
                }
                Err(error) => return self.shared.damaged(error.to_string()),
            }
            let _ = tokio::time::timeout(pause, self.shared.bell.notified()).await;
        }
    }

    /// The log has lost what we had read of it: finds out what is left, and starts from its beginning.
    async fn begin_anew(&mut self) -> Result<(), ReadError> {
        let shared = Arc::clone(&self.shared);
        // The latest first. Where one is as it was, so are all before it.
        let recent = shared.hub.recent();
        let (mut low, mut high) = (0, recent.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match shared.is_there(recent[middle]).await? {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        let kept = recent.get(low).map_or(0, |known| known.position);
        let seen = shared.hub.head().position;
        tracing::error!(
            seen,
            kept,
            "the log has lost events that were read: it is read anew from its beginning"
        );
        shared.away("it has lost events that were read, and is read anew".into());
        shared.anew.store(true, Ordering::Release);
        self.anew = Some((kept, Head::default()));
        (self.last, self.latest) = (None, None);
        let path = shared.index_path.clone();
        let made = tokio::task::spawn_blocking(move || Keeper::create(&path)).await;
        let made = made.map_err(|error| error.to_string()).and_then(|made| made.map_err(|e| e.to_string()));
        self.keeper = Some(made.map_err(ReadError::Unavailable)?);
        shared.notes.clear();
        *shared.heads.lock() = Heads::default();
        Ok(())
    }

    fn end_anew(&mut self) {
        if let Some((kept, head)) = self.anew.take() {
            self.shared.lookup.reopen();
            self.shared.anew.store(false, Ordering::Release);
            self.shared.hub.rewind(kept, head);
            self.shared.moved.send_replace(head.position);
        }
    }

    /// Reads on. How many events that were, ours or not.
    async fn step(&mut self) -> Result<usize, Stop> {
        let from = self.last.map(|last| last.position);
        let read = self.shared.link.read_all(from, STEP + 1, |_| true).await;
        let mut events = read.map_err(ReadError::from)?.into_iter().peekable();
        if let Some(last) = self.last {
            match events.peek() {
                Some(first) if first.position == last.position && first.id == last.id => {
                    events.next();
                }
                Some(first) if !last.ours && first.position > last.position => {}
                None if !last.ours => {}
                _ => return Err(Stop::Changed),
            }
        }
        Ok(self.take(events).await?)
    }

    async fn take(&mut self, events: impl Iterator<Item = RecordedEvent>) -> Result<usize, ReadError> {
        let mut step = Step::default();
        let mut read = 0;
        let (mut last, mut latest) = (self.last, self.latest);
        for event in events {
            read += 1;
            last = Some(Last { position: event.position, id: event.id, ours: false });
            if self.shared.beats.meet(&event, &self.shared.link.namespace) {
                continue;
            }
            let namespace = &self.shared.link.namespace;
            let decoded = envelope::decode(&event, namespace, &mut self.texts)?;
            let Some(Ours { event: mut ours, redacts }) = decoded else {
                if envelope::name_of(&event, namespace).is_some() {
                    tracing::warn!(stream = event.stream_id(), position = %event.position, "a foreign event is left out");
                }
                continue;
            };
            match latest {
                Some(latest) if latest > ours.recorded_at => {
                    ours.recorded_at = latest;
                    step.late.push((ours.position, latest));
                }
                _ => latest = Some(ours.recorded_at),
            }
            if let Some(redacted) = redacts
                && redaction::named_by(&ours).contains(&redacted)
            {
                step.redactions.push((redacted, ours.position));
            }
            last = last.map(|last| Last { ours: true, ..last });
            step.events.push(Arc::new(ours));
        }
        step.latest = latest;
        if !step.events.is_empty() {
            self.check_chains(&step.events)?;
            self.publish(step).await?;
        }
        (self.last, self.latest) = (last, latest);
        Ok(read)
    }

    /// Where the event before is known, the next one names it.
    fn check_chains(&self, events: &[Arc<Recorded>]) -> Result<(), ReadError> {
        let mut heads = self.shared.heads.lock();
        for event in events {
            match heads.get(&event.stream) {
                Some(known) if known.position < event.position => {
                    let follows = event.revision == known.head.revision + 1;
                    if follows && event.prev_hash != Some(known.head.hash) {
                        return Err(ReadError::Damaged {
                            place: format!("stream {} revision {}", event.stream, event.revision),
                            what: "it does not name the event before it".into(),
                        });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn publish(&mut self, mut step: Step) -> Result<(), ReadError> {
        let Some(mut keeper) = self.keeper.take() else {
            return Err(ReadError::Damaged { place: "the index".into(), what: "its writer is gone".into() });
        };
        let path = self.shared.index_path.clone();
        let indexed = tokio::task::spawn_blocking(move || {
            let applied = keeper.apply(&step, &path);
            (keeper, step, applied)
        });
        let applied;
        (self.keeper, step, applied) = match indexed.await {
            Ok((keeper, step, applied)) => (Some(keeper), step, applied),
            Err(error) => {
                return Err(ReadError::Damaged { place: "the index".into(), what: error.to_string() });
            }
        };
        applied?;

        let shared = &self.shared;
        shared.notes.take(&step);
        // A redaction counts from its record on, for what the ring keeps and for what comes with it.
        for (redacted, at) in &step.redactions {
            shared.withhold(*redacted, *at).await;
        }
        let events: Vec<Arc<Recorded>> = step
            .events
            .into_iter()
            .map(|event| match shared.notes.redacted(event.id) {
                Some(_) => Arc::new(redaction::without_data(&event)),
                None => event,
            })
            .collect();
        {
            let mut heads = shared.heads.lock();
            for event in &events {
                let head = StreamHead { revision: event.revision, hash: event.hash };
                heads.set(&event.stream, KnownHead { head, position: event.position });
            }
            heads.trim(u64::MAX);
        }
        if let (Some((_, head)), Some(last)) = (&mut self.anew, events.last()) {
            *head = Head { position: last.position, hash: last.hash };
            return Ok(());
        }
        shared.hub.publish(&events);
        shared.moved.send_replace(shared.hub.head().position);
        shared.hub.wake(&events);
        shared.awaited.tell(&events);
        Ok(())
    }
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(failure.reason())
    }
}
