//! Reading: a few connections that whoever reads borrows for one question after the other.
//!
//! A read never waits for a server that is known to be away: it fails at once and says so, also in the middle of an answer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::event::{Position, Recorded, Revision};
use crate::{Direction, Filter, Head, Page, ReadError};

use super::decode::{self, columns};
use super::session::{ANSWER, Session, Trouble};
use super::{PRESENCE, Shared, word_of_category, word_of_tag};

/// How many readers work at once; the rest wait their turn.
const READERS: usize = 4;

/// Connections that are kept open.
pub(super) struct Readers {
    idle: Mutex<Vec<Session>>,
    turns: Arc<Semaphore>,
}

impl Default for Readers {
    fn default() -> Self {
        Self::of(READERS)
    }
}

impl Readers {
    /// So many at once.
    pub fn of(count: usize) -> Self {
        Self { idle: Mutex::default(), turns: Arc::new(Semaphore::new(count)) }
    }

    /// Closes what nobody uses: it leads to a server that is not the right one any more.
    pub fn forget(&self) {
        self.idle.lock().clear();
    }
}

impl Shared {
    /// A new connection for reading.
    async fn reader(&self) -> Result<Session, ReadError> {
        tokio::select! {
            session = self.connect("reader", None) => session.map_err(|trouble| self.unreadable(&trouble)),
            reason = self.gone() => Err(ReadError::Unavailable(reason)),
        }
    }
}

/// A borrowed connection, given back unless it failed.
pub(super) struct Reader<'a> {
    shared: &'a Arc<Shared>,
    readers: &'a Readers,
    session: Option<Session>,
    /// Whether a question has no answer yet: dropped now, its connection would answer the next one late.
    asking: bool,
    _turn: OwnedSemaphorePermit,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && !session.client.is_closed()
            && !self.asking
        {
            self.readers.idle.lock().push(session);
        }
    }
}

/// Which events, by one key and in order of `position`; `$1` is where to start, `$2` how many, `$3` the key. The page is cut
/// behind 16 MiB of data, which costs no look at them: their sizes are in the row.
macro_rules! page {
    ($from:literal, $place:literal, $compare:literal, $order:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            ", e.examined FROM (
                 SELECT x.*, count(*) OVER () AS examined,
                        sum(octet_length(x.leaf) + coalesce(octet_length(x.data), 0))
                            OVER (ORDER BY x.position ",
            $order,
            " ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                 FROM (SELECT e.* FROM ",
            $from,
            " AND ",
            $place,
            $compare,
            " $1 ORDER BY ",
            $place,
            $order,
            " LIMIT $2) AS x
             ) AS e WHERE coalesce(e.before, 0) <= 16777216 ORDER BY e.position ",
            $order
        )
    };
}

/// The two directions of a page.
macro_rules! pages {
    ($from:literal, $place:literal) => {
        (page!($from, $place, ">=", " ASC"), page!($from, $place, "<=", " DESC"))
    };
}

const ALL: (&str, &str) = pages!("events e WHERE true", "e.position");
const STREAM: (&str, &str) = pages!("events e WHERE e.stream = $3", "e.position");
const CATEGORY: (&str, &str) =
    pages!("events e WHERE e.category = (SELECT w.id FROM words w WHERE w.word = $3)", "e.position");
const CORRELATION: (&str, &str) = pages!("events e WHERE e.correlation = $3", "e.position");
/// By the tag's own positions, so that its index gives the order.
const TAG: (&str, &str) = pages!(
    "tags t JOIN events e ON e.position = t.position WHERE t.word = (SELECT w.id FROM words w WHERE w.word = $3)",
    "t.position"
);
const FORWARD: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM events e WHERE e.stream = $1 AND e.revision >= $2 ORDER BY e.revision LIMIT $3"
);
const BACKWARD: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM events e WHERE e.stream = $1 AND e.revision <= $2 ORDER BY e.revision DESC LIMIT $3"
);
const BY_ID: &str =
    concat!("SELECT ", columns!(), " FROM events e WHERE e.id = $1 ORDER BY e.position LIMIT 1");

fn signed(place: u64) -> i64 {
    i64::try_from(place).unwrap_or(i64::MAX)
}

impl<'a> Reader<'a> {
    /// A connection to the log that we know.
    pub async fn borrow(shared: &'a Arc<Shared>) -> Result<Self, ReadError> {
        Self::of(shared, &shared.readers).await
    }

    /// The one that beats go through.
    pub async fn for_presence(shared: &'a Arc<Shared>) -> Result<Self, ReadError> {
        let busy = |_| ReadError::Unavailable("beats are waited for already".into());
        tokio::time::timeout(PRESENCE, Self::of(shared, &shared.presence)).await.map_err(busy)?
    }

    async fn of(shared: &'a Arc<Shared>, readers: &'a Readers) -> Result<Self, ReadError> {
        shared.present().map_err(ReadError::Unavailable)?;
        let turns = Arc::clone(&readers.turns);
        let turn = turns.acquire_owned().await.map_err(|error| ReadError::Unavailable(error.to_string()))?;
        let kept = loop {
            match readers.idle.lock().pop() {
                Some(session) if session.client.is_closed() => {}
                other => break other,
            }
        };
        let session = match kept {
            Some(session) => session,
            None => shared.reader().await?,
        };
        Ok(Self { shared, readers, session: Some(session), asking: false, _turn: turn })
    }

    /// Asks, and gives up as soon as the server is known to be away.
    pub async fn ask(
        &mut self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
        patience: Duration,
    ) -> Result<Vec<Row>, ReadError> {
        let mut again = true;
        loop {
            self.asking = true;
            let answer = match &self.session {
                Some(session) => tokio::select! {
                    answer = session.ask(sql, parameters, patience) => answer,
                    reason = self.shared.gone() => Err(Trouble::Silent(reason)),
                },
                None => Err(Trouble::Lost("the connection failed".into())),
            };
            self.asking = false;
            match answer {
                Ok(rows) => return Ok(rows),
                Err(Trouble::Lost(why)) if again => {
                    // It may have been broken long before it was needed. A question may be asked twice.
                    tracing::debug!(why, "a reader's connection broke");
                    again = false;
                    self.session = None;
                    self.session = Some(self.shared.reader().await?);
                }
                Err(trouble) => {
                    if !matches!(trouble, Trouble::Refused { .. }) {
                        // A connection that failed is not trusted again.
                        self.session = None;
                    }
                    return Err(self.shared.unreadable(&trouble));
                }
            }
        }
    }

    /// The events of rows of [`columns`].
    pub fn events(&self, rows: &[Row]) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let Some(session) = &self.session else { return Ok(Vec::new()) };
        let mut texts = session.texts.lock();
        let decoded =
            rows.iter().map(|row| decode::event(row, &self.shared.target.schema, &mut texts)).collect();
        if let Err(error) = &decoded {
            self.shared.note(error);
        }
        decoded
    }

    pub async fn stream(
        &mut self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let sql = match direction {
            Direction::Forward => FORWARD,
            Direction::Backward => BACKWARD,
        };
        let rows = self.ask(sql, &[&stream, &signed(from), &signed(limit as u64)], ANSWER).await?;
        let events = self.events(&rows)?;
        self.unbroken(&events, direction)?;
        Ok(events)
    }

    /// A stream has no gap and each of its events names the one before.
    fn unbroken(&self, events: &[Arc<Recorded>], direction: Direction) -> Result<(), ReadError> {
        for pair in events.windows(2) {
            let (earlier, later) = match direction {
                Direction::Forward => (&pair[0], &pair[1]),
                Direction::Backward => (&pair[1], &pair[0]),
            };
            if later.revision != earlier.revision + 1 || later.prev_hash != Some(earlier.hash) {
                let what = format!(
                    "{} at revision {} does not follow the event at revision {} (position {})",
                    later.stream, later.revision, earlier.revision, earlier.position
                );
                return Err(self.damaged(later.position, what));
            }
        }
        Ok(())
    }

    fn damaged(&self, position: Position, what: String) -> ReadError {
        let error = ReadError::Damaged { place: decode::place(&self.shared.target.schema, position), what };
        self.shared.note(&error);
        error
    }

    pub async fn page(
        &mut self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        // One more than asked for says where the next page starts.
        let (from, most) = (signed(from), signed(limit as u64).saturating_add(1));
        let (statements, key): (_, Option<Box<dyn ToSql + Sync + Send>>) = match filter {
            Filter::All => (ALL, None),
            Filter::Stream(name) => (STREAM, Some(Box::new(name.to_string()))),
            Filter::Category(name) => (CATEGORY, Some(Box::new(word_of_category(name)))),
            Filter::Tag(tag) => (TAG, Some(Box::new(word_of_tag(tag)))),
            Filter::Correlation(id) => (CORRELATION, Some(Box::new(*id))),
        };
        let sql = match direction {
            Direction::Forward => statements.0,
            Direction::Backward => statements.1,
        };
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&from, &most];
        if let Some(key) = &key {
            parameters.push(&**key);
        }
        let rows = self.ask(sql, &parameters, ANSWER).await?;
        let examined = rows.first().map_or(0, |row| row.get::<_, i64>(9));
        let events = self.whole(self.events_before_damage(&rows)?, from, direction, filter)?;
        Ok(page_of(events, examined as usize, limit, direction))
    }

    /// As [`Reader::events`], but what is before damage is given first, and the damage to whoever asks further.
    fn events_before_damage(&self, rows: &[Row]) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let Some(session) = &self.session else { return Ok(Vec::new()) };
        let mut texts = session.texts.lock();
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            match decode::event(row, &self.shared.target.schema, &mut texts) {
                Ok(event) => events.push(event),
                Err(error) => {
                    self.shared.note(&error);
                    if events.is_empty() {
                        return Err(error);
                    }
                    break;
                }
            }
        }
        Ok(events)
    }

    /// Refuses what the index led to and does not match, and a gap where there must be none.
    fn whole(
        &self,
        mut events: Vec<Arc<Recorded>>,
        from: i64,
        direction: Direction,
        filter: &Filter,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let mut expected =
            (*filter == Filter::All && direction == Direction::Forward).then(|| from.max(1) as Position);
        for index in 0..events.len() {
            let event = &events[index];
            let wrong = match expected {
                Some(expected) if expected != event.position => {
                    Some((expected, format!("it is missing; position {} follows", event.position)))
                }
                _ if !filter.matches(event) => {
                    Some((event.position, format!("it is found by {filter:?} and does not match it")))
                }
                _ => None,
            };
            if let Some((position, what)) = wrong {
                let error = self.damaged(position, what);
                if index == 0 {
                    return Err(error);
                }
                events.truncate(index);
                break;
            }
            expected = match (filter, direction) {
                (Filter::All, Direction::Forward) => event.position.checked_add(1),
                (Filter::All, Direction::Backward) => event.position.checked_sub(1),
                _ => None,
            };
        }
        Ok(events)
    }

    /// The event at a position, if the log goes so far.
    pub async fn at(&mut self, position: Position) -> Result<Option<Arc<Recorded>>, ReadError> {
        let page = self.page(position, Direction::Backward, 1, &Filter::All).await?;
        Ok(page.events.into_iter().next().filter(|event| event.position == position))
    }

    /// Where the log ends.
    pub async fn head(&mut self) -> Result<Head, ReadError> {
        let last = self.page(Position::MAX, Direction::Backward, 1, &Filter::All).await?;
        let head = |last: &Arc<Recorded>| Head { position: last.position, hash: last.hash };
        Ok(last.events.first().map(head).unwrap_or_default())
    }

    pub async fn event(&mut self, id: Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        let rows = self.ask(BY_ID, &[&id], ANSWER).await?;
        let found = self.events(&rows)?.pop();
        match found {
            Some(event) if event.id != id => {
                Err(self.damaged(event.position, "the columns beside its leaf say another id".into()))
            }
            found => Ok(found),
        }
    }
}

fn page_of(mut events: Vec<Arc<Recorded>>, examined: usize, limit: usize, direction: Direction) -> Page {
    let next = if events.len() > limit {
        events.pop().map(|event| event.position)
    } else if events.len() < examined {
        // Cut because it is large, or because there is damage behind it.
        events.last().and_then(|last| match direction {
            Direction::Forward => last.position.checked_add(1),
            Direction::Backward => last.position.checked_sub(1).filter(|next| *next > 0),
        })
    } else {
        None
    };
    Page { events, next }
}
