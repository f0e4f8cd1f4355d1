//! `serve`: the service itself.

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::Args;

use super::Outcome;
use super::files::Files;
use crate::config::Role;
use crate::{app, telemetry};

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    files: Files,
    /// Where the API listens, instead of the configured address.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where Prometheus scrapes without a key, instead of the configured address.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// What this process does, instead of the configured roles: all three, unless they are split over a shared log.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROLES")]
    role: Vec<Role>,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let mut config = self.files.config()?;
        config.http.listen = self.listen.unwrap_or(config.http.listen);
        config.metrics.listen = self.metrics_listen.unwrap_or(config.metrics.listen);
        if !self.role.is_empty() {
            config.roles = self.role.into_iter().collect();
            config.check()?;
        }
        telemetry::init(&config.telemetry)?;
        // Wherever the service is started from, a relative path means the same from here on.
        let graphs = &mut config.work.graph_dir;
        *graphs = std::fs::canonicalize(&*graphs)
            .with_context(|| format!("work.graph_dir {} cannot be used", graphs.display()))?;
        tracing::info!(graph_dir = %graphs.display(), "graphs are read from here");
        app::serve(config).await?;
        Ok(Outcome::Done)
    }
}
