//! `serve`: the service itself.

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::Outcome;
use super::files::Files;
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
    /// Which part to run.
    #[arg(long, value_enum, default_value = "all")]
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    All,
    Api,
    Scheduler,
    Worker,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<Outcome> {
        anyhow::ensure!(
            self.role == Role::All,
            "this release runs everything in one process: leave --role out, or say --role all. The embedded log has one \
             writer; the other roles come with a log that several processes share"
        );
        let mut config = self.files.config()?;
        config.http.listen = self.listen.unwrap_or(config.http.listen);
        config.metrics.listen = self.metrics_listen.unwrap_or(config.metrics.listen);
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
