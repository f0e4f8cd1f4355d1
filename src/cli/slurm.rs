//! `slurm`: whether login nodes can be worked with from here, one line a check, with what puts it right.
//!
//! Connections are made by this process, with the credential slots of its configuration: run it where the workers run.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail};
use beampipe_domain::profile::Deployment;
use clap::{Args, Subcommand};
use serde_json::Value;
use uuid::Uuid;

use super::checks::Checks;
use super::client::path;
use super::{Context, Outcome, names};
use crate::backends::slurm::cluster::Cluster;
use crate::config::Config;
use crate::ssh::{Pool, Target};
use crate::work::cluster;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Connect to a login node and see that Slurm answers there: a profile's (API), or --host (files)
    Ping(Ping),
    /// Credential slots (files)
    #[command(subcommand)]
    Credentials(Slots),
}

#[derive(Debug, Subcommand)]
pub enum Slots {
    /// Check the files of one slot, or of all (files)
    Check {
        slot: Option<String>,
        /// The service's configuration file.
        #[arg(long, env = "BEAMPIPE_CONFIG")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct Ping {
    #[arg(value_parser = names::profile, value_name = "NAME|UUID", required_unless_present = "host")]
    profile: Option<Uuid>,
    /// The login node, instead of a profile's.
    #[arg(long, conflicts_with = "profile", requires = "user")]
    host: Option<String>,
    #[arg(long, default_value_t = 22)]
    port: u16,
    #[arg(long)]
    user: Option<String>,
    /// The credential slot.
    #[arg(long, default_value = "default")]
    slot: String,
    /// A node on the way: USER@HOST, or USER@HOST:PORT.
    #[arg(long)]
    jump: Option<String>,
    /// The credential slot of the node on the way.
    #[arg(long, default_value = "default")]
    jump_slot: String,
    /// The service's configuration file.
    #[arg(long, env = "BEAMPIPE_CONFIG")]
    config: Option<PathBuf>,
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let mut checks = Checks::default();
        match self {
            Self::Credentials(Slots::Check { slot, config }) => {
                let credentials = Config::load(config.as_deref())?.credentials();
                let slots = match slot {
                    Some(slot) => vec![slot],
                    None => credentials.slots()?.into_iter().map(|slot| slot.name).collect(),
                };
                if slots.is_empty() {
                    let wanted = credentials.directory().join("default");
                    checks.no(
                        "slots",
                        format!("there is none: make {} with private_key and known_hosts", wanted.display()),
                    );
                }
                slots.iter().for_each(|slot| checks.slot(&credentials, slot));
            }
            Self::Ping(ping) => ping.run(context, &mut checks).await?,
        }
        checks.show(context)
    }
}

impl Ping {
    async fn run(self, context: &Context, checks: &mut Checks) -> anyhow::Result<()> {
        let config = Config::load(self.config.as_deref())?;
        let target = self.target(context).await?;
        let pool = Pool::new(config.credentials(), config.ssh.settings());
        for target in std::iter::successors(Some(&target), |target| target.jump.as_deref()) {
            checks.slot(pool.credentials(), &target.slot);
        }
        let began = Instant::now();
        if checks.failed
            || !checks.done("connection", pool.connect(&target).await, |()| in_time(&target, began))
        {
            return Ok(());
        }
        checks.done("files", pool.files(&target).await, |_| "SFTP".to_owned());
        checks.slurm(&Cluster::new(pool, target)).await;
        Ok(())
    }

    async fn target(&self, context: &Context) -> anyhow::Result<Target> {
        let target = match (self.profile, &self.host, &self.user) {
            (Some(profile), ..) => {
                let profile =
                    context.client()?.get(&path(["deployment-profiles", &profile.to_string()]), &[]).await?;
                of_profile(&profile["deployment"])?
            }
            (None, Some(host), Some(user)) => Target::new(host, self.port, user, &self.slot)?,
            _ => bail!("name a profile, or a login node with --host and --user"),
        };
        let Some(jump) = &self.jump else { return Ok(target) };
        let (user, place) = jump.split_once('@').context("--jump is USER@HOST[:PORT]")?;
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().context("--jump is USER@HOST[:PORT]")?),
            None => (place, 22),
        };
        Ok(target.through(Target::new(host, port, user, &self.jump_slot)?))
    }
}

/// The way in that a profile names.
fn of_profile(deployment: &Value) -> anyhow::Result<Target> {
    match serde_json::from_value(deployment.clone()).context("the profile cannot be read")? {
        Deployment::SlurmRemote(remote) => cluster::target(&remote).map_err(anyhow::Error::msg),
        other => bail!("the profile is of kind {}, and only slurm_remote has a login node", other.kind()),
    }
}

pub(super) fn in_time(target: &Target, began: Instant) -> String {
    format!("{target} in {} ms", began.elapsed().as_millis())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_profile_that_names_no_way_in_is_refused_with_what_is_missing() {
        let full = json!({"kind": "slurm_remote", "login_node": "h", "ssh_port": 2222, "remote_user": "u", "ssh_credential": "s"});
        assert_eq!(format!("{:?}", of_profile(&full).unwrap()), "Target(u@h:2222, slot s)");
        let other = json!({"kind": "simulated"});
        assert!(of_profile(&other).unwrap_err().to_string().contains("only slurm_remote"));
        for (field, word) in [("login_node", "host"), ("remote_user", "remote_user")] {
            let mut less = full.clone();
            less.as_object_mut().unwrap().remove(field);
            let error = of_profile(&less).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let through =
            json!({"kind": "slurm_remote", "login_node": "h", "remote_user": "u", "jump": {"host": "j"}});
        assert!(of_profile(&through).unwrap().jump.is_some());
    }
}
