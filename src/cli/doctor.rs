//! `doctor`: whether an execution on a profile would get through, one line a check, with what puts it right.
//!
//! It looks from where it runs, with the credential slots of its configuration: run it where the workers run. Nothing is
//! submitted, and what it writes it removes.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use beampipe_domain::profile::{Deployment, RestRemote, SlurmRemote};
use clap::Args;
use uuid::Uuid;

use super::checks::Checks;
use super::client::path;
use super::slurm::in_time;
use super::{Context, Outcome, names};
use crate::backends::dim::Dim;
use crate::backends::slurm::check::check;
use crate::backends::slurm::cluster::Cluster;
use crate::backends::slurm::quote::quote;
use crate::backends::slurm::script;
use crate::backends::translator::Translator;
use crate::clock::Clock;
use crate::config::Config;
use crate::ssh::Pool;
use crate::work::cluster;

#[derive(Debug, Args)]
pub struct Doctor {
    #[arg(long, value_parser = names::profile, value_name = "NAME|UUID")]
    profile: Uuid,
    /// The service's configuration file.
    #[arg(long, env = "BEAMPIPE_CONFIG")]
    config: Option<PathBuf>,
}

impl Doctor {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let config = Config::load(self.config.as_deref())?;
        let profile =
            context.client()?.get(&path(["deployment-profiles", &self.profile.to_string()]), &[]).await?;
        let deployment =
            serde_json::from_value(profile["deployment"].clone()).context("the profile cannot be read")?;
        let mut checks = Checks::default();
        match profile["paused_reason"].as_str() {
            Some(reason) => checks.warn("admission", format!("paused: {reason}; beampipe profile resume")),
            None => checks.ok("admission", "not paused"),
        }
        let http = crate::backends::client(true)?;
        match &deployment {
            Deployment::Simulated(_) => checks.ok("backend", "simulated: there is nothing to reach"),
            Deployment::RestRemote(remote) => manager(remote, &mut checks).await?,
            Deployment::SlurmRemote(remote) => login_node(&config, remote, &mut checks).await,
        }
        if !matches!(deployment, Deployment::Simulated(_)) {
            let own = profile["translation"]["tm_url"].as_str().or(config.work.tm_url.as_deref());
            match own {
                Some(url) => {
                    let began = Instant::now();
                    let version = Translator::new(http, url).version().await;
                    checks.done("translator", version, |_| {
                        format!("{url} in {} ms", began.elapsed().as_millis())
                    });
                }
                None => {
                    checks.no("translator", "none: set translation.tm_url in the profile, or work.tm_url")
                }
            }
        }
        checks.show(context)
    }
}

async fn manager(remote: &RestRemote, checks: &mut Checks) -> anyhow::Result<()> {
    let http = crate::backends::client(remote.verify_ssl)?;
    let began = Instant::now();
    let url = remote.base_url();
    let nodes = Dim::new(http, &url).probe().await;
    checks.done("manager", nodes, |_| format!("{url} in {} ms", began.elapsed().as_millis()));
    Ok(())
}

async fn login_node(config: &Config, remote: &SlurmRemote, checks: &mut Checks) {
    for wrong in check(remote) {
        checks.no(&wrong.field, format!("{}: {}", wrong.message, wrong.hint));
    }
    let target = match cluster::target(remote) {
        Ok(target) => target,
        Err(error) => return checks.no("login node", error),
    };
    let pool = Pool::new(config.credentials(), config.ssh.settings());
    for target in std::iter::successors(Some(&target), |target| target.jump.as_deref()) {
        checks.slot(pool.credentials(), &target.slot);
    }
    let began = Instant::now();
    if checks.failed || !checks.done("connection", pool.connect(&target).await, |()| in_time(&target, began))
    {
        return;
    }
    checks.done("files", pool.files(&target).await, |_| "SFTP".to_owned());
    let cluster = Cluster::new(pool, target);
    checks.slurm(&cluster).await;
    let clock = Clock::system();
    let session = clock.id().to_string();
    for (check, line) in lines(remote, &session) {
        match line {
            Ok(line) => {
                checks.run(&cluster, check, &line).await;
            }
            Err(error) => checks.no(check, error.to_string()),
        }
    }
    for warning in cluster::told(&cluster, remote, clock.now()).await {
        checks.warn("site", warning);
    }
}

/// What is run on the login node, by what it checks.
fn lines(remote: &SlurmRemote, session: &str) -> Vec<(&'static str, anyhow::Result<String>)> {
    let directory = script::directory(remote, session);
    let root = || -> anyhow::Result<String> {
        let directory = quote(&directory)?;
        Ok(format!(
            "mkdir -p {directory} && touch {directory}/probe && rm -r {directory} && echo {directory} can be made"
        ))
    };
    let environment = || -> anyhow::Result<String> {
        let lines = [&remote.modules, &remote.venv, &remote.environment_setup].into_iter().flatten();
        let text: Vec<&str> = lines.map(String::as_str).collect();
        let asks = "python3 -c 'import dlg.manager.cmdline, platform; print(\"DALiuGE with Python\", platform.python_version())'";
        Ok(format!("exec bash --login -c {}", quote(&format!("{}\n{asks}", text.join("\n")))?))
    };
    let submission = || -> anyhow::Result<String> {
        let named = script::Session { id: session, directory: &directory, run: "doctor" };
        // Slurm says on stderr when the job would start.
        Ok(format!("printf %s {} | sbatch --test-only 2>&1", quote(&script::render(remote, named)?)?))
    };
    let mut lines =
        vec![("dlg_root", root()), ("environment", environment()), ("sbatch --test-only", submission())];
    if let Some(partition) = remote.resources.as_ref().and_then(|resources| resources.partition.as_ref()) {
        let line = quote(partition).map(|partition| {
            format!("sinfo -h -p {partition} -o '%P %a, %D nodes, %T' | grep . || {{ echo no partition {partition} >&2; exit 1; }}")
        });
        lines.push(("partition", line.map_err(anyhow::Error::from)));
    }
    lines
}
