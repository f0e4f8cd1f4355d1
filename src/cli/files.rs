//! Where the files are that an offline verb works on: the configuration's places, or those that flags name.

use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;

use crate::clock::Clock;
use crate::config::{Config, Place};
use crate::engine::{Engine, EngineError};

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
    /// The log, instead of the configured one: a file, or `postgres://…`.
    #[arg(long, value_name = "FILE|URL")]
    pub log: Option<String>,
}

impl LogFile {
    /// The configuration with the flags over it.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.files.config()?;
        if let Some(log) = &self.log {
            let is_address =
                ["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| log.starts_with(scheme));
            config.log.url = if is_address { log.clone() } else { format!("sqlite:{log}") };
        }
        Ok(config)
    }

    /// Opens the log for reading; services may be writing to it.
    pub async fn read_only(&self) -> anyhow::Result<Engine> {
        let opened = Engine::open_read_only(&self.config()?, &Clock::system()).await;
        if let Err(EngineError::Missing(path)) = &opened {
            anyhow::bail!(
                "there is no log at {}: name it with --log, --state-dir or --config",
                path.display()
            );
        }
        Ok(opened?)
    }

    /// Opens the log for writing (a file as its only writer), and makes it if there is none.
    pub async fn writable(&self) -> anyhow::Result<Engine> {
        let config = self.config()?;
        if let Place::File(path) = config.log_place()
            && let Some(directory) = path.parent()
        {
            std::fs::create_dir_all(directory)?;
        }
        Ok(Engine::open(&config, &Clock::system()).await?)
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
