//! One tail, many subscribers.
//!
//! The hub keeps the latest events of a log in a ring that all subscribers share, and knows who waits for what. Publishing
//! costs a writer the same however many listen: a subscriber that is behind the ring reads the log instead, at its own pace,
//! and owns nothing but its checkpoint. An append wakes those whose stream, tag or correlation it carries and nobody else.
//!
//! Invariant: whatever lies after `floor` and up to `head` is in the ring, so a follower is either served from the ring
//! without a gap or sent to the log. Every engine feeds one hub, in order of position.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::event::{Position, Recorded};
use crate::{Batch, Direction, Filter, Follow, Head, Log, Page, ReadError};

/// How many events the ring keeps at most.
const RING_EVENTS: usize = 16_384;
/// How many bytes of data the ring keeps at most.
const RING_BYTES: usize = 12 * 1024 * 1024;
/// How many events of the ring one look examines, so that nobody holds its lock for long.
const LOOK: usize = 2_048;
/// How often a follower whose filter matches nothing moves its checkpoint.
const MOVE_ON: Duration = Duration::from_secs(1);

/// Where a follower reads what is no longer in the ring.
#[async_trait::async_trait]
pub trait Source: Send + Sync + 'static {
    async fn page(&self, from: Position, limit: usize, filter: &Filter) -> Result<Page, ReadError>;

    /// How long a follower that waits goes without looking into the log by itself. `None` where the hub hears of
    /// every event; an engine that opens a log which another process writes names a time.
    fn poll_every(&self) -> Option<Duration> {
        None
    }
}

#[async_trait::async_trait]
impl<L: Log> Source for L {
    async fn page(&self, from: Position, limit: usize, filter: &Filter) -> Result<Page, ReadError> {
        self.read_all(from, Direction::Forward, limit, filter).await
    }
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Recorded>>,
    bytes: usize,
    /// Everything after this position, up to the head, is in `events`.
    floor: Position,
    head: Head,
}

fn weight(event: &Recorded) -> usize {
    512 + event.data.as_ref().map_or(0, bytes::Bytes::len)
}

/// What the ring can say about the time after a checkpoint.
#[derive(Debug)]
pub enum Recent {
    /// The matching events, how far was examined, and whether that is the head.
    Within { events: Vec<Arc<Recorded>>, through: Position, at_end: bool },
    /// The ring starts later than that.
    Behind { head: Position },
}

/// The tail of one log and those who wait for it.
#[derive(Debug)]
pub struct Hub {
    ring: RwLock<Ring>,
    /// Those who want everything, or a category: every append wakes them.
    everyone: Notify,
    /// Those who want one stream, tag or correlation.
    seats: Mutex<HashMap<Filter, Arc<Notify>>>,
    /// Raised whenever subscriptions must look at the log again instead of trusting the ring.
    disturbed: Mutex<u64>,
    /// For each time the log lost its end: up to where it stayed as it was.
    rewinds: RwLock<Vec<Position>>,
}

impl Hub {
    /// A hub over a log that ends at `head`.
    pub fn new(head: Head) -> Self {
        Self {
            ring: RwLock::new(Ring { events: VecDeque::new(), bytes: 0, floor: head.position, head }),
            everyone: Notify::new(),
            seats: Mutex::default(),
            disturbed: Mutex::default(),
            rewinds: RwLock::default(),
        }
    }

    /// The last position that was published.
    pub fn head(&self) -> Head {
        self.ring.read().head
    }

    /// Adds durable events, in order of position, all after the head. Wakes nobody: acknowledge first, then
    /// [`Hub::wake`].
    pub fn publish(&self, events: &[Arc<Recorded>]) {
        let Some(last) = events.last() else { return };
        let mut ring = self.ring.write();
        ring.head = Head { position: last.position, hash: last.hash };
        for event in events {
            ring.bytes += weight(event);
            ring.events.push_back(Arc::clone(event));
        }
        while ring.events.len() > RING_EVENTS || (ring.bytes > RING_BYTES && ring.events.len() > 1) {
            let Some(oldest) = ring.events.pop_front() else { break };
            ring.bytes -= weight(&oldest);
            ring.floor = oldest.position;
        }
    }

    /// Moves the head on without the events: followers read them from the log. For bulk restores and for engines that
    /// learn of positions before they have the events.
    pub fn skip_to(&self, head: Head) {
        let mut ring = self.ring.write();
        ring.events.clear();
        ring.bytes = 0;
        ring.floor = head.position;
        ring.head = head;
        drop(ring);
        self.everyone.notify_waiters();
        for seat in self.seats.lock().values() {
            seat.notify_waiters();
        }
    }

    /// Takes the head back to where the log really ends, after it lost its end: a restored copy, or a standby that had not
    /// heard of everything. What is up to `kept` is as it was; whoever has seen more is told so and ends.
    pub fn rewind(&self, kept: Position, head: Head) {
        self.rewinds.write().push(kept);
        self.skip_to(head);
    }

    /// How often the log has lost its end.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.read().len() as u64
    }

    /// Position and hash of what the ring has, the latest first.
    pub fn recent(&self) -> Vec<Head> {
        let ring = self.ring.read();
        ring.events.iter().rev().map(|event| Head { position: event.position, hash: event.hash }).collect()
    }

    /// Replaces an event of the ring, if it is there, after its redaction.
    pub fn replace(&self, event: &Arc<Recorded>) {
        let mut ring = self.ring.write();
        if let Ok(index) = ring.events.binary_search_by_key(&event.position, |e| e.position) {
            ring.events[index] = Arc::clone(event);
        }
    }

    /// Wakes those who wait for any of `events`.
    pub fn wake(&self, events: &[Arc<Recorded>]) {
        self.everyone.notify_waiters();
        let seats = self.seats.lock();
        if seats.is_empty() {
            return;
        }
        let wake = |filter: Filter| {
            if let Some(seat) = seats.get(&filter) {
                seat.notify_waiters();
            }
        };
        for event in events {
            wake(Filter::Stream(Arc::clone(&event.stream)));
            wake(Filter::Correlation(event.correlation_id));
            for tag in &event.tags {
                wake(Filter::Tag(Arc::clone(tag)));
            }
        }
    }

    /// Breaks every subscription's trust in the ring once, as a reconnect does; they go on from their checkpoints.
    pub fn disturb(&self) {
        *self.disturbed.lock() += 1;
        self.everyone.notify_waiters();
        for seat in self.seats.lock().values() {
            seat.notify_waiters();
        }
    }

    /// Up to `max` matching events after `checkpoint`.
    pub fn after(&self, checkpoint: Position, filter: &Filter, max: usize) -> Recent {
        let ring = self.ring.read();
        if checkpoint < ring.floor {
            return Recent::Behind { head: ring.head.position };
        }
        let start = ring.events.partition_point(|event| event.position <= checkpoint);
        let mut events = Vec::new();
        let mut through = checkpoint;
        for (examined, event) in ring.events.range(start..).enumerate() {
            if events.len() == max || examined == LOOK {
                return Recent::Within { events, through, at_end: false };
            }
            if filter.matches(event) {
                events.push(Arc::clone(event));
            }
            through = event.position;
        }
        Recent::Within { events, through: through.max(ring.head.position), at_end: true }
    }

    /// Every event of the ring after `checkpoint`, or `None` when the ring starts later. For engines whose indexes
    /// lag behind their log.
    pub fn since(&self, checkpoint: Position, most: usize) -> Option<Vec<Arc<Recorded>>> {
        let ring = self.ring.read();
        if checkpoint < ring.floor {
            return None;
        }
        let start = ring.events.partition_point(|event| event.position <= checkpoint);
        Some(ring.events.range(start..).take(most).cloned().collect())
    }

    /// A follower of what matches `filter` after `after`.
    pub fn follow(self: &Arc<Self>, source: Arc<dyn Source>, filter: Filter, after: Position) -> Follower {
        let seat = match &filter {
            Filter::All | Filter::Category(_) => None,
            narrow => Some(Arc::clone(self.seats.lock().entry(narrow.clone()).or_default())),
        };
        let disturbed = *self.disturbed.lock();
        Follower {
            hub: Arc::clone(self),
            source,
            filter,
            seat,
            checkpoint: after,
            told: after,
            announced: false,
            disturbed,
            rewinds: self.rewinds.read().len(),
        }
    }
}

/// One subscriber: a filter and a checkpoint.
pub struct Follower {
    hub: Arc<Hub>,
    source: Arc<dyn Source>,
    filter: Filter,
    seat: Option<Arc<Notify>>,
    /// Everything up to here was delivered or does not match.
    checkpoint: Position,
    /// The checkpoint of which the caller knows.
    told: Position,
    /// Whether the caller was told that the end was reached.
    announced: bool,
    disturbed: u64,
    /// How many rewinds it knows of.
    rewinds: usize,
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            let mut seats = self.hub.seats.lock();
            // The map's own and ours: nobody else waits for this.
            if Arc::strong_count(&seat) == 2 {
                seats.remove(&self.filter);
            }
        }
    }
}

impl Follower {
    /// Refuses to go on when the log has lost events that were delivered: what comes next is another history.
    fn still_there(&mut self) -> Result<(), ReadError> {
        let rewinds = self.hub.rewinds.read();
        match rewinds.get(self.rewinds..).and_then(|since| since.iter().min()) {
            Some(&kept) if kept < self.checkpoint => Err(ReadError::Rewound { kept, seen: self.checkpoint }),
            _ => {
                self.rewinds = rewinds.len();
                Ok(())
            }
        }
    }

    async fn look(&mut self, max: usize, in_log: bool) -> Result<Batch, ReadError> {
        if !in_log {
            match self.hub.after(self.checkpoint, &self.filter, max) {
                Recent::Within { events, through, at_end } => {
                    return Ok(Batch { events, through, caught_up: at_end });
                }
                Recent::Behind { .. } => {}
            }
        }
        // The head from before the page: whatever comes later is not covered by "nothing further".
        let head = self.hub.head().position;
        let page = self.source.page(self.checkpoint + 1, max, &self.filter).await?;
        let last = page.events.last().map_or(self.checkpoint, |event| event.position);
        let (through, caught_up) = match page.next {
            Some(next) => (last.max(next - 1), false),
            None => (last.max(head), last.max(head) >= self.hub.head().position),
        };
        Ok(Batch { events: page.events, through: through.max(self.checkpoint), caught_up })
    }
}

#[async_trait::async_trait]
impl Follow for Follower {
    async fn next_batch(&mut self, max: usize) -> Result<Batch, ReadError> {
        let max = max.max(1);
        let hub = Arc::clone(&self.hub);
        let seat = self.seat.clone();
        let poll = self.source.poll_every();
        let pause = poll.unwrap_or(MOVE_ON);
        let mut paused = false;
        loop {
            // Listening starts before looking, so that nothing is published unheard in between.
            let woken: Notified<'_> = seat.as_deref().unwrap_or(&hub.everyone).notified();
            tokio::pin!(woken);
            woken.as_mut().enable();

            let disturbed = *hub.disturbed.lock();
            let in_log = disturbed != self.disturbed || poll.is_some();
            self.still_there()?;
            let batch = self.look(max, in_log).await?;
            if hub.rewinds.read().len() != self.rewinds {
                // What was read may be from before or after it.
                continue;
            }
            self.disturbed = disturbed;
            self.checkpoint = batch.through;
            let ended_first = batch.caught_up && !self.announced;
            let moved = self.checkpoint > self.told && (self.seat.is_none() || paused || !batch.caught_up);
            if !batch.events.is_empty() || ended_first || moved {
                self.announced |= batch.caught_up;
                self.told = batch.through;
                return Ok(batch);
            }
            if !batch.caught_up {
                continue;
            }
            paused = tokio::time::timeout(pause, woken).await.is_err();
        }
    }
}
