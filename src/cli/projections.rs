//! `projections`: read models, which are caches of the log.

use clap::Subcommand;
use serde_json::json;

use super::client::path;
use super::out::Column;
use super::{Context, Outcome};

const COLUMNS: &[Column] = &[
    ("NAME", "name"),
    ("VERSION", "version"),
    ("STATE", "state"),
    ("POSITION", "position"),
    ("LAG", "lag_events"),
    ("LAG SECONDS", "lag_seconds"),
];

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The read models of the service, and how far they are [API]
    List,
    /// Build read models again from the log, beside the old ones, which go on answering [API]
    Rebuild {
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match self {
            Self::List => context.out.list(&client.get("/projections", &[]).await?, COLUMNS)?,
            Self::Rebuild { name, .. } => {
                let path = match &name {
                    Some(name) => path(["projections", name, "rebuild"]),
                    None => "/projections/rebuild".to_owned(),
                };
                context.out.thing(&client.post(&path, &json!({})).await?)?;
            }
        }
        Ok(Outcome::Done)
    }
}
