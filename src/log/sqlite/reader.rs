//! Reading: the index says where, the log says what, and the live tail fills in what is not yet indexed.
//!
//! A reader owns two connections and works on a blocking thread. It looks at the index first and at the log after, so what
//! it takes from the log is never older than what the index knows.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::event::{Position, Recorded, Revision};
use crate::hub::Hub;
use crate::leaf::Interner;
use crate::{Direction, Filter, Page, ReadError};

use super::schema::{open_reader, read_error};
use super::{Shared, decode, index, lookup};

/// How many readers work at once; the rest wait their turn.
const READERS: usize = 4;
/// A page of events with large data ends early.
const PAGE_BYTES: usize = 16 << 20;

/// Readers that are kept open.
pub(super) struct Readers {
    idle: Mutex<Vec<Reader>>,
    turns: Arc<Semaphore>,
}

impl Default for Readers {
    fn default() -> Self {
        Self { idle: Mutex::default(), turns: Arc::new(Semaphore::new(READERS)) }
    }
}

impl Readers {
    /// Runs `work` with a reader on a blocking thread.
    pub(super) async fn run<T: Send + 'static>(
        shared: &Arc<Shared>,
        work: impl FnOnce(&mut Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let unavailable = |what: String| ReadError::Unavailable(what);
        let turn = Arc::clone(&shared.readers.turns)
            .acquire_owned()
            .await
            .map_err(|e| unavailable(e.to_string()))?;
        let shared = Arc::clone(shared);
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let kept = shared.readers.idle.lock().pop();
            let mut reader = match kept {
                Some(reader) => reader,
                None => Reader::open(&shared)?,
            };
            let answer = work(&mut reader);
            match &answer {
                // A connection that failed is not trusted again.
                Err(error) => shared.note(error),
                Ok(_) => shared.readers.idle.lock().push(reader),
            }
            answer
        });
        done.await.map_err(|error| unavailable(format!("the read was broken off: {error}")))?
    }

    pub(super) fn close(&self) {
        self.idle.lock().clear();
    }
}

/// Connections to the log and to its index.
pub(super) struct Reader {
    path: PathBuf,
    hub: Arc<Hub>,
    /// Whether another process may write, of which the hub does not hear.
    read_only: bool,
    events: Connection,
    /// `None` when a log is read without one: then everything is "not yet indexed".
    index: Option<Connection>,
    texts: Interner,
}

impl Reader {
    pub(super) fn open(shared: &Arc<Shared>) -> Result<Self, ReadError> {
        let events = open_reader(&shared.path).map_err(|error| read_error(&shared.path, &error))?;
        let index = index::open_for_reading(&shared.path);
        let index = match index {
            Ok(index) if shared.read_only => describes(&index, &events).then_some(index),
            Ok(index) => Some(index),
            Err(_) if shared.read_only => None,
            Err(error) => return Err(read_error(&index::path(&shared.path), &error)),
        };
        Ok(Self {
            path: shared.path.clone(),
            hub: Arc::clone(&shared.hub),
            read_only: shared.read_only,
            events,
            index,
            texts: Interner::default(),
        })
    }

    fn index_error(&self, error: rusqlite::Error) -> ReadError {
        match read_error(&index::path(&self.path), &error) {
            ReadError::Damaged { place, what } => ReadError::Damaged {
                place,
                what: format!("{what} (an index is derived: stop, delete this file, and start again)"),
            },
            other => other,
        }
    }

    fn indexed_through(&self) -> Result<Position, ReadError> {
        match &self.index {
            None => Ok(0),
            Some(index) => index::through(index).map(|head| head.position).map_err(|e| self.index_error(e)),
        }
    }

    /// What matches after `through`, in order.
    fn tail(
        &mut self,
        through: Position,
        filter: &Filter,
        from: Position,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let from = from.max(through + 1);
        if !self.read_only
            && let Some(tail) = self.hub.since(from - 1, usize::MAX)
        {
            return Ok(tail.into_iter().filter(|event| filter.matches(event)).collect());
        }
        let mut found = Vec::new();
        let mut next = from;
        loop {
            let step = decode::range(&self.events, &self.path, next, 4096, &mut self.texts)?;
            let Some(last) = step.last() else { return Ok(found) };
            next = last.position + 1;
            found.extend(step.into_iter().filter(|event| filter.matches(event)));
        }
    }

    fn fetch(
        &mut self,
        position: Position,
        fits: impl Fn(&Recorded) -> bool,
    ) -> Result<Arc<Recorded>, ReadError> {
        let event = decode::at(&self.events, &self.path, position, &mut self.texts)?;
        if fits(&event) {
            return Ok(event);
        }
        Err(ReadError::Damaged {
            place: format!("{}, position {position}", index::path(&self.path).display()),
            what: "the index leads to an event that it does not describe".into(),
        })
    }

    pub(super) fn read_stream(
        &mut self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let through = self.indexed_through()?;
        let indexed = |reader: &Self, limit: usize| reader.revisions(stream, from, direction, limit, through);
        let filter = Filter::stream(stream);
        let mut found = Vec::new();
        let places = match direction {
            Direction::Forward => {
                let places = indexed(self, limit)?;
                if places.len() < limit {
                    found = self.tail(through, &filter, 0)?;
                    found.retain(|event| event.revision >= from);
                    found.truncate(limit - places.len());
                }
                places
            }
            Direction::Backward => {
                found = self.tail(through, &filter, 0)?;
                found.retain(|event| event.revision <= from);
                found.reverse();
                found.truncate(limit);
                indexed(self, limit - found.len())?
            }
        };
        let mut events = Vec::with_capacity(places.len() + found.len());
        for (revision, position) in places {
            events
                .push(self.fetch(position, |event| *event.stream == *stream && event.revision == revision)?);
        }
        match direction {
            Direction::Forward => events.append(&mut found),
            Direction::Backward => {
                found.append(&mut events);
                events = found;
            }
        }
        self.unbroken(&events, direction)?;
        Ok(events)
    }

    /// The last event of a stream that is in the index, for the writer: it knows the streams that are not yet.
    pub(super) fn indexed_last(&mut self, stream: &str) -> Result<Option<Arc<Recorded>>, ReadError> {
        let last = self.revisions(stream, Revision::MAX, Direction::Backward, 1, Position::MAX)?;
        let Some(&(revision, position)) = last.first() else { return Ok(None) };
        self.fetch(position, |event| *event.stream == *stream && event.revision == revision).map(Some)
    }

    /// A stream has no gap and each of its events names the one before.
    fn unbroken(&self, events: &[Arc<Recorded>], direction: Direction) -> Result<(), ReadError> {
        for pair in events.windows(2) {
            let (earlier, later) = match direction {
                Direction::Forward => (&pair[0], &pair[1]),
                Direction::Backward => (&pair[1], &pair[0]),
            };
            if later.revision != earlier.revision + 1 || later.prev_hash != Some(earlier.hash) {
                return Err(ReadError::Damaged {
                    place: decode::place(&self.path, later.position),
                    what: format!(
                        "{} at revision {} does not follow the event at revision {} (position {})",
                        later.stream, later.revision, earlier.revision, earlier.position
                    ),
                });
            }
        }
        Ok(())
    }

    fn revisions(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
        through: Position,
    ) -> Result<Vec<(Revision, Position)>, ReadError> {
        let Some(index) = &self.index else { return Ok(Vec::new()) };
        lookup::revisions(index, stream, from, direction, limit, through)
            .map_err(|error| self.index_error(error))
    }

    pub(super) fn read_all(
        &mut self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        if *filter == Filter::All {
            return self.read_everything(from, direction, limit);
        }
        let through = self.indexed_through()?;
        // One more than asked for says where the next page starts.
        let most = limit + 1;
        let mut page = Page::default();
        match direction {
            Direction::Forward => {
                let places = self.places(filter, from, direction, most, through)?;
                self.fill(&mut page, &places, limit, filter)?;
                if page.next.is_none() {
                    let tail = self.tail(through, filter, from)?;
                    take(&mut page, tail, limit);
                }
            }
            Direction::Backward => {
                let mut tail = self.tail(through, filter, 0)?;
                tail.retain(|event| event.position <= from);
                tail.reverse();
                take(&mut page, tail, limit);
                if page.next.is_none() {
                    let places = self.places(filter, from, direction, most - page.events.len(), through)?;
                    self.fill(&mut page, &places, limit, filter)?;
                }
            }
        }
        Ok(page)
    }

    fn read_everything(
        &mut self,
        from: Position,
        direction: Direction,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let path = &self.path;
        let events = decode::scan(&self.events, path, from, direction, limit, PAGE_BYTES, &mut self.texts)?;
        let next = match (events.last(), direction) {
            (None, _) => None,
            (Some(last), Direction::Forward) => {
                self.last_position()?.filter(|end| *end > last.position).map(|_| last.position + 1)
            }
            (Some(last), Direction::Backward) => (last.position > 1).then(|| last.position - 1),
        };
        Ok(Page { events, next })
    }

    pub(super) fn last_position(&self) -> Result<Option<Position>, ReadError> {
        let last = self
            .events
            .prepare_cached("SELECT max(position) FROM events")
            .and_then(|mut statement| statement.query_row([], |row| row.get::<_, Option<i64>>(0)));
        last.map(|last| last.map(|p| p as Position)).map_err(|error| read_error(&self.path, &error))
    }

    /// Adds the events at `places`; one over `limit` only says where to go on.
    fn fill(
        &mut self,
        page: &mut Page,
        places: &[Position],
        limit: usize,
        filter: &Filter,
    ) -> Result<(), ReadError> {
        let mut size = 0;
        for &position in places {
            if page.events.len() == limit || size > PAGE_BYTES {
                page.next = Some(position);
                return Ok(());
            }
            let event = self.fetch(position, |event| filter.matches(event))?;
            size += event.data.as_ref().map_or(0, bytes::Bytes::len);
            page.events.push(event);
        }
        Ok(())
    }

    fn places(
        &self,
        filter: &Filter,
        from: Position,
        direction: Direction,
        most: usize,
        through: Position,
    ) -> Result<Vec<Position>, ReadError> {
        let Some(index) = &self.index else { return Ok(Vec::new()) };
        let within = match direction {
            Direction::Forward => from.max(1)..=through,
            Direction::Backward => 1..=from.min(through),
        };
        lookup::places(index, filter, within, direction, most).map_err(|error| self.index_error(error))
    }

    /// The event at `position`, which must be there.
    pub(super) fn at(&mut self, position: Position) -> Result<Arc<Recorded>, ReadError> {
        decode::at(&self.events, &self.path, position, &mut self.texts)
    }

    pub(super) fn event(&mut self, id: Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        let through = self.indexed_through()?;
        let found = match &self.index {
            None => None,
            Some(index) => index
                .prepare_cached("SELECT position FROM id_positions WHERE id = ?1 AND position <= ?2 LIMIT 1")
                .and_then(|mut statement| {
                    statement
                        .query_row((id.as_bytes(), through as i64), |row| row.get::<_, i64>(0))
                        .optional()
                })
                .map_err(|error| self.index_error(error))?,
        };
        match found {
            Some(position) => self.fetch(position as Position, |event| event.id == id).map(Some),
            None => Ok(self.tail(through, &Filter::All, 0)?.into_iter().find(|event| event.id == id)),
        }
    }
}

/// Whether an index that nobody keeps for us is of this log, and not ahead of it: a log that lost its end has one that is.
fn describes(index: &Connection, events: &Connection) -> bool {
    let Ok(through) = index::through(index) else { return false };
    let hash =
        events.query_row("SELECT hash FROM events WHERE position = ?1", [through.position as i64], |row| {
            row.get::<_, [u8; 32]>(0)
        });
    through.position == 0 || hash.is_ok_and(|hash| hash == through.hash.0)
}

fn take(page: &mut Page, found: Vec<Arc<Recorded>>, limit: usize) {
    for event in found {
        if page.events.len() == limit {
            page.next = Some(event.position);
            return;
        }
        page.events.push(event);
    }
}
