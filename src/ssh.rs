//! **SSH** to login nodes: one pooled connection for each way in, commands and files over it.
//!
//! `credentials` are the slots that hold keys, `known_hosts` says whether a server is who it claims to be, `pool` keeps
//! the connections, `command` and `files` use them.
//!
//! Invariants: a server whose key is not in the slot's known_hosts is never talked to, nor is a key learnt from it. An
//! error says what may be done next ([`Error::class`]): whatever is not [`Class::Unknown`] surely did not happen. Nothing
//! here repeats what has left. No secret is in an error or in the output of `Debug`.
//!
//! Deliberately absent: passwords, agents, forwarding of ports to users. What is run over it is said in
//! `backends::slurm`; a command is text for the remote user's shell, so its parts are quoted there.

mod command;
pub mod credentials;
mod files;
mod known_hosts;
mod link;
mod pool;

use std::sync::Arc;
use std::time::Duration;

pub use command::{Command, Late, Output};
pub use credentials::{CredentialError, Credentials};
pub use files::{Content, Files, Part};
pub use known_hosts::{HostKeyError, KnownHosts};
pub use pool::Pool;

/// A way in: which user, on which node, with which credential slot, through which other node.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub user: String,
    /// The credential slot.
    pub slot: String,
    /// A login node that this one is reached through, with a slot of its own.
    pub jump: Option<Box<Target>>,
}

impl Target {
    /// Refuses names that no host and no user has: whatever else they are, they are a mistake or an attack.
    pub fn new(host: &str, port: u16, user: &str, slot: &str) -> Result<Self, Error> {
        let plain = |text: &str, others: &str| {
            !text.is_empty()
                && text.len() <= 253
                && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
                && !text.starts_with('-')
        };
        // As profiles and addresses write IPv6.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if !plain(host, ".-_:") {
            return Err(Error::Invalid(format!("{host:?} is no name or address of a host")));
        }
        if port == 0 {
            return Err(Error::Invalid("the port of an SSH server is from 1 to 65535".into()));
        }
        if !plain(user, "._-@+$") {
            return Err(Error::Invalid(format!(
                "{user:?} is no user name: letters, digits and any of . _ - @ + $ are"
            )));
        }
        credentials::check_name(slot)?;
        Ok(Self { host: host.into(), port, user: user.into(), slot: slot.into(), jump: None })
    }

    /// The same, reached through `jump`.
    pub fn through(self, jump: Target) -> Self {
        Self { jump: Some(Box::new(jump)), ..self }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}", self.user, self.host, self.port)?;
        self.jump.as_ref().map_or(Ok(()), |jump| write!(f, " through {jump}"))
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({self}, slot {})", self.slot)
    }
}

/// Bounds on everything that waits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TCP and the exchange of keys.
    pub connect: Duration,
    pub auth: Duration,
    /// A command, unless it says otherwise; also how long it waits for a channel.
    pub command: Duration,
    /// One file.
    pub transfer: Duration,
    /// A server that is silent for so long is asked; three times unanswered, the connection is given up.
    pub keep_alive: Duration,
    /// Channels at once on one connection. OpenSSH's server takes ten.
    pub channels: usize,
    /// What is kept of each of a command's outputs, in bytes.
    pub output: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            auth: Duration::from_secs(15),
            command: Duration::from_secs(60),
            transfer: Duration::from_secs(300),
            keep_alive: Duration::from_secs(15),
            channels: 8,
            output: 1 << 20,
        }
    }
}

type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why there is no good answer. Cloneable, because many may wait for one attempt to connect.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be meant.
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
    /// The server does not let this user in with this key.
    #[error("{target} does not let us in with the key of slot {slot}: {detail}")]
    Denied { target: String, slot: String, detail: String },
    /// The server answered no.
    #[error("{target} refused {what}: {detail}")]
    Refused { target: String, what: String, detail: String, absent: bool },
    /// It never left: surely not done, may be asked again.
    #[error("cannot reach {target}: {detail}")]
    NotSent {
        target: String,
        detail: String,
        #[source]
        cause: Option<Cause>,
    },
    /// It left and no answer came: it may have happened.
    #[error("{target} was asked and gave no answer that can be relied on: {detail}")]
    Unknown {
        target: String,
        detail: String,
        #[source]
        cause: Option<Cause>,
    },
}

/// What sort of no it is, and so what may be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The profile is wrong.
    Invalid,
    /// The credential slot is wrong: a person has to put it right.
    Credential,
    /// The server is not who it should be: a person has to look.
    HostKey,
    /// The key is refused or expired: a person has to put it right.
    Denied,
    /// The server said no to this very thing.
    Refused,
    /// It did not leave; asking again may help.
    NotSent,
    /// It may have happened; only looking tells.
    Unknown,
}

impl Error {
    pub fn class(&self) -> Class {
        match self {
            Self::Invalid(_) => Class::Invalid,
            Self::Credential(_) => Class::Credential,
            Self::HostKey(_) => Class::HostKey,
            Self::Denied { .. } => Class::Denied,
            Self::Refused { .. } => Class::Refused,
            Self::NotSent { .. } => Class::NotSent,
            Self::Unknown { .. } => Class::Unknown,
        }
    }

    /// Whether what was asked for surely did not happen.
    pub fn surely_not_done(&self) -> bool {
        self.class() != Class::Unknown
    }

    /// Whether the server said that the file or directory is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { absent: true, .. })
    }

    fn not_sent(target: &Target, detail: impl Into<String>) -> Self {
        Self::NotSent { target: target.to_string(), detail: detail.into(), cause: None }
    }

    fn unknown(target: &Target, detail: impl Into<String>) -> Self {
        Self::Unknown { target: target.to_string(), detail: detail.into(), cause: None }
    }

    fn because(self, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let because: Option<Cause> = Some(Arc::new(error));
        match self {
            Self::NotSent { target, detail, .. } => Self::NotSent { target, detail, cause: because },
            Self::Unknown { target, detail, .. } => Self::Unknown { target, detail, cause: because },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_or_host_that_nobody_has_is_refused_before_anything_is_sent() {
        for (host, user) in [
            ("login", "me;rm -rf"),
            ("login", "$(id)"),
            ("login", ""),
            ("login", "-oProxyCommand"),
            ("-oProxy", "me"),
            ("log in", "me"),
            ("", "me"),
        ] {
            let error = Target::new(host, 22, user, "default").unwrap_err();
            assert_eq!(error.class(), Class::Invalid, "{host} {user}: {error}");
        }
        assert_eq!(Target::new("[::1]", 22, "a.user-name_1", "setonix").unwrap().host, "::1");
        assert_eq!(Target::new("h", 22, "u", "../x").unwrap_err().class(), Class::Credential);
    }

    #[test]
    fn a_way_in_is_written_with_every_node_it_leads_through() {
        let jump = Target::new("jump", 2222, "a", "outer").unwrap();
        let target = Target::new("login", 22, "b", "inner").unwrap().through(jump);
        assert_eq!(target.to_string(), "b@login:22 through a@jump:2222");
    }
}
