//! Where the files are that an offline verb works on: the configuration's places, or those that flags name.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use beampipe_log::{SqliteLog, SqliteOptions};
use clap::Args;

use crate::clock::Clock;
use crate::config::Config;

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
    /// The file of the log, instead of the configured one.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

impl LogFile {
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        match &self.log {
            Some(path) => Ok(path.clone()),
            None => Ok(self.files.config()?.log_path()),
        }
    }

    /// Opens the log for reading; a service may be writing to it.
    pub fn read_only(&self) -> anyhow::Result<Arc<SqliteLog>> {
        let path = self.path()?;
        anyhow::ensure!(
            path.is_file(),
            "there is no log at {}: name it with --log, --state-dir or --config",
            path.display()
        );
        Ok(Arc::new(SqliteLog::open_read_only(path, options())?))
    }

    /// Opens the log as its only writer, and makes it if there is none.
    pub fn writable(&self) -> anyhow::Result<SqliteLog> {
        let path = self.path()?;
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        Ok(SqliteLog::open(path, options())?)
    }
}

fn options() -> SqliteOptions {
    let clock = Clock::system();
    SqliteOptions::new(Arc::new(move || clock.now()))
}

/// Standard input as a stream of bytes.
pub fn stdin() -> std::io::Result<tokio::fs::File> {
    Ok(std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned()?).into())
}

/// Standard output as a stream of bytes.
pub fn stdout() -> std::io::Result<tokio::fs::File> {
    Ok(std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?).into())
}
