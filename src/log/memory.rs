//! The **in-memory engine**: the log that tests use. It answers like the others and forgets everything with the process.
//!
//! It can be told to fail ([`Faults`]): before or after a commit, slowly, or by breaking subscriptions. No service runs on it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::event::{NewEvent, Position, Recorded, Revision};
use crate::hub::Hub;
use crate::ndjson::{Restore, RestoreError};
use crate::prepare::{Prepared, to_micros};
use crate::presence::Presence;
use crate::{
    AppendError, Appended, Beat, Clock, Direction, Expected, Filter, Head, Health, Log, MAX_EXAMINED, Page,
    ReadError, RedactError, StreamHead, Subscription, leaf, redaction,
};

/// What the next append is to suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused; nothing is written.
    Unavailable,
    /// Refused as if the queue were full.
    Busy,
    /// Not written, and the answer is lost.
    LostBefore,
    /// Written, and the answer is lost.
    LostAfter,
}

/// Faults to come, in order.
#[derive(Debug, Default)]
pub struct Faults {
    appends: Mutex<VecDeque<Option<Fault>>>,
    delay: Mutex<Option<Duration>>,
    refused: Mutex<Option<String>>,
}

impl Faults {
    /// The append after those already spoken for suffers `fault`.
    pub fn next_append(&self, fault: Fault) {
        self.appends.lock().push_back(Some(fault));
    }

    /// The append after those already spoken for succeeds.
    pub fn pass_one(&self) {
        self.appends.lock().push_back(None);
    }

    /// Every append waits this long before it is looked at.
    pub fn delay_appends(&self, delay: Option<Duration>) {
        *self.delay.lock() = delay;
    }

    /// Every append is refused with this reason, as on a full disk, until it is taken back with `None`.
    pub fn refuse_appends(&self, reason: Option<&str>) {
        *self.refused.lock() = reason.map(str::to_owned);
    }
}

#[derive(Default)]
struct State {
    events: Vec<Arc<Recorded>>,
    streams: HashMap<Arc<str>, Vec<Position>>,
    ids: HashMap<Uuid, Position>,
    redacted_by: HashMap<Uuid, Position>,
    last_recorded: DateTime<Utc>,
    closed: bool,
}

impl State {
    fn stream_head(&self, stream: &str) -> Option<StreamHead> {
        let last = self.at(*self.streams.get(stream)?.last()?);
        Some(StreamHead { revision: last.revision, hash: last.hash })
    }

    fn at(&self, position: Position) -> &Arc<Recorded> {
        &self.events[position as usize - 1]
    }

    fn push(&mut self, event: Recorded) -> Arc<Recorded> {
        let event = Arc::new(event);
        self.streams.entry(Arc::clone(&event.stream)).or_default().push(event.position);
        self.ids.insert(event.id, event.position);
        self.last_recorded = event.recorded_at;
        self.events.push(Arc::clone(&event));
        event
    }

    fn append(
        &mut self,
        prepared: Prepared,
        now: DateTime<Utc>,
    ) -> Result<(Appended, Vec<Arc<Recorded>>), AppendError> {
        if self.closed {
            return Err(AppendError::Unavailable("the log is closed".into()));
        }
        let actual = self.stream_head(&prepared.stream);
        if Expected::from(actual) != prepared.expected {
            let there = self
                .streams
                .get(&prepared.stream)
                .and_then(|positions| positions.get(prepared.head().revision as usize))
                .map(|&position| self.at(position));
            return match there {
                Some(event) if event.hash == prepared.head().hash => {
                    Ok((prepared.answer(event.position, true), Vec::new()))
                }
                _ => Err(prepared.conflict(actual)),
            };
        }
        let recorded_at = to_micros(now).max(self.last_recorded);
        let answer = prepared.answer((self.events.len() + prepared.events.len()) as Position, false);
        let mut written = Vec::with_capacity(prepared.events.len());
        for unplaced in prepared.events {
            let position = self.events.len() as Position + 1;
            written.push(self.push(Recorded { position, recorded_at, ..unplaced.event }));
        }
        Ok((answer, written))
    }
}

struct Inner {
    state: RwLock<State>,
    hub: Arc<Hub>,
    presence: Presence,
    clock: Clock,
    faults: Faults,
}

/// A log in memory, for tests.
#[derive(Clone)]
pub struct MemoryLog(Arc<Inner>);

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLog").field("head", &self.head().position).finish()
    }
}

impl MemoryLog {
    /// An empty log whose recorded_at comes from `clock`.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            state: RwLock::default(),
            hub: Arc::new(Hub::new(Head::default())),
            presence: Presence::default(),
            clock,
            faults: Faults::default(),
        }))
    }

    /// What is to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Makes every subscription forget the live feed and read the log again from its checkpoint.
    pub fn disturb_subscriptions(&self) {
        self.0.hub.disturb();
    }

    async fn suffer(&self) -> Result<bool, AppendError> {
        let delay = *self.0.faults.delay.lock();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        if let Some(reason) = self.0.faults.refused.lock().clone() {
            return Err(AppendError::Unavailable(reason));
        }
        match self.0.faults.appends.lock().pop_front().flatten() {
            None => Ok(false),
            Some(Fault::Unavailable) => Err(AppendError::Unavailable("a fault was asked for".into())),
            Some(Fault::Busy) => Err(AppendError::Busy),
            Some(Fault::LostBefore) => Err(AppendError::Unknown("a fault was asked for".into())),
            Some(Fault::LostAfter) => Ok(true),
        }
    }
}

#[async_trait::async_trait]
impl Log for MemoryLog {
    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        let prepared = Prepared::new(stream, expected, events)?;
        let lose_answer = self.suffer().await?;
        let (answer, written) = {
            let mut state = self.0.state.write();
            let done = state.append(prepared, (self.0.clock)())?;
            self.0.hub.publish(&done.1);
            done
        };
        self.0.hub.wake(&written);
        if lose_answer {
            return Err(AppendError::Unknown("a fault was asked for".into()));
        }
        Ok(answer)
    }

    async fn read_stream(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let state = self.0.state.read();
        let Some(positions) = state.streams.get(stream) else { return Ok(Vec::new()) };
        let event = |position: &Position| Arc::clone(state.at(*position));
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        Ok(match direction {
            Direction::Forward => positions.iter().skip(from).take(limit).map(event).collect(),
            Direction::Backward => {
                let end = from.saturating_add(1).min(positions.len());
                positions[..end].iter().rev().take(limit).map(event).collect()
            }
        })
    }

    async fn read_all(
        &self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        let state = self.0.state.read();
        let length = state.events.len() as Position;
        let mut page = Page::default();
        let mut at = match direction {
            Direction::Forward => from.max(1),
            Direction::Backward => from.min(length),
        };
        let mut examined = 0;
        while at >= 1 && at <= length {
            if page.events.len() == limit || examined == MAX_EXAMINED {
                page.next = Some(at);
                break;
            }
            let event = state.at(at);
            if filter.matches(event) {
                page.events.push(Arc::clone(event));
            }
            examined += 1;
            match direction {
                Direction::Forward => at += 1,
                Direction::Backward => at -= 1,
            }
        }
        Ok(page)
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Subscription {
        Box::new(self.0.hub.follow(Arc::new(self.clone()), filter, after))
    }

    fn head(&self) -> Head {
        self.0.hub.head()
    }

    async fn stream_head(&self, stream: &str) -> Result<Option<StreamHead>, ReadError> {
        Ok(self.0.state.read().stream_head(stream))
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        let state = self.0.state.read();
        Ok(state.ids.get(&id).map(|&position| Arc::clone(state.at(position))))
    }

    async fn redact(&self, event: Uuid, record: NewEvent) -> Result<Appended, RedactError> {
        redaction::check(event, &record)?;
        let lose_answer = self.suffer().await?;
        let written;
        let answer;
        {
            let mut state = self.0.state.write();
            let Some(&position) = state.ids.get(&event) else { return Err(RedactError::NoSuchEvent(event)) };
            redaction::check_target(state.at(position))?;
            if let Some(&by) = state.redacted_by.get(&event) {
                return Ok(redaction::repeated(state.at(by)));
            }
            let head = state.stream_head(redaction::STREAM);
            let prepared = Prepared::new(redaction::STREAM, head.into(), vec![record])?;
            (answer, written) = state.append(prepared, (self.0.clock)())?;
            let redacted = Arc::new(redaction::without_data(state.at(position)));
            state.events[position as usize - 1] = Arc::clone(&redacted);
            state.redacted_by.insert(event, answer.position);
            self.0.hub.replace(&redacted);
            self.0.hub.publish(&written);
        }
        self.0.hub.wake(&written);
        if lose_answer {
            return Err(AppendError::Unknown("a fault was asked for".into()).into());
        }
        Ok(answer)
    }

    fn health(&self) -> Health {
        let closed = self.0.state.read().closed.then(|| "the log is closed".to_owned());
        Health {
            silent_for: std::time::Duration::ZERO,
            dense: true,
            append_refused: closed.or_else(|| self.0.faults.refused.lock().clone()),
            damage: None,
            engine: "memory",
            queued_appends: 0,
        }
    }

    async fn beat(&self, who: &str, facts: serde_json::Value) {
        self.0.presence.beat(who, facts, &self.0.clock);
    }

    async fn beats(&self) -> Result<Vec<Beat>, ReadError> {
        Ok(self.0.presence.beats())
    }

    async fn close(&self) {
        self.0.state.write().closed = true;
    }
}

#[async_trait::async_trait]
impl Restore for MemoryLog {
    async fn restore(&self, events: Vec<Recorded>) -> Result<(), RestoreError> {
        let mut state = self.0.state.write();
        let mut written = Vec::with_capacity(events.len());
        for event in events {
            let expected = state.events.len() as Position + 1;
            if event.position != expected {
                return Err(RestoreError::Gap { expected, found: event.position });
            }
            leaf::check(&event).map_err(|broken| RestoreError::broken(&event, broken.to_string()))?;
            RestoreError::check_chain(&event, state.stream_head(&event.stream))?;
            written.push(state.push(event));
        }
        self.0.hub.publish(&written);
        drop(state);
        self.0.hub.wake(&written);
        Ok(())
    }
}
