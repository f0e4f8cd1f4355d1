//! `profile render`: what a Slurm job would run, before any does. The text is made here, by the same function as a worker's,
//! so a file needs no service.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use beampipe_domain::profile::{Deployment, SlurmRemote};
use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use super::super::client::path;
use super::super::out::remark;
use super::super::{Context, Outcome, names};
use crate::backends::slurm::check::check;
use crate::backends::slurm::script::{self, Session};

#[derive(Debug, Args)]
pub struct Render {
    #[arg(value_parser = names::profile, value_name = "NAME|UUID", required_unless_present = "file")]
    profile: Option<Uuid>,
    /// A profile in JSON or YAML, instead of one of the service.
    #[arg(long, conflicts_with = "profile")]
    file: Option<PathBuf>,
    /// The session that the script is for.
    #[arg(long, default_value_t = Uuid::nil())]
    session: Uuid,
    /// The session's directory, instead of the one below dlg_root.
    #[arg(long)]
    directory: Option<String>,
    /// What the run is called.
    #[arg(long, default_value = "render")]
    run: String,
}

impl Render {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let profile = match (&self.file, self.profile) {
            (Some(file), _) => super::read(file)?,
            (None, Some(profile)) => {
                context.client()?.get(&path(["deployment-profiles", &profile.to_string()]), &[]).await?
            }
            (None, None) => bail!("name a profile, or give a --file"),
        };
        let remote = slurm(profile)?;
        let wrong = check(&remote);
        if !wrong.is_empty() {
            wrong.iter().for_each(|wrong| remark(format!("error: deployment.{wrong}")));
            return Ok(Outcome::No);
        }
        let id = self.session.to_string();
        let directory = self.directory.unwrap_or_else(|| script::directory(&remote, &id));
        let session = Session { id: &id, directory: &directory, run: &self.run };
        context.out.line(script::render(&remote, session)?.trim_end())?;
        Ok(Outcome::Done)
    }
}

/// The part of a profile that a job is made of.
fn slurm(mut profile: Value) -> anyhow::Result<SlurmRemote> {
    let mut deployment =
        profile.get_mut("deployment").map(Value::take).context("the profile has no deployment")?;
    if let Value::Object(fields) = &mut deployment {
        // Consoles write null for what is absent.
        fields.retain(|_, value| !value.is_null());
    }
    match serde_path_to_error::deserialize(deployment).context("the deployment cannot be read")? {
        Deployment::SlurmRemote(remote) => Ok(*remote),
        other => bail!("the profile is of kind {}; only slurm_remote has a script", other.kind()),
    }
}
