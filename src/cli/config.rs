//! `config explain`: every value with where it comes from.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Context, Outcome};
use crate::config;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print every value with where it comes from (files)
    Explain {
        /// The service's configuration file.
        #[arg(long, env = "BEAMPIPE_CONFIG")]
        config: Option<PathBuf>,
    },
}

impl Verb {
    pub fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let Self::Explain { config: file } = self;
        let lines = config::explain(file.as_deref())?;
        let rows: Vec<Value> = lines
            .into_iter()
            .map(|(name, value, source)| {
                let value = serde_json::from_str(&value).unwrap_or(Value::String(value));
                json!({"name": name, "value": value, "source": source})
            })
            .collect();
        context.out.list(&rows.into(), &[("NAME", "name"), ("VALUE", "value"), ("FROM", "source")])?;
        // Explained even when it cannot be used: that is when one wants to know.
        config::Config::load(file.as_deref())?;
        Ok(Outcome::Done)
    }
}
