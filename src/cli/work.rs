//! `job` and `worker`: the queue and who works on it.

use clap::Subcommand;
use serde_json::json;
use uuid::Uuid;

use super::client::path;
use super::out::Column;
use super::{Context, Outcome};

const JOBS: &[Column] = &[
    ("UUID", "uuid"),
    ("KIND", "kind"),
    ("STATUS", "status"),
    ("ATTEMPTS", "attempts"),
    ("OF", "max_attempts"),
    ("NEXT RUN", "next_run_at"),
    ("EXECUTION", "execution_id"),
    ("ERROR", "last_error"),
];
const WORKERS: &[Column] = &[
    ("ID", "id"),
    ("HOST", "host"),
    ("POOL", "pool"),
    ("CAN", "capabilities"),
    ("STATUS", "status"),
    ("HEALTH", "health"),
    ("JOBS", "active_leases"),
    ("STARTED", "started_at"),
    ("VERSION", "version"),
];

#[derive(Debug, Subcommand)]
pub enum Job {
    /// The jobs, newest first (API)
    List {
        #[arg(long, value_parser = ["queued", "running", "completed", "dead_lettered"])]
        status: Option<String>,
        #[arg(long)]
        kind: Option<String>,
        #[arg(long, default_value_t = 100)]
        limit: u64,
        #[arg(long, default_value_t = 0)]
        offset: u64,
    },
    /// Put a dead letter back into the queue (API)
    Requeue {
        id: Uuid,
        #[arg(long, default_value = "requeued from the command line")]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Worker {
    /// The workers (API)
    List {
        /// Also those that have stopped.
        #[arg(long)]
        include_stopped: bool,
    },
    /// Let a worker finish what it has and claim nothing new (API)
    Drain {
        id: String,
        #[arg(long, default_value = "drained from the command line")]
        reason: String,
    },
    /// Let it claim again (API)
    Resume { id: String },
}

impl Job {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match self {
            Self::List { status, kind, limit, offset } => {
                let mut query = vec![("limit", limit.to_string()), ("offset", offset.to_string())];
                query.extend(status.map(|status| ("status", status)));
                query.extend(kind.map(|kind| ("kind", kind)));
                context.out.list(&client.get("/jobs", &query).await?, JOBS)?;
            }
            Self::Requeue { id, reason } => {
                let path = path(["jobs", &id.to_string(), "requeue"]);
                context.out.thing(&client.post(&path, &json!({"reason": reason})).await?)?;
            }
        }
        Ok(Outcome::Done)
    }
}

impl Worker {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match self {
            Self::List { include_stopped } => {
                let query = [("include_stopped", include_stopped.to_string())];
                context.out.list(&client.get("/workers", &query).await?, WORKERS)?;
            }
            Self::Drain { id, reason } => {
                let path = path(["workers", &id, "drain"]);
                context.out.thing(&client.post(&path, &json!({"reason": reason})).await?)?;
            }
            Self::Resume { id } => {
                context.out.thing(&client.post(&path(["workers", &id, "resume"]), &json!({})).await?)?;
            }
        }
        Ok(Outcome::Done)
    }
}
