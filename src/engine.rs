//! The log that the configuration names, whichever engine keeps it.

use std::path::PathBuf;
use std::sync::Arc;

use beampipe_log::ndjson::{ImportError, Progress, import};
use beampipe_log::verify::{VerifyProgress, VerifyReport};
use beampipe_log::{
    Log, PostgresLog, PostgresOptions, ReadError, SqliteLog, SqliteOptions, postgres, sqlite,
};
use tokio::io::AsyncBufRead;

use crate::clock::Clock;
use crate::config::{self, Place};

/// An open log.
#[derive(Debug)]
pub enum Engine {
    Sqlite(SqliteLog),
    Postgres(PostgresLog),
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("there is no log at {0}")]
    Missing(PathBuf),
    #[error("the log {path} cannot be opened")]
    Sqlite {
        path: PathBuf,
        #[source]
        source: sqlite::OpenError,
    },
    #[error("the log cannot be opened")]
    Postgres(#[from] postgres::OpenError),
}

fn sqlite_options(clock: &Clock) -> SqliteOptions {
    let clock = clock.clone();
    SqliteOptions::new(Arc::new(move || clock.now()))
}

fn postgres_options(log: &config::Log) -> PostgresOptions {
    let password = log.password.clone().map(|secret| -> postgres::Password {
        Arc::new(move || secret.read().map_err(|error| format!("log.password: {error}")))
    });
    PostgresOptions { password, ..PostgresOptions::default() }
}

impl Engine {
    /// Opens the log for writing, and makes it if there is none.
    pub async fn open(config: &config::Config, clock: &Clock) -> Result<Self, EngineError> {
        match config.log_place() {
            Place::File(path) => match SqliteLog::open(&path, sqlite_options(clock)) {
                Ok(log) => Ok(Self::Sqlite(log)),
                Err(source) => Err(EngineError::Sqlite { path, source }),
            },
            Place::Server(url) => {
                Ok(Self::Postgres(PostgresLog::open(url, postgres_options(&config.log)).await?))
            }
        }
    }

    /// Opens a log that is there for reading; services may be writing to it.
    pub async fn open_read_only(config: &config::Config, clock: &Clock) -> Result<Self, EngineError> {
        match config.log_place() {
            Place::File(path) if !path.is_file() => Err(EngineError::Missing(path)),
            Place::File(path) => match SqliteLog::open_read_only(&path, sqlite_options(clock)) {
                Ok(log) => Ok(Self::Sqlite(log)),
                Err(source) => Err(EngineError::Sqlite { path, source }),
            },
            Place::Server(url) => {
                let options = postgres_options(&config.log);
                Ok(Self::Postgres(PostgresLog::open_read_only(url, options).await?))
            }
        }
    }

    pub fn log(&self) -> &dyn Log {
        match self {
            Self::Sqlite(log) => log,
            Self::Postgres(log) => log,
        }
    }

    pub fn into_log(self) -> Arc<dyn Log> {
        match self {
            Self::Sqlite(log) => Arc::new(log),
            Self::Postgres(log) => Arc::new(log),
        }
    }

    /// Checks everything that can be recomputed. `progress` hears of it now and then.
    pub async fn verify(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, ReadError> {
        match self {
            Self::Sqlite(log) => log.verify(progress),
            Self::Postgres(log) => log.verify(progress).await,
        }
    }

    /// Takes the lines of an export over.
    pub async fn import(
        &self,
        input: &mut (dyn AsyncBufRead + Unpin + Send),
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Progress, ImportError> {
        match self {
            Self::Sqlite(log) => import(log, input, progress).await,
            Self::Postgres(log) => import(log, input, progress).await,
        }
    }
}
