//! Where the files are that an offline verb works on: the configuration's places, or those that flags name.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::engine::{Engine, Place};

#[derive(Debug, Args)]
pub struct Files {
    /// The service's configuration file.
    #[arg(long, env = "BEAMPIPE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The service's state directory, instead of the configured one.
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
}

impl Files {
    /// The configuration with the flags over it.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(directory) = &self.state_dir {
            config.state_dir.clone_from(directory);
        }
        Ok(config)
    }
}

#[derive(Debug, Args)]
pub struct LogFile {
    #[command(flatten)]
    pub files: Files,
    /// The log, instead of the configured one: a file, postgres://user@host/database or esdb://host (user and password are the configured ones).
    #[arg(long, value_name = "LOG")]
    pub log: Option<String>,
}

impl LogFile {
    /// Opens the log for reading; a service may be writing to it.
    pub async fn read_only(&self) -> anyhow::Result<Arc<dyn Engine>> {
        let (place, settings) = self.place()?;
        place.open_read_only(&settings, &Clock::system()).await
    }

    /// Opens the log for writing, and makes it if there is none. An embedded log has one writer.
    pub async fn writable(&self) -> anyhow::Result<Arc<dyn Engine>> {
        let (place, settings) = self.place()?;
        place.open(&settings, &Clock::system()).await
    }

    fn place(&self) -> anyhow::Result<(Place, config::Log)> {
        let config = self.files.config()?;
        let place = match &self.log {
            Some(address) => Place::parse(address).map_err(anyhow::Error::msg)?,
            // The index of the configuration is the service's, which may be running.
            None => match config.log_place() {
                Place::EventStore { address, .. } => Place::EventStore { address, index: None },
                place => place,
            },
        };
        Ok((place, config.log))
    }
}

/// Standard input as a stream of bytes.
pub fn stdin() -> std::io::Result<tokio::fs::File> {
    Ok(std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned()?).into())
}

/// Standard output as a stream of bytes.
pub fn stdout() -> std::io::Result<tokio::fs::File> {
    Ok(std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?).into())
}
