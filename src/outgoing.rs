//! **Outgoing requests** to addresses that people configure: the guard between them and the network that this service is in.
//!
//! A name is resolved once. Every address that it has is judged, and the request goes to those very addresses, so that a name
//! that changes meanwhile leads nowhere else. Refused is what is not a public unicast address (loopback, private, link-local
//! with the metadata services in it, carrier-grade NAT, unique local, multicast, documentation, and every form of IPv6 that
//! carries an IPv4 address), unless the installation allows its network by name. No redirect is followed, no proxy used, no
//! more read than is wanted, and nothing takes longer than its bound.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use beampipe_domain::delivery::LONGEST_PAUSE;
use serde::{Deserialize, Serialize};
use url::Host;

/// Requests over HTTP.
mod http;
/// Which addresses are not public.
mod network;
/// Letters to mail servers.
mod smtp;

pub use network::Network;
pub use smtp::{Letter, MailServer};

/// What is allowed, and the bounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outgoing {
    /// Networks that may be reached although they are not public, at any port.
    pub allow_networks: Vec<Network>,
    /// Networks that may not be reached although they are public, such as a NAT64 prefix of the site's own.
    pub refuse_networks: Vec<Network>,
    /// The ports that may be reached elsewhere.
    pub ports: Vec<u16>,
    /// The ports of mail servers that may be reached elsewhere.
    pub smtp_ports: Vec<u16>,
    pub connect_timeout_seconds: u64,
    /// The bound on a whole request with its answer.
    pub timeout_seconds: u64,
    /// The bound on a whole conversation with a mail server; many let their callers wait on purpose.
    pub smtp_timeout_seconds: u64,
    /// No more of an answer is read.
    pub answer_bytes: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            allow_networks: vec![],
            refuse_networks: vec![],
            ports: vec![80, 443, 8080, 8443],
            smtp_ports: vec![25, 465, 587, 2525],
            connect_timeout_seconds: 5,
            timeout_seconds: 10,
            smtp_timeout_seconds: 30,
            answer_bytes: 2048,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It would be refused again.
    #[error("{0}")]
    Refused(String),
    /// Nobody answered, or not whole.
    #[error("{0}")]
    NoAnswer(String),
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status, or the SMTP reply code.
    pub code: u16,
    /// Its beginning, as text.
    pub body: String,
    /// Why the rest of it was not read, if it was not.
    pub cut: Option<String>,
    pub retry_after: Option<String>,
}

/// The guard.
#[derive(Clone, Debug, Default)]
pub struct Guard(Outgoing);

impl Guard {
    pub fn new(outgoing: Outgoing) -> Self {
        Self(outgoing)
    }

    /// Whether the installation allows an address by name.
    fn allows(&self, ip: IpAddr) -> bool {
        self.0.allow_networks.iter().any(|network| network.has(ip))
    }

    /// Whether an address may be reached; `setting` is the one that has the ports.
    fn judge(&self, address: SocketAddr, ports: &[u16], setting: &str) -> Result<(), SendError> {
        let ip = address.ip();
        if self.allows(ip) {
            return Ok(());
        }
        if let Some(class) = network::not_public(ip) {
            let refused =
                format!("{ip} is refused: it is {class}; outgoing.allow_networks may name its network");
            return Err(SendError::Refused(refused));
        }
        if self.0.refuse_networks.iter().any(|network| network.has(ip)) {
            let refused = format!("{ip} is refused: outgoing.refuse_networks names its network");
            return Err(SendError::Refused(refused));
        }
        let port = address.port();
        if !ports.contains(&port) {
            return Err(SendError::Refused(format!("port {port} is refused: {setting} does not have it")));
        }
        Ok(())
    }

    /// The addresses of a host, each of them judged.
    async fn resolve(
        &self,
        host: Host<&str>,
        port: u16,
        ports: &[u16],
        setting: &str,
    ) -> Result<Vec<SocketAddr>, SendError> {
        let addresses: Vec<SocketAddr> = match host {
            Host::Ipv4(ip) => vec![(ip, port).into()],
            Host::Ipv6(ip) => vec![(ip, port).into()],
            Host::Domain(name) => {
                let found =
                    tokio::time::timeout(self.connect_timeout(), tokio::net::lookup_host((name, port)));
                match found.await {
                    Ok(Ok(found)) => found.collect(),
                    Ok(Err(_)) => return Err(SendError::NoAnswer(format!("{name} has no address"))),
                    Err(_) => {
                        return Err(SendError::NoAnswer(format!("{name} could not be looked up in time")));
                    }
                }
            }
        };
        if addresses.is_empty() {
            return Err(SendError::NoAnswer("the host has no address".into()));
        }
        addresses.iter().try_for_each(|address| self.judge(*address, ports, setting))?;
        Ok(addresses)
    }

    fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.0.connect_timeout_seconds.max(1))
    }
}

/// The cause that an error comes from in the end.
fn root<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    let mut cause = error.source();
    while let Some(next) = cause.and_then(std::error::Error::source) {
        cause = Some(next);
    }
    cause
}

/// What somebody said, without what would move a terminal's cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// Seconds of a `Retry-After` that is a number, or a date seen from `now`.
pub fn retry_after_seconds(value: &str, now: chrono::DateTime<chrono::Utc>) -> Option<u64> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // What is too large for a number is at least as long as anybody waits.
        return Some(value.parse().unwrap_or(LONGEST_PAUSE));
    }
    let date = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    u64::try_from((date.to_utc() - now).num_seconds().max(0)).ok()
}

#[cfg(test)]
mod smtp_tests;
#[cfg(test)]
mod tests;
