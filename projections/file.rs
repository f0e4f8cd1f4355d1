//! The file of one read model: rows, counts and checkpoint, changed together or not at all.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use beampipe_log::{Hash, Position};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Result};

use crate::counts::Counts;
use crate::expand;
use crate::projection::Projection;
use crate::{Envelope, Gauges};

const COMMON: &str = include_str!("../migrations/views/common.sql");
/// After how many events that change no row the checkpoint is written nevertheless.
const UNSAVED_EVENTS: usize = 20_000;

/// Up to where a read model has followed the log; the hash says *which* log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub position: Position,
    pub hash: Hash,
}

/// A file that follows the log, without the type of its projection.
pub(crate) trait Fold: Send {
    fn checkpoint(&self) -> Checkpoint;

    /// Whether the rows were written by another version of the projection.
    fn is_outdated(&self) -> bool;

    /// Applies what is after the checkpoint, in one transaction. Says whether any row may have changed.
    /// After an error the file is as before; it has to be opened again.
    fn apply(&mut self, envelopes: &[Envelope]) -> Result<bool>;

    /// Marks the rows as not to be kept: whoever opens the file next builds them anew.
    fn distrust(&self) -> Result<()>;

    /// Shows the numbers as they are now.
    fn publish(&self, gauges: &ArcSwap<Gauges>) -> Result<()>;

    /// Writes the checkpoint, moves everything into the one file, and closes it. Durable when it returns.
    fn close(self: Box<Self>) -> Result<()>;
}

pub(crate) struct File<P> {
    path: PathBuf,
    db: Connection,
    counts: Counts,
    checkpoint: Checkpoint,
    unsaved: usize,
    outdated: bool,
    projection: PhantomData<fn() -> P>,
}

impl<P: Projection> File<P> {
    /// Opens or creates it. Of an older file, what the present schema has more is added.
    pub fn open(path: &Path) -> Result<Self> {
        // One thread writes it: SQLite need not guard the connection.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.set_prepared_statement_cache_capacity(128);
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -16384; \
             PRAGMA wal_autocheckpoint = 10000; PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY;",
        )?;
        db.execute_batch(COMMON)?;
        let known = db
            .query_row("SELECT position, hash, version FROM checkpoint", [], |row| {
                Ok((row.get::<_, u64>(0)?, row.get::<_, [u8; 32]>(1)?, row.get::<_, u32>(2)?))
            })
            .optional()?;
        let outdated = known.is_some_and(|(_, _, version)| version != P::VERSION);
        if outdated {
            expand::expand(&db, P::SCHEMA)?;
        }
        db.execute_batch(P::SCHEMA)?;
        let checkpoint =
            known.map(|(position, hash, _)| Checkpoint { position, hash: Hash(hash) }).unwrap_or_default();
        if known.is_none() {
            let row = (0, Hash::default().0, P::VERSION);
            db.execute("INSERT INTO checkpoint (one, position, hash, version) VALUES (1, ?1, ?2, ?3)", row)?;
        }
        let counts = Counts::load(&db)?;
        let path = path.to_owned();
        Ok(Self { path, db, counts, checkpoint, unsaved: 0, outdated, projection: PhantomData })
    }

    fn save_checkpoint(&self, checkpoint: Checkpoint) -> Result<()> {
        // The version stays: an outdated file stays outdated until its rows are built anew.
        let sql = "UPDATE checkpoint SET position = ?1, hash = ?2 WHERE one = 1";
        self.db.prepare_cached(sql)?.execute((checkpoint.position, checkpoint.hash.0))?;
        Ok(())
    }

    fn transaction(&mut self, new: &[Envelope], checkpoint: Checkpoint) -> Result<()> {
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let outcome = (|| {
            let mut rows = P::Rows::default();
            for envelope in new.iter().filter(|envelope| P::wants(&envelope.event)) {
                P::apply(&self.db, &mut rows, &mut self.counts, envelope)?;
            }
            P::flush(&self.db, &mut rows)?;
            self.counts.flush(&self.db)?;
            self.save_checkpoint(checkpoint)?;
            self.db.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        })();
        if outcome.is_err() && !self.db.is_autocommit() {
            self.db.execute_batch("ROLLBACK")?;
        }
        outcome
    }
}

impl<P: Projection> Fold for File<P> {
    fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    fn is_outdated(&self) -> bool {
        self.outdated
    }

    fn apply(&mut self, envelopes: &[Envelope]) -> Result<bool> {
        let known = envelopes.partition_point(|e| e.recorded.position <= self.checkpoint.position);
        let new = &envelopes[known..];
        let Some(last) = new.last() else { return Ok(false) };
        let checkpoint = Checkpoint { position: last.recorded.position, hash: last.recorded.hash };
        let wanted = new.iter().any(|envelope| P::wants(&envelope.event));
        if wanted || self.unsaved + new.len() > UNSAVED_EVENTS {
            self.transaction(new, checkpoint)?;
            self.unsaved = 0;
        } else {
            self.unsaved += new.len();
        }
        self.checkpoint = checkpoint;
        Ok(wanted)
    }

    fn distrust(&self) -> Result<()> {
        // No projection has version 0.
        self.db.execute("UPDATE checkpoint SET version = 0", [])?;
        Ok(())
    }

    fn publish(&self, gauges: &ArcSwap<Gauges>) -> Result<()> {
        let part = Arc::new(P::gauges(&self.db, &self.counts)?);
        gauges.rcu(|all| {
            let mut all = Gauges::clone(all);
            P::publish(&mut all, part.clone());
            all
        });
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.save_checkpoint(self.checkpoint)?;
        // Whoever reads now keeps it from being emptied; then the last connection that closes does it.
        self.db.busy_timeout(Duration::from_millis(100))?;
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        let Self { path, db, .. } = *self;
        db.close().map_err(|(_, error)| error)?;
        let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
        synced.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
    }
}

/// Removes a read model's file with what SQLite keeps beside it.
pub(crate) fn remove(path: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether opening the file again cannot help: it is not what was written, or its shape is of another time.
pub(crate) fn is_hopeless(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(inner, _) => matches!(
            inner.code,
            ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::ConstraintViolation
                | ErrorCode::Unknown
        ),
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..) => true,
        _ => false,
    }
}
