//! The **index**: which stream, tag, category, correlation and id is where. `<log>.index`, derived from the log.
//!
//! It follows the log on a thread of its own, some milliseconds behind, so that a commit writes nothing but events.
//! A reader takes what is indexed from here and the few events after `through` from the live tail. Deleting the file
//! loses nothing: it is built again. Invariant: everything up to `through` is in it and nothing after.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use lru::LruCache;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::event::{Hash, Position, Recorded, category};
use crate::{Filter, Head};

use super::schema::{OpenError, beside, open_reader};
use super::{Shared, decode};

/// Raised when `index.sql` changes: an index of another version is built anew.
const VERSION: i32 = 1;
const SCHEMA: &str = include_str!("../../../migrations/log-sqlite/index.sql");
/// How many events one transaction of the index takes.
const STEP: usize = 8_192;
/// How long the index waits for company before it takes few events.
const COMPANY: Duration = Duration::from_millis(40);

pub(super) fn path(log: &Path) -> PathBuf {
    beside(log, ".index")
}

/// How far an open index goes.
pub(super) fn through(index: &Connection) -> rusqlite::Result<Head> {
    index.prepare_cached("SELECT through, hash FROM state")?.query_row([], |row| {
        Ok(Head { position: row.get::<_, i64>(0)? as Position, hash: Hash(row.get(1)?) })
    })
}

/// A connection for reading, if there is an index that can be read.
pub(super) fn open_for_reading(log: &Path) -> rusqlite::Result<Connection> {
    let index = open_reader(&path(log))?;
    through(&index)?;
    Ok(index)
}

/// The word under which a filter is indexed.
pub(super) fn word(filter: &Filter) -> Option<String> {
    match filter {
        Filter::Tag(tag) => Some(format!("t:{tag}")),
        Filter::Category(name) => Some(format!("c:{name}")),
        Filter::All | Filter::Stream(_) | Filter::Correlation(_) => None,
    }
}

/// The side of the index that writes.
pub(super) struct Indexer {
    connection: Connection,
    through: Position,
    streams: LruCache<Arc<str>, i64>,
    words: LruCache<Box<str>, i64>,
}

impl Indexer {
    /// Opens the index of `log`, or makes it anew when it is missing, of another version or of another log.
    pub(super) fn open(log: &Path, events: &Connection) -> Result<Self, OpenError> {
        let path = path(log);
        match Self::try_open(&path, events) {
            Ok(Some(indexer)) => return Ok(indexer),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the log's index is unreadable and is built anew")
            }
        }
        for suffix in ["", "-wal", "-shm"] {
            match std::fs::remove_file(beside(&path, suffix)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(OpenError::io(&path, error));
                }
                _ => {}
            }
        }
        let fail = |error| OpenError::sqlite(&path, error);
        let connection = connect(&path).map_err(fail)?;
        connection
            .execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"))
            .map_err(fail)?;
        Ok(Self::over(connection, 0))
    }

    fn try_open(path: &Path, events: &Connection) -> rusqlite::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = connect(path)?;
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != VERSION {
            return Ok(None);
        }
        let through = through(&connection)?;
        if through.position > 0 {
            let hash = events
                .query_row("SELECT hash FROM events WHERE position = ?1", [through.position as i64], |row| {
                    row.get(0).map(Hash)
                })
                .optional()?;
            if hash != Some(through.hash) {
                return Ok(None);
            }
        }
        Ok(Some(Self::over(connection, through.position)))
    }

    fn over(connection: Connection, through: Position) -> Self {
        let some = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        Self { connection, through, streams: LruCache::new(some(20_000)), words: LruCache::new(some(50_000)) }
    }

    pub(super) fn through(&self) -> Position {
        self.through
    }

    /// Indexes `events`, which follow what is indexed, in one transaction.
    pub(super) fn apply(&mut self, events: &[Arc<Recorded>]) -> rusqlite::Result<()> {
        let Some(last) = events.last() else { return Ok(()) };
        let transaction = self.connection.unchecked_transaction()?;
        let applied = insert(&transaction, &mut self.streams, &mut self.words, events);
        if let Err(error) = applied {
            // Ids that were interned in what is now rolled back are nobody's.
            self.streams.clear();
            self.words.clear();
            return Err(error);
        }
        transaction
            .prepare_cached("UPDATE state SET through = ?1, hash = ?2")?
            .execute(params![last.position as i64, last.hash.0])?;
        transaction.commit()?;
        self.through = last.position;
        Ok(())
    }

    /// Reads what is not yet indexed from the log, until nothing is left. Used while opening.
    pub(super) fn catch_up(&mut self, log: &Path, events: &Connection) -> Result<(), OpenError> {
        let mut texts = crate::leaf::Interner::default();
        loop {
            let step = decode::range(events, log, self.through + 1, STEP, &mut texts)?;
            if step.is_empty() {
                return Ok(());
            }
            if step.len() == STEP {
                tracing::info!(through = self.through, "the log's index is being built");
            }
            self.apply(&step).map_err(|error| OpenError::sqlite(&path(log), error))?;
        }
    }

    /// Follows the log until the other end of `signals` is gone.
    pub(super) fn run(mut self, shared: &Shared, signals: &Receiver<()>) {
        let mut texts = crate::leaf::Interner::default();
        let mut log: Option<Connection> = None;
        let mut open = true;
        while open {
            open = signals.recv().is_ok();
            while self.through < shared.hub.head().position {
                let behind = shared.hub.head().position - self.through;
                if open && behind < STEP as Position / 4 {
                    open = !matches!(wait(signals, COMPANY), Err(RecvTimeoutError::Disconnected));
                }
                if let Err(error) = self.step(shared, &mut log, &mut texts) {
                    tracing::warn!(error = %error, "the log's index cannot follow");
                    if !open {
                        return;
                    }
                    // On a full disk it comes back when space does; readers take the rest from the log meanwhile.
                    open = !matches!(
                        wait(signals, Duration::from_millis(300)),
                        Err(RecvTimeoutError::Disconnected)
                    );
                }
            }
        }
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::debug!(%error, "the log's index keeps its write-ahead log");
        }
    }

    fn step(
        &mut self,
        shared: &Shared,
        log: &mut Option<Connection>,
        texts: &mut crate::leaf::Interner,
    ) -> Result<(), crate::ReadError> {
        let events = match shared.hub.since(self.through, STEP) {
            Some(events) => events,
            None => {
                let connection = match log {
                    Some(connection) => connection,
                    None => log.insert(
                        open_reader(&shared.path).map_err(|e| super::schema::read_error(&shared.path, &e))?,
                    ),
                };
                decode::range(connection, &shared.path, self.through + 1, STEP, texts)
                    .inspect_err(|error| shared.note(error))?
            }
        };
        self.apply(&events).map_err(|error| {
            let error = super::schema::read_error(&path(&shared.path), &error);
            shared.note(&error);
            error
        })?;
        shared.indexed(self.through);
        Ok(())
    }
}

/// Waits, and takes what was signalled meanwhile for heard.
fn wait(signals: &Receiver<()>, time: Duration) -> Result<(), RecvTimeoutError> {
    let until = std::time::Instant::now() + time;
    loop {
        match signals.recv_deadline(until) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(Duration::from_secs(10))?;
    // Not synced with every commit: after a power cut the index is a little older and follows again.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16000;",
    )?;
    Ok(connection)
}

fn insert(
    transaction: &Transaction<'_>,
    streams: &mut LruCache<Arc<str>, i64>,
    words: &mut LruCache<Box<str>, i64>,
    events: &[Arc<Recorded>],
) -> rusqlite::Result<()> {
    let mut revisions = Vec::with_capacity(events.len());
    let mut occurrences = Vec::with_capacity(events.len() * 4);
    let mut correlations = Vec::with_capacity(events.len());
    let mut ids = Vec::with_capacity(events.len());
    let mut text = String::new();
    for event in events {
        let position = event.position as i64;
        let stream = match streams.get(&event.stream) {
            Some(&id) => id,
            None => {
                let id = intern(transaction, "streams", "name", &event.stream)?;
                streams.put(Arc::clone(&event.stream), id);
                id
            }
        };
        revisions.push((stream, event.revision as i64, position));
        let mut word = |kind: &str, name: &str| -> rusqlite::Result<()> {
            text.clear();
            text.push_str(kind);
            text.push_str(name);
            let id = match words.get(text.as_str()) {
                Some(&id) => id,
                None => {
                    let id = intern(transaction, "words", "word", &text)?;
                    words.put(text.as_str().into(), id);
                    id
                }
            };
            occurrences.push((id, position));
            Ok(())
        };
        word("c:", category(&event.stream))?;
        for tag in &event.tags {
            word("t:", tag)?;
        }
        correlations.push((event.correlation_id.into_bytes(), position));
        ids.push((event.id.into_bytes(), position));
    }
    // In order of key, so that each page is visited once.
    revisions.sort_unstable();
    occurrences.sort_unstable();
    correlations.sort_unstable();
    ids.sort_unstable();
    let mut statement = transaction.prepare_cached("INSERT INTO revisions VALUES (?1, ?2, ?3)")?;
    for row in revisions {
        statement.execute(row)?;
    }
    let mut statement = transaction.prepare_cached("INSERT INTO word_positions VALUES (?1, ?2)")?;
    for row in occurrences {
        statement.execute(row)?;
    }
    let mut statement = transaction.prepare_cached("INSERT INTO correlation_positions VALUES (?1, ?2)")?;
    for row in correlations {
        statement.execute(row)?;
    }
    let mut statement = transaction.prepare_cached("INSERT INTO id_positions VALUES (?1, ?2)")?;
    for row in ids {
        statement.execute(row)?;
    }
    Ok(())
}

fn intern(transaction: &Transaction<'_>, table: &str, column: &str, text: &str) -> rusqlite::Result<i64> {
    let found = transaction
        .prepare_cached(&format!("SELECT id FROM {table} WHERE {column} = ?1"))?
        .query_row([text], |row| row.get(0))
        .optional()?;
    match found {
        Some(id) => Ok(id),
        None => {
            transaction.prepare_cached(&format!("INSERT INTO {table} ({column}) VALUES (?1)"))?.insert([text])
        }
    }
}
