//! **Clusters** as work sees them: which login node an execution belongs to, and where its session lives there.
//!
//! What is polled together is a [`Site`]: one login node, as one user, with one credential. Two profiles that name the same
//! are one site, and one watch.

use beampipe_domain::profile::SlurmRemote;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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

/// The directory of a session on the cluster: where DALiuGE would have it, below its root (`<DLG_ROOT>/workspace`).
pub fn session_dir(remote: &SlurmRemote, session: Uuid) -> String {
    format!("{}/workspace/{session}", remote.dlg_root.trim_end_matches('/'))
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
