//! The **index**: which stream, tag, category, correlation and id is where. `<log>.index`, derived from the log.
//!
//! It follows the log on a thread of its own, some milliseconds behind, so that a commit writes nothing but events.
//! A reader takes what is indexed from here and the few events after `through` from the live tail. Deleting the file
//! loses nothing: it is built again. Invariant: everything up to `through` is in it and nothing after.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use lru::LruCache;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::event::{Hash, Position, Recorded, Revision, category};
use crate::{Filter, Head, ReadError};

use super::schema::{OpenError, beside, open_reader};
use super::{Shared, decode, runs};

/// Raised when `index.sql` changes: an index of another version is built anew.
const VERSION: i32 = 2;
const SCHEMA: &str = include_str!("../../../migrations/log-sqlite/index.sql");
/// The word of every event, in an index of positions that are not dense.
const EVERY: &str = "a:";
/// How many events one transaction of the index takes.
const STEP: usize = 8_192;
/// How long the index waits for company before it takes few events.
const COMPANY: Duration = Duration::from_millis(40);

pub(super) fn path(log: &Path) -> PathBuf {
    beside(log, ".index")
}

/// How far an open index goes.
pub(crate) fn through(index: &Connection) -> rusqlite::Result<Head> {
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
        Filter::All => Some(EVERY.into()),
        Filter::Stream(_) | Filter::Correlation(_) => None,
    }
}

/// Why events cannot be indexed.
#[derive(Debug)]
pub(crate) enum Unfit {
    Sqlite(rusqlite::Error),
    /// The event at `position` is not the next one of its stream.
    Revision {
        position: Position,
        next: Revision,
    },
}

impl From<rusqlite::Error> for Unfit {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Unfit {
    fn read_error(&self, log: &Path) -> ReadError {
        match self {
            Self::Sqlite(error) => super::schema::read_error(&path(log), error),
            Self::Revision { position, next } => ReadError::Damaged {
                place: decode::place(log, *position),
                what: format!("its stream goes on with revision {next}, and it has another"),
            },
        }
    }
}

/// The side of the index that writes.
pub(crate) struct Indexer {
    connection: Connection,
    /// Whether every event gets [`EVERY`] as a word: where positions are not dense, only the index knows the next one.
    sparse: bool,
    through: Position,
    streams: LruCache<Arc<str>, Stream>,
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
        remove(&path)?;
        let connection = create(&path, "").map_err(|error| OpenError::sqlite(&path, error))?;
        Ok(Self::over(connection, 0))
    }

    /// The index at `path` of a log elsewhere whose positions are not dense.
    /// `None` when there is none that can be read; whether it is of that log is for the caller to find out.
    pub(crate) fn open_sparse(path: &Path) -> rusqlite::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = connect(path)?;
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != VERSION {
            return Ok(None);
        }
        let through = through(&connection)?;
        Ok(Some(Self { sparse: true, ..Self::over(connection, through.position) }))
    }

    /// An empty index in the place of whatever is at `path`, with the tables of `more` beside its own.
    pub(crate) fn create_sparse(path: &Path, more: &str) -> Result<Self, OpenError> {
        remove(path)?;
        let connection = create(path, more).map_err(|error| OpenError::sqlite(path, error))?;
        Ok(Self { sparse: true, ..Self::over(connection, 0) })
    }

    /// Where the index is kept.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
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
        Self {
            connection,
            sparse: false,
            through,
            streams: LruCache::new(some(20_000)),
            words: LruCache::new(some(50_000)),
        }
    }

    pub(crate) fn through(&self) -> Position {
        self.through
    }

    /// Indexes `events`, which follow what is indexed, in one transaction.
    fn apply(&mut self, events: &[Arc<Recorded>]) -> Result<(), Unfit> {
        self.apply_with(events, |_| Ok(()))
    }

    /// As [`Self::apply`], with what `more` does in the same transaction.
    pub(crate) fn apply_with(
        &mut self,
        events: &[Arc<Recorded>],
        more: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Unfit> {
        let Some(last) = events.last() else { return Ok(()) };
        let applied = self.apply_before(last, events, more);
        match &applied {
            Ok(()) => self.through = last.position,
            Err(_) => {
                // What was interned in a transaction that is now rolled back is nobody's.
                self.streams.clear();
                self.words.clear();
            }
        }
        applied
    }

    fn apply_before(
        &mut self,
        last: &Recorded,
        events: &[Arc<Recorded>],
        more: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Unfit> {
        let transaction = self.connection.unchecked_transaction()?;
        insert(&transaction, &mut self.streams, &mut self.words, events, self.sparse)?;
        more(&transaction)?;
        transaction
            .prepare_cached("UPDATE state SET through = ?1, hash = ?2")?
            .execute(params![last.position as i64, last.hash.0])?;
        transaction.commit()?;
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
            self.apply(&step).map_err(|unfit| unfit.read_error(log))?;
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
    ) -> Result<(), ReadError> {
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
        self.apply(&events)
            .map_err(|unfit| unfit.read_error(&shared.path))
            .inspect_err(|error| shared.note(error))?;
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

/// Removes an index with what SQLite keeps beside it.
fn remove(path: &Path) -> Result<(), OpenError> {
    for suffix in ["", "-wal", "-shm"] {
        match std::fs::remove_file(beside(path, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(OpenError::io(path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn create(path: &Path, more: &str) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    connection.execute_batch(&format!("BEGIN; {SCHEMA} {more} PRAGMA user_version = {VERSION}; COMMIT;"))?;
    Ok(connection)
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

/// What one step adds, gathered by key so that each key is one row.
#[derive(Default)]
struct Gathered {
    /// By stream: its first revision here, and the positions of that and the next ones.
    revisions: BTreeMap<i64, (Revision, Vec<Position>)>,
    words: BTreeMap<i64, Vec<Position>>,
    correlations: BTreeMap<[u8; 16], Vec<Position>>,
    ids: Vec<([u8; 16], i64)>,
}

/// A stream as the index knows it.
#[derive(Clone, Copy)]
struct Stream {
    id: i64,
    /// The revision of its next event: two events at one place, or a gap, are noticed here at the latest.
    next: Revision,
}

fn insert(
    transaction: &Transaction<'_>,
    streams: &mut LruCache<Arc<str>, Stream>,
    words: &mut LruCache<Box<str>, i64>,
    events: &[Arc<Recorded>],
    sparse: bool,
) -> Result<(), Unfit> {
    let mut gathered = Gathered::default();
    let mut text = String::new();
    for event in events {
        let stream = match streams.get_mut(&event.stream) {
            Some(stream) => stream,
            None => {
                let stream = known_stream(transaction, &event.stream)?;
                streams.get_or_insert_mut(Arc::clone(&event.stream), || stream)
            }
        };
        if event.revision != stream.next {
            return Err(Unfit::Revision { position: event.position, next: stream.next });
        }
        stream.next += 1;
        gathered
            .revisions
            .entry(stream.id)
            .or_insert_with(|| (event.revision, Vec::new()))
            .1
            .push(event.position);
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
            gathered.words.entry(id).or_default().push(event.position);
            Ok(())
        };
        word("c:", category(&event.stream))?;
        if sparse {
            word(EVERY, "")?;
        }
        for tag in &event.tags {
            word("t:", tag)?;
        }
        gathered.correlations.entry(event.correlation_id.into_bytes()).or_default().push(event.position);
        gathered.ids.push((event.id.into_bytes(), event.position as i64));
    }
    write(transaction, gathered)?;
    Ok(())
}

/// In order of key, so that each page is visited once.
fn write(transaction: &Transaction<'_>, mut gathered: Gathered) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached("INSERT INTO revisions VALUES (?1, ?2, ?3, ?4)")?;
    for (stream, (mut revision, positions)) in gathered.revisions {
        for run in positions.chunks(runs::LONGEST) {
            statement.execute((stream, revision as i64, run[0] as i64, runs::encode(run)))?;
            revision += run.len() as Revision;
        }
    }
    let mut statement = transaction.prepare_cached("INSERT INTO word_positions VALUES (?1, ?2, ?3)")?;
    for (word, positions) in gathered.words {
        for run in positions.chunks(runs::LONGEST) {
            statement.execute((word, run[0] as i64, runs::encode(run)))?;
        }
    }
    let mut statement =
        transaction.prepare_cached("INSERT INTO correlation_positions VALUES (?1, ?2, ?3)")?;
    for (correlation, positions) in gathered.correlations {
        for run in positions.chunks(runs::LONGEST) {
            statement.execute((correlation, run[0] as i64, runs::encode(run)))?;
        }
    }
    gathered.ids.sort_unstable();
    let mut statement = transaction.prepare_cached("INSERT INTO id_positions VALUES (?1, ?2)")?;
    for row in gathered.ids {
        statement.execute(row)?;
    }
    Ok(())
}

fn known_stream(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Stream> {
    let id = intern(transaction, "streams", "name", name)?;
    let last = transaction
        .prepare_cached(
            "SELECT revision, first, others FROM revisions WHERE stream = ?1 ORDER BY revision DESC LIMIT 1",
        )?
        .query_row([id], |row| {
            let run = runs::decode(row.get(1)?, row.get_ref(2)?.as_blob()?).unwrap_or_default();
            Ok(row.get::<_, i64>(0)? as Revision + run.len() as Revision)
        })
        .optional()?;
    Ok(Stream { id, next: last.unwrap_or(0) })
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
