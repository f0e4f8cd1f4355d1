//! `profile`: deployment profiles, named or by UUID.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::path;
use super::out::Column;
use super::{Context, Outcome, names};

/// The script that a profile makes of a session.
mod render;

const COLUMNS: &[Column] = &[
    ("NAME", "name"),
    ("KIND", "deployment.kind"),
    ("PROJECT", "project_module"),
    ("DEFAULT", "is_default"),
    ("LIMIT", "max_concurrent_executions"),
    ("REVISION", "revision"),
    ("UUID", "uuid"),
];

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The profiles (API)
    List,
    /// One profile (API)
    Show {
        #[arg(value_parser = names::profile, value_name = "NAME|UUID")]
        profile: Uuid,
    },
    /// Create a profile from JSON or YAML (API)
    Create { file: PathBuf },
    /// Remove a profile that nothing uses (API)
    Remove {
        #[arg(value_parser = names::profile, value_name = "NAME|UUID")]
        profile: Uuid,
    },
    /// Admit nothing to it any more; what runs there goes on (API)
    Pause {
        #[arg(value_parser = names::profile, value_name = "NAME|UUID")]
        profile: Uuid,
        #[arg(long)]
        reason: Option<String>,
    },
    /// Admit to it again (API)
    Resume {
        #[arg(value_parser = names::profile, value_name = "NAME|UUID")]
        profile: Uuid,
    },
    /// The exact script of a Slurm job on a profile: one of the service (API), or of a file (files)
    Render(render::Render),
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        if let Self::Render(render) = self {
            return render.run(context).await;
        }
        let client = context.client()?;
        match self {
            Self::Render(_) => {}
            Self::List => context.out.list(&client.get("/deployment-profiles", &[]).await?, COLUMNS)?,
            Self::Show { profile } => {
                let path = path(["deployment-profiles", &profile.to_string()]);
                context.out.thing(&client.get(&path, &[]).await?)?;
            }
            Self::Create { file } => {
                let created = client.post("/deployment-profiles", &read(&file)?).await?;
                context.out.thing(&created)?;
            }
            Self::Pause { profile, reason } => {
                let path = path(["deployment-profiles", &profile.to_string(), "pause"]);
                context.out.thing(&client.post(&path, &json!({"reason": reason})).await?)?;
            }
            Self::Resume { profile } => {
                let path = path(["deployment-profiles", &profile.to_string(), "resume"]);
                context.out.thing(&client.post(&path, &json!({})).await?)?;
            }
            Self::Remove { profile } => {
                client.delete(&path(["deployment-profiles", &profile.to_string()])).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// Reads JSON or YAML; what it says is checked by the service.
fn read(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let read = || format!("{} is no {}", file.display(), if json { "JSON" } else { "YAML" });
    match json {
        true => serde_json::from_str(&text).with_context(read),
        false => serde_saphyr::from_str(&text).with_context(read),
    }
}
