//! How login nodes are reached.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};
use crate::ssh::{Credentials, Settings};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// The directory whose `ssh/<slot>/` have a private_key, a known_hosts and perhaps a passphrase. Absent: `credentials`
    /// in the state directory.
    pub credentials_dir: Option<PathBuf>,
    /// The bound on TCP and the exchange of keys, in seconds.
    pub connect_timeout_seconds: u64,
    pub auth_timeout_seconds: u64,
    /// The bound on one remote command, in seconds.
    pub command_timeout_seconds: u64,
    /// The bound on one file, in seconds.
    pub transfer_timeout_seconds: u64,
    /// A login node that is silent for so long is asked whether it is there, in seconds.
    pub keep_alive_seconds: u64,
    /// Commands and files at once over one connection; OpenSSH's server takes ten unless told otherwise.
    pub channels: usize,
}

impl Default for Ssh {
    fn default() -> Self {
        let Settings { connect, auth, command, transfer, keep_alive, channels, .. } = Settings::default();
        Self {
            credentials_dir: None,
            connect_timeout_seconds: connect.as_secs(),
            auth_timeout_seconds: auth.as_secs(),
            command_timeout_seconds: command.as_secs(),
            transfer_timeout_seconds: transfer.as_secs(),
            keep_alive_seconds: keep_alive.as_secs(),
            channels,
        }
    }
}

impl Ssh {
    pub fn settings(&self) -> Settings {
        Settings {
            connect: Duration::from_secs(self.connect_timeout_seconds),
            auth: Duration::from_secs(self.auth_timeout_seconds),
            command: Duration::from_secs(self.command_timeout_seconds),
            transfer: Duration::from_secs(self.transfer_timeout_seconds),
            keep_alive: Duration::from_secs(self.keep_alive_seconds),
            channels: self.channels,
            ..Settings::default()
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let all = [
            ("ssh.connect_timeout_seconds", self.connect_timeout_seconds),
            ("ssh.auth_timeout_seconds", self.auth_timeout_seconds),
            ("ssh.command_timeout_seconds", self.command_timeout_seconds),
            ("ssh.transfer_timeout_seconds", self.transfer_timeout_seconds),
            ("ssh.keep_alive_seconds", self.keep_alive_seconds),
            ("ssh.channels", self.channels as u64),
        ];
        match all.into_iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(ConfigError::Invalid { field, detail: "has to be above 0".into() }),
            None => Ok(()),
        }
    }
}

impl Config {
    /// The credential slots.
    pub fn credentials(&self) -> Credentials {
        match &self.ssh.credentials_dir {
            Some(directory) => Credentials::new(directory),
            None => Credentials::new(&self.state_dir.join("credentials")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_are_in_the_state_directory_unless_told_otherwise() {
        let config = Config::default();
        assert!(config.credentials().directory().ends_with("beampipe-state/credentials/ssh"));
        let ssh = Ssh { credentials_dir: Some("/etc/slots".into()), ..Ssh::default() };
        let config = Config { ssh, ..config };
        assert_eq!(config.credentials().directory(), "/etc/slots/ssh");
    }

    #[test]
    fn a_bound_of_nothing_is_refused_by_its_name() {
        let config = Config { ssh: Ssh { channels: 0, ..Ssh::default() }, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("ssh.channels"));
    }
}
