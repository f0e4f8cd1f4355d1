//! Reading a read model: a small pool of read-only connections, and where the model is in the log.
//!
//! While a rebuilt file takes the place of the old one, reads wait for the few milliseconds of the rename; they never see
//! half of either.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use beampipe_log::Position;
use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OpenFlags, Params, Row};

/// How many idle connections are kept for a read model.
const IDLE: usize = 4;

/// A read model cannot be read. It is rebuilt from the log when its file is damaged.
#[derive(Debug, thiserror::Error)]
#[error("the read model {name} cannot be read")]
pub struct ReadModelError {
    pub name: &'static str,
    #[source]
    pub source: rusqlite::Error,
}

/// A part of a list that is newest first.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Only what was created before this position (the `created_position` of the last row that was seen).
    pub before: Option<Position>,
    pub offset: u64,
    pub limit: u64,
}

impl Window {
    /// The newest `limit` rows.
    pub fn first(limit: u64) -> Self {
        Self { before: None, offset: 0, limit }
    }

    /// The `limit` rows after the newest `offset`.
    pub fn at(offset: u64, limit: u64) -> Self {
        Self { before: None, offset, limit }
    }

    /// The `limit` rows that were created before position `before`.
    pub fn before(before: Position, limit: u64) -> Self {
        Self { before: Some(before), offset: 0, limit }
    }

    /// The bounds as SQLite takes them: exclusive upper position, limit, offset.
    pub(crate) fn bounds(&self) -> (i64, i64, i64) {
        let clamp = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        (self.before.map_or(i64::MAX, clamp), clamp(self.limit), clamp(self.offset))
    }
}

/// The pool of one read model.
#[derive(Debug)]
pub(crate) struct Reader {
    name: &'static str,
    path: PathBuf,
    position: AtomicU64,
    /// Read-locked by whoever reads; write-locked while the file is exchanged.
    idle: RwLock<Mutex<Vec<Connection>>>,
}

impl Reader {
    pub fn new(name: &'static str, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { name, path, position: AtomicU64::new(0), idle: RwLock::default() })
    }

    /// Every event up to here is in the rows.
    pub fn position(&self) -> Position {
        self.position.load(Ordering::Acquire)
    }

    pub fn set_position(&self, position: Position) {
        self.position.store(position, Ordering::Release);
    }

    /// Closes every connection and keeps readers waiting while `exchange` puts another file in the place of this one.
    pub fn exchanging<T>(&self, exchange: impl FnOnce() -> T) -> T {
        let idle = self.idle.write();
        idle.lock().clear();
        exchange()
    }

    pub fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, ReadModelError> {
        let idle = self.idle.read();
        let taken = idle.lock().pop();
        let answer = (|| {
            let connection = match taken {
                Some(connection) => connection,
                None => open_read_only(&self.path)?,
            };
            let answer = read(&connection)?;
            let mut idle = idle.lock();
            if idle.len() < IDLE {
                idle.push(connection);
            }
            Ok(answer)
        })();
        answer.map_err(|source| ReadModelError { name: self.name, source })
    }

    pub fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        from_row: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, ReadModelError> {
        self.with(|db| db.prepare_cached(sql)?.query_map(params, from_row)?.collect())
    }

    pub fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        from_row: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, ReadModelError> {
        self.with(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query(params)?;
            rows.next()?.map(from_row).transpose()
        })
    }

    /// A count of `family`; the sum over what `a` and `b` leave open.
    pub fn count(&self, family: &str, a: Option<&str>, b: Option<&str>) -> Result<u64, ReadModelError> {
        let sql = "SELECT coalesce(sum(n), 0) FROM counts WHERE family = ?1 AND a = coalesce(?2, a) AND b = coalesce(?3, b)";
        let n = self.one(sql, (family, a, b), |row| row.get::<_, i64>(0))?;
        Ok(n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }
}

/// Opens a read model's file for reading.
pub(crate) fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Declares the handle of a read model.
macro_rules! handle {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $name(pub(crate) std::sync::Arc<crate::reader::Reader>);

        impl $name {
            /// Every event up to here is in the rows. Asked before a read, it holds for what the read answers.
            pub fn position(&self) -> beampipe_log::Position {
                self.0.position()
            }
        }
    };
}
pub(crate) use handle;
