//! **Clusters** as work sees them: which login node an execution belongs to, and where its session lives there.
//!
//! What is polled together is a [`Site`]: one login node, as one user, with one credential. Two profiles that name the same
//! are one site, and one watch.

use beampipe_domain::profile::SlurmRemote;
use serde::{Deserialize, Serialize};

use crate::backends::slurm::Printed;
use crate::backends::slurm::cluster::Cluster;
use crate::ssh::{self, Output};

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
        })
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { login_node, ssh_port, remote_user, ssh_credential } = self;
        write!(f, "{remote_user}@{login_node}:{ssh_port} with slot {ssh_credential}")
    }
}

/// The way in that a profile names.
pub fn target(remote: &SlurmRemote) -> Result<ssh::Target, String> {
    let site = Site::of(remote)?;
    let Site { login_node, ssh_port, remote_user, ssh_credential } = &site;
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
        assert!(Site::of(&SlurmRemote { remote_user: None, ..remote }).is_err());
    }
}
