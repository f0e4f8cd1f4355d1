//! Opening the two files: settings, migrations, and what an SQLite error means to a reader.

use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::ReadError;

/// In order; `user_version` says how many a file has had.
const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/log-sqlite/0001_events.sql")];
/// "bplg": how a file says that it is one of these logs.
const APPLICATION_ID: i32 = 0x6270_6c67;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process (pid {pid}) writes to {path}")]
    Locked { path: PathBuf, pid: String },
    #[error("{path} is not an event log")]
    NotALog { path: PathBuf },
    #[error("{path} was made by a later release (schema {found}, this one knows {known})")]
    TooNew { path: PathBuf, found: i32, known: i32 },
    #[error("the log is damaged at {place}: {what}")]
    Damaged { place: String, what: String },
    #[error("cannot open {path}")]
    Sqlite {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot open {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl OpenError {
    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        match read_error(path, &source) {
            ReadError::Damaged { place, what } => Self::Damaged { place, what },
            _ => Self::Sqlite { path: path.to_owned(), source },
        }
    }

    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged { place, what } => Self::Damaged { place, what },
            other => Self::Damaged { place: "the log".into(), what: other.to_string() },
        }
    }
}

/// Damage where SQLite says that the file is not what it wrote, else a reason to try again later.
pub(crate) fn read_error(path: &Path, error: &rusqlite::Error) -> ReadError {
    let unreadable = matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
    );
    let corrupt =
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase));
    if unreadable || corrupt {
        return ReadError::Damaged { place: path.display().to_string(), what: error.to_string() };
    }
    ReadError::Unavailable(format!("{}: {error}", path.display()))
}

/// `path` with `suffix` after its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    // A closing connection would otherwise take the WAL into the database: on a damaged log that destroys the evidence,
    // on a healthy one the checkpointer decides.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(std::time::Duration::from_secs(10))
}

/// The connection that writes events. Creates the file.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let fail = |error| OpenError::sqlite(path, error);
    let mut connection = Connection::open(path).map_err(fail)?;
    settle(&connection).map_err(fail)?;
    connection
        .execute_batch(
            "PRAGMA page_size = 8192;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 0;
             PRAGMA secure_delete = ON;
             PRAGMA foreign_keys = ON;
             PRAGMA cache_size = -8000;",
        )
        .map_err(fail)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// A connection that moves the WAL into the database.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, OpenError> {
    let fail = |error| OpenError::sqlite(path, error);
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | no_mutex()).map_err(fail)?;
    settle(&connection).map_err(fail)?;
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -256;")
        .map_err(fail)?;
    Ok(connection)
}

/// A connection that only reads.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | no_mutex();
    let connection = Connection::open_with_flags(path, flags)?;
    settle(&connection)?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -4000;")?;
    Ok(connection)
}

fn no_mutex() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn versions(connection: &Connection) -> rusqlite::Result<(i32, i32)> {
    let application = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok((application, version))
}

/// Refuses a file that is not a log of a known version.
pub(super) fn recognise(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let (application, found) = versions(connection).map_err(|error| OpenError::sqlite(path, error))?;
    let known = MIGRATIONS.len() as i32;
    match application {
        APPLICATION_ID if found > known => Err(OpenError::TooNew { path: path.to_owned(), found, known }),
        APPLICATION_ID => Ok(()),
        _ => Err(OpenError::NotALog { path: path.to_owned() }),
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let fail = |error| OpenError::sqlite(path, error);
    let (application, version) = versions(connection).map_err(fail)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(fail)?;
    if !(application == 0 && version == 0 && tables == 0) {
        recognise(connection, path)?;
    }
    let transaction = connection.transaction().map_err(fail)?;
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(usize::try_from(version).unwrap_or(0)) {
        transaction.execute_batch(migration).map_err(fail)?;
        transaction.pragma_update(None, "user_version", index as i32 + 1).map_err(fail)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(fail)?;
    }
    transaction.commit().map_err(fail)
}
