//! **Clusters** as work sees them: which login node an execution belongs to, and where its session lives there.
//!
//! What is polled together is a [`Site`]: one login node, as one user, with one credential. Two profiles that name the same
//! are one site, and one watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_domain::profile::{JumpHost, SlurmRemote};
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::backends::slurm::Printed;
use crate::backends::slurm::cluster::{Account, Cluster, Reservation, Space};
use crate::backends::slurm::script::{nodes, wall_time_minutes};
use crate::ssh::{self, Output};
use crate::work::Shop;

/// The port of SSH (RFC 4251 §4).
const SSH_PORT: u16 = 22;
/// The credential slot of profiles that name none.
const DEFAULT_SLOT: &str = "default";

/// A login node as one user.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Site {
    pub login_node: String,
    pub ssh_port: u16,
    pub remote_user: String,
    pub ssh_credential: String,
    /// The host on the way, with its user and slot: another way in is another site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
}

impl Site {
    /// Where a profile's executions go, or what it lacks.
    pub fn of(remote: &SlurmRemote) -> Result<Self, String> {
        let user = remote.remote_user.clone().filter(|user| !user.is_empty());
        Ok(Self {
            login_node: remote.login_node.clone(),
            ssh_port: remote.ssh_port.unwrap_or(SSH_PORT),
            remote_user: user.ok_or("the profile names no remote_user to log in as")?,
            ssh_credential: remote.ssh_credential.clone().unwrap_or_else(|| DEFAULT_SLOT.to_owned()),
            jump: remote.jump.as_ref().map(|jump| {
                let JumpHost { host, ssh_port, remote_user, ssh_credential } = jump;
                let (user, slot) =
                    (remote_user.as_deref().unwrap_or("-"), ssh_credential.as_deref().unwrap_or("-"));
                format!("{user}@{host}:{} with slot {slot}", ssh_port.unwrap_or(SSH_PORT))
            }),
        })
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { login_node, ssh_port, remote_user, ssh_credential, jump } = self;
        write!(f, "{remote_user}@{login_node}:{ssh_port} with slot {ssh_credential}")?;
        jump.as_ref().map_or(Ok(()), |jump| write!(f, ", through {jump}"))
    }
}

/// The way in that a profile names.
pub fn target(remote: &SlurmRemote) -> Result<ssh::Target, String> {
    let site = Site::of(remote)?;
    let Site { login_node, ssh_port, remote_user, ssh_credential, .. } = &site;
    let target = ssh::Target::new(login_node, *ssh_port, remote_user, ssh_credential);
    let target = target.map_err(|error| error.to_string())?;
    let Some(jump) = &remote.jump else { return Ok(target) };
    let (user, slot) = (jump.remote_user.as_ref(), jump.ssh_credential.as_ref());
    let jump = ssh::Target::new(
        &jump.host,
        jump.ssh_port.unwrap_or(SSH_PORT),
        user.unwrap_or(remote_user),
        slot.unwrap_or(ssh_credential),
    );
    Ok(target.through(jump.map_err(|error| format!("jump: {error}"))?))
}

/// What a command printed on a login node.
pub struct Said(Output);

impl Said {
    pub fn printed(&self) -> Printed<'_> {
        // Without a code it was ended by a signal, as a shell says it.
        Printed { exit: self.0.code.unwrap_or(128), stdout: &self.0.stdout, stderr: &self.0.stderr }
    }
}

/// Runs a line of squeue or sacct. What was cut off says nothing.
pub async fn asked(cluster: &Cluster, line: &str) -> Result<Said, String> {
    let said = cluster.run(line).await.map_err(|error| error.to_string())?;
    if said.truncated {
        return Err("the answer is larger than what is read of one".into());
    }
    Ok(Said(said))
}

/// What a site told of itself, and when.
#[derive(Clone, Debug, Default)]
struct Look {
    space: Option<Space>,
    account: Option<Account>,
    maintenance: Vec<Reservation>,
}

/// What sites told lately: before a hundred submissions they are not asked a hundred times.
#[derive(Default)]
pub struct Looks(Mutex<HashMap<(Site, String, String), Kept>>);

/// A look and when it was taken; whoever looks holds it, and others wait rather than look, too.
type Kept = Arc<tokio::sync::Mutex<Option<(Instant, Look)>>>;

/// How long a look is good.
const LOOK_LASTS: Duration = Duration::from_secs(600);
/// How long a site is listened to.
const PATIENCE: Duration = Duration::from_secs(10);
/// With less room than this, in bytes, a warning is due.
const LITTLE_ROOM: u64 = 1 << 30;

/// What stands in the way of a job that would be submitted now. Warnings only: what a site tells is not always so, and
/// sbatch has the last word.
pub async fn warnings(shop: &Shop, cluster: &Cluster, remote: &SlurmRemote) -> Vec<String> {
    let Ok(site) = Site::of(remote) else { return vec![] };
    let key = (site, remote.dlg_root.clone(), remote.account.clone());
    let kept = shop.sites.0.lock().entry(key).or_default().clone();
    let mut kept = kept.lock().await;
    let look = match &*kept {
        Some((at, look)) if at.elapsed() < LOOK_LASTS => look.clone(),
        _ => {
            // A site that takes its time tells nothing: no submission waits for it.
            let look = tokio::time::timeout(PATIENCE, look(cluster, remote)).await.unwrap_or_default();
            *kept = Some((Instant::now(), look.clone()));
            look
        }
    };
    drop(kept);
    say(&look, remote, shop.clock.now())
}

/// The same, asked now.
pub async fn told(cluster: &Cluster, remote: &SlurmRemote, now: DateTime<Utc>) -> Vec<String> {
    say(&look(cluster, remote).await, remote, now)
}

/// What cannot be asked is not told: nothing waits for it.
async fn look(cluster: &Cluster, remote: &SlurmRemote) -> Look {
    let (space, account, maintenance) = tokio::join!(
        cluster.space(&remote.dlg_root),
        cluster.account(&remote.account),
        cluster.maintenance()
    );
    Look { space: space.ok().flatten(), account: account.ok(), maintenance: maintenance.unwrap_or_default() }
}

fn say(look: &Look, remote: &SlurmRemote, now: DateTime<Utc>) -> Vec<String> {
    let mut said = vec![];
    if let Some(space) = &look.space {
        let left = space.quota_left.map_or(space.available, |quota| quota.min(space.available));
        if left < LITTLE_ROOM {
            let whose = if space.quota_left.is_some_and(|quota| quota <= space.available) {
                "of the quota "
            } else {
                ""
            };
            said.push(format!("only {} MiB {whose}are left at {}", left >> 20, remote.dlg_root));
        }
    }
    match &look.account {
        Some(Account::NotOurs { ours }) => said.push(format!(
            "the site lists no account {:?} for this user, only {}",
            remote.account,
            ours.join(", ")
        )),
        Some(Account::Ours { cpu_minutes: Some((granted, used)) }) => {
            let minutes = u64::from(wall_time_minutes(remote)) * u64::from(nodes(remote));
            let left = granted.saturating_sub(*used);
            if left < minutes {
                said.push(format!("account {} has {left} CPU minutes left; the job may use {minutes} for each CPU of a node", remote.account));
            }
        }
        _ => {}
    }
    let ends = now + TimeDelta::minutes(i64::from(wall_time_minutes(remote)));
    let partition = remote.resources.as_ref().and_then(|resources| resources.partition.as_deref());
    let concerns = |one: &&Reservation| one.partition.is_none() || one.partition.as_deref() == partition;
    for one in look.maintenance.iter().filter(concerns).filter(|one| one.start < ends && one.end > now) {
        said.push(format!(
            "maintenance {} from {} to {} falls into the job's wall time of {} min: Slurm will not start it before, \
             unless it is shorter",
            one.name,
            one.start.format("%Y-%m-%dT%H:%MZ"),
            one.end.format("%Y-%m-%dT%H:%MZ"),
            wall_time_minutes(remote)
        ));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_that_name_the_same_way_in_are_one_site() {
        let remote =
            SlurmRemote { login_node: "n".into(), remote_user: Some("u".into()), ..Default::default() };
        let other = SlurmRemote { ssh_port: Some(22), account: "other".into(), ..remote.clone() };
        assert_eq!(Site::of(&remote), Site::of(&other));
        let third = SlurmRemote { ssh_credential: Some("second".into()), ..remote.clone() };
        assert_ne!(Site::of(&remote), Site::of(&third));
        let jump = Some(JumpHost { host: "j".into(), ..Default::default() });
        assert_ne!(Site::of(&remote), Site::of(&SlurmRemote { jump, ..remote.clone() }), "another way in");
        assert!(Site::of(&SlurmRemote { remote_user: None, ..remote }).is_err());
    }

    #[test]
    fn what_stands_in_the_way_is_said_and_what_a_site_does_not_tell_is_not() {
        let remote = SlurmRemote {
            dlg_root: "/scratch".into(),
            account: "survey".into(),
            job_duration_minutes: 120,
            ..Default::default()
        };
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        assert_eq!(say(&Look::default(), &remote, now), Vec::<String>::new());
        let full =
            Space { file_system: "f".into(), total: 1 << 40, available: 1 << 38, quota_left: Some(5 << 20) };
        let at = |hours| now + TimeDelta::hours(hours);
        let reservation = |name: &str, from, to| Reservation {
            name: name.into(),
            start: at(from),
            end: at(to),
            nodes: "n[1-9]".into(),
            partition: None,
        };
        let look = Look {
            space: Some(full),
            account: Some(Account::Ours { cpu_minutes: Some((100, 40)) }),
            maintenance: vec![
                reservation("soon", 1, 3),
                reservation("later", 3, 5),
                reservation("over", -3, -1),
            ],
        };
        let said = say(&look, &remote, now);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(
            said[0].contains("5 MiB of the quota")
                && said[1].contains("60 CPU minutes")
                && said[2].contains("maintenance soon")
        );
    }
}
