//! Which engine keeps the log: an address, and the one place where engines are told apart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use beampipe_log::ndjson::Restore;
use beampipe_log::postgres::{PostgresLog, PostgresOptions};
use beampipe_log::verify::{VerifyProgress, VerifyReport};
#[cfg(feature = "eventstore")]
use beampipe_log::{EventStoreLog, EventStoreOptions};
use beampipe_log::{Log, ReadError, SqliteLog, SqliteOptions};

use secrecy::ExposeSecret as _;

use crate::clock::Clock;
use crate::config;
use crate::secrets::SecretRef;

/// What every engine can do beside the port: take events over as they are, and check all that it keeps.
#[async_trait]
pub trait Engine: Log + Restore {
    /// Checks everything; `progress` hears of it now and then. Finds every fault and does not stop at the first.
    async fn check(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, ReadError>;
}

#[async_trait]
impl Engine for SqliteLog {
    async fn check(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, ReadError> {
        // Only the command line asks, and does nothing else meanwhile.
        self.verify(progress)
    }
}

#[cfg(feature = "eventstore")]
#[async_trait]
impl Engine for EventStoreLog {
    async fn check(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, ReadError> {
        self.verify(progress).await
    }
}

#[async_trait]
impl Engine for PostgresLog {
    async fn check(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, ReadError> {
        self.verify(progress).await
    }
}

/// Where a log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Sqlite(PathBuf),
    /// An address without a password.
    Postgres(String),
    /// An address without a password, and the file of this process's index; `None` for one that is gone with the process.
    EventStore {
        address: String,
        index: Option<PathBuf>,
    },
}

/// The addresses that there are, for messages.
pub const ADDRESSES: &str = "sqlite:<path>, postgres://user@host[:port]/database[?schema=…], or esdb://[user@]host[:port][,host[:port]…][?tls=…]";

impl Place {
    /// Reads an address; a path alone is an embedded log.
    pub fn parse(address: &str) -> Result<Self, String> {
        match address.split_once(':') {
            Some(("sqlite", path)) => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(address.to_owned())),
            Some(("esdb" | "esdb+discover" | "kurrentdb" | "kurrentdb+discover", _)) => {
                #[cfg(feature = "eventstore")]
                beampipe_log::eventstore::check_address(address).map_err(|error| error.to_string())?;
                Ok(Self::EventStore { address: address.to_owned(), index: None })
            }
            Some((scheme, rest)) if rest.starts_with("//") => {
                Err(format!("{scheme}: is no engine of this release; there are {ADDRESSES}"))
            }
            _ => Ok(Self::Sqlite(address.into())),
        }
    }

    /// Whether no other process can append to this log.
    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    pub fn engine(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
            Self::EventStore { .. } => "eventstore",
        }
    }

    /// Opens the log for writing, and makes it if there is none.
    pub async fn open(&self, settings: &config::Log, clock: &Clock) -> anyhow::Result<Arc<dyn Engine>> {
        Ok(match self {
            Self::Sqlite(path) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory)?;
                }
                let log = SqliteLog::open(path, sqlite(clock));
                Arc::new(log.with_context(|| format!("the log {} cannot be opened", path.display()))?)
            }
            Self::Postgres(address) => Arc::new(PostgresLog::open(address, postgres(settings)).await?),
            Self::EventStore { address, index } => {
                if let Some(directory) = index.as_deref().and_then(Path::parent) {
                    std::fs::create_dir_all(directory)?;
                }
                eventstore(address, index.clone(), false, settings, clock).await?
            }
        })
    }

    /// Opens the log for reading; a service may be writing to it.
    pub async fn open_read_only(
        &self,
        settings: &config::Log,
        clock: &Clock,
    ) -> anyhow::Result<Arc<dyn Engine>> {
        Ok(match self {
            Self::Sqlite(path) => {
                anyhow::ensure!(
                    path.is_file(),
                    "there is no log at {}: name it with --log, --state-dir or --config",
                    path.display()
                );
                Arc::new(SqliteLog::open_read_only(path, sqlite(clock))?)
            }
            Self::Postgres(address) => {
                Arc::new(PostgresLog::open_read_only(address, postgres(settings)).await?)
            }
            // The index of the configuration is the service's.
            Self::EventStore { address, .. } => eventstore(address, None, true, settings, clock).await?,
        })
    }
}

fn sqlite(clock: &Clock) -> SqliteOptions {
    let clock = clock.clone();
    SqliteOptions::new(Arc::new(move || clock.now()))
}

fn postgres(settings: &config::Log) -> PostgresOptions {
    let password = settings.password.clone().map(|secret: SecretRef| {
        let read: beampipe_log::postgres::Password = Arc::new(move || {
            let secret = secret.read().map_err(|error| error.to_string())?;
            Ok(secret.expose_secret().to_owned())
        });
        read
    });
    PostgresOptions { password, ..PostgresOptions::default() }
}

#[cfg(feature = "eventstore")]
async fn eventstore(
    address: &str,
    index: Option<PathBuf>,
    read_only: bool,
    settings: &config::Log,
    clock: &Clock,
) -> anyhow::Result<Arc<dyn Engine>> {
    let password = settings.password.as_ref().map(SecretRef::read).transpose();
    let password = password.map_err(anyhow::Error::msg).context("log.password cannot be read")?;
    let now = clock.clone();
    let options = EventStoreOptions {
        username: settings.username.clone(),
        password: password.map(|secret| secret.expose_secret().to_owned()),
        index,
        read_only,
        ..EventStoreOptions::new(address, Arc::new(move || now.now()))
    };
    Ok(Arc::new(EventStoreLog::open(options).await?))
}

#[cfg(not(feature = "eventstore"))]
async fn eventstore(
    _: &str,
    _: Option<PathBuf>,
    _: bool,
    _: &config::Log,
    _: &Clock,
) -> anyhow::Result<Arc<dyn Engine>> {
    anyhow::bail!("this build has no engine esdb: it was made without the feature eventstore")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_engine_and_a_path_is_an_embedded_log() {
        assert_eq!(Place::parse("sqlite:/a/b").unwrap(), Place::Sqlite("/a/b".into()));
        assert_eq!(Place::parse("/a/b.sqlite").unwrap(), Place::Sqlite("/a/b.sqlite".into()));
        let address = "postgres://beampipe@db/beampipe?schema=survey";
        assert_eq!(Place::parse(address).unwrap(), Place::Postgres(address.into()));
        let address = "esdb://a:2113,b:2113,c:2113";
        let place = Place::parse(address).unwrap();
        assert_eq!(place, Place::EventStore { address: address.into(), index: None });
        assert!(!place.is_embedded());
        let error = Place::parse("esdb://admin:canary@a").unwrap_err();
        assert!(error.contains("log.password") && !error.contains("canary"), "{error}");
        let error = Place::parse("mysql://db").unwrap_err();
        assert!(error.contains("mysql") && error.contains("postgres://"), "{error}");
    }
}
