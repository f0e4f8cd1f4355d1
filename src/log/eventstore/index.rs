//! The **index** of this process over a log that it does not keep: which position has which tag, category, correlation and
//! id, which events are redacted, and which times of recording are not the server's.
//!
//! It is the index of the SQLite engine with every event under one more word, since positions are not dense here: only the
//! index knows which one comes next. Deleting the file loses nothing. Invariant: it has everything up to `through`, and the
//! hub publishes nothing that is not in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use crate::event::{Position, Recorded};
use crate::sqlite::OpenError;
use crate::sqlite::index::{self, Indexer, Unfit};
use crate::sqlite::lookup;
use crate::sqlite::schema::{open_reader, read_error};
use crate::{Direction, Filter, Head, ReadError};

const SCHEMA: &str = include_str!("../../../migrations/log-eventstore/index.sql");
/// How many connections are kept open for reading.
const KEPT: usize = 4;

/// What is known of events beside what they say.
#[derive(Default)]
pub(super) struct Notes {
    redacted: RwLock<HashMap<Uuid, Position>>,
    late: RwLock<HashMap<Position, DateTime<Utc>>>,
}

impl Notes {
    /// The event as a reader is to see it.
    pub(super) fn amend(&self, event: Recorded) -> Arc<Recorded> {
        let late = self.late.read().get(&event.position).copied();
        let redacted = self.redacted.read().contains_key(&event.id);
        super::envelope::amend(event, late, redacted)
    }

    /// Where the redaction of an event is recorded.
    pub(super) fn redacted(&self, event: Uuid) -> Option<Position> {
        self.redacted.read().get(&event).copied()
    }

    pub(super) fn clear(&self) {
        self.redacted.write().clear();
        self.late.write().clear();
    }

    pub(super) fn take(&self, step: &Step) {
        if !step.redactions.is_empty() {
            self.redacted.write().extend(step.redactions.iter().copied());
        }
        if !step.late.is_empty() {
            self.late.write().extend(step.late.iter().copied());
        }
    }
}

/// Some events that follow what is indexed, and what they bring with them.
#[derive(Default)]
pub(super) struct Step {
    pub events: Vec<Arc<Recorded>>,
    /// The redacted event, and where that is recorded.
    pub redactions: Vec<(Uuid, Position)>,
    pub late: Vec<(Position, DateTime<Utc>)>,
    pub latest: Option<DateTime<Utc>>,
}

/// The side that writes.
pub(super) struct Keeper(Indexer);

impl Keeper {
    /// The index at `path` and how far it goes, if there is one that can be read.
    pub(super) fn open(path: &Path) -> Option<(Self, Head)> {
        match Indexer::open_sparse(path) {
            Ok(Some(indexer)) => match index::through(indexer.connection()) {
                Ok(through) => Some((Self(indexer), through)),
                Err(_) => None,
            },
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the index is unreadable and is built anew");
                None
            }
        }
    }

    /// An empty one.
    pub(super) fn create(path: &Path) -> Result<Self, OpenError> {
        Indexer::create_sparse(path, SCHEMA).map(Self)
    }

    /// What was noted so far, and the latest time of recording.
    pub(super) fn notes(&self) -> rusqlite::Result<(Notes, Option<DateTime<Utc>>)> {
        let connection = self.0.connection();
        let notes = Notes::default();
        let mut statement = connection.prepare("SELECT event, position FROM redactions")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id = Uuid::from_bytes(row.get(0)?);
            notes.redacted.write().insert(id, row.get::<_, i64>(1)? as Position);
        }
        let mut statement = connection.prepare("SELECT position, recorded_at FROM late")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(at) = DateTime::from_timestamp_micros(row.get(1)?) {
                notes.late.write().insert(row.get::<_, i64>(0)? as Position, at);
            }
        }
        let latest: i64 = connection.query_row("SELECT recorded_at FROM latest", [], |row| row.get(0))?;
        Ok((notes, DateTime::from_timestamp_micros(latest)))
    }

    /// Indexes a step in one transaction. Blocks.
    pub(super) fn apply(&mut self, step: &Step, path: &Path) -> Result<(), ReadError> {
        let applied = self.0.apply_with(&step.events, |transaction| {
            let mut statement =
                transaction.prepare_cached("INSERT OR IGNORE INTO redactions VALUES (?1, ?2)")?;
            for (event, position) in &step.redactions {
                statement.execute((event.as_bytes(), *position as i64))?;
            }
            let mut statement = transaction.prepare_cached("INSERT INTO late VALUES (?1, ?2)")?;
            for (position, at) in &step.late {
                statement.execute((*position as i64, at.timestamp_micros()))?;
            }
            if let Some(latest) = step.latest {
                transaction
                    .prepare_cached("UPDATE latest SET recorded_at = ?1")?
                    .execute([latest.timestamp_micros()])?;
            }
            Ok(())
        });
        applied.map_err(|unfit| match unfit {
            Unfit::Sqlite(error) => read_error(path, &error),
            Unfit::Revision { position, next } => ReadError::Damaged {
                place: format!("position {position}"),
                what: format!("its stream goes on with revision {next}, and it has another"),
            },
        })
    }
}

/// The side that reads: connections that are kept open.
pub(super) struct Lookup {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Lookup {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default() }
    }

    /// Forgets connections to a file that was replaced.
    pub(super) fn reopen(&self) {
        self.idle.lock().clear();
    }

    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let lookup = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let kept = lookup.idle.lock().pop();
            let opened = kept.map_or_else(|| open_reader(&lookup.path), Ok);
            let answer = opened.and_then(|connection| Ok((work(&connection)?, connection)));
            let (answer, connection) = answer.map_err(|error| read_error(&lookup.path, &error))?;
            let mut idle = lookup.idle.lock();
            if idle.len() < KEPT {
                idle.push(connection);
            }
            Ok(answer)
        });
        done.await.map_err(|error| ReadError::Unavailable(format!("the read was broken off: {error}")))?
    }

    /// Up to `most` positions, none after `through`, that match.
    pub(super) async fn places(
        self: &Arc<Self>,
        filter: &Filter,
        from: Position,
        direction: Direction,
        most: usize,
        through: Position,
    ) -> Result<Vec<Position>, ReadError> {
        let filter = filter.clone();
        let within = match direction {
            Direction::Forward => from.max(1)..=through,
            Direction::Backward => 1..=from.min(through),
        };
        self.run(move |connection| lookup::places(connection, &filter, within, direction, most)).await
    }

    /// Where the event with this id is.
    pub(super) async fn place_of(self: &Arc<Self>, id: Uuid) -> Result<Option<Position>, ReadError> {
        self.run(move |connection| {
            connection
                .prepare_cached("SELECT position FROM id_positions WHERE id = ?1 LIMIT 1")?
                .query_row([id.as_bytes()], |row| row.get::<_, i64>(0).map(|position| position as Position))
                .optional()
        })
        .await
    }
}
