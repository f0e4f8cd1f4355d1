//! **Outgoing requests** to addresses that people configure: the guard between them and the network that this service is in.
//!
//! A name is resolved once. Every address that it has is judged, and the request goes to those very addresses, so that a name
//! that changes meanwhile leads nowhere else. Refused is what is not a public unicast address (loopback, private, link-local
//! with the metadata services in it, carrier-grade NAT, unique local, multicast, documentation, and every form of IPv6 that
//! carries an IPv4 address), unless the installation allows its network by name. No redirect is followed, no proxy used, no
//! more read than is wanted, and nothing takes longer than its bound.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// A network: an address and how many of its bits count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn has(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.bits);
                u32::from(network).checked_shr(shift) == u32::from(ip).checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.bits);
                u128::from(network).checked_shr(shift) == u128::from(ip).checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network such as 127.0.0.0/8 or fd00::/8");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if bits <= most { Ok(Self { address, bits }) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        format!("{}/{}", network.address, network.bits)
    }
}

/// What is allowed, and the bounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outgoing {
    /// Networks that may be reached although they are not public, at any port.
    pub allow_networks: Vec<Network>,
    /// The ports that may be reached elsewhere.
    pub ports: Vec<u16>,
    pub connect_timeout_seconds: u64,
    /// The bound on a whole request with its answer.
    pub timeout_seconds: u64,
    /// No more of an answer is read.
    pub answer_bytes: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            allow_networks: vec![],
            ports: vec![80, 443, 8080, 8443],
            connect_timeout_seconds: 5,
            timeout_seconds: 10,
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
    pub code: u16,
    /// Its beginning, as text.
    pub body: String,
    pub retry_after: Option<String>,
    pub latency: Duration,
}

const V4: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local, where metadata services are"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "of the protocols"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
];

const V6: &[(&str, &str)] = &[
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("::/96", "IPv4-compatible"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("fc00::/7", "unique local"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
    ("2001:db8::/32", "documentation"),
    ("2001::/23", "of the protocols"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
];

fn within(table: &'static [(&str, &'static str)], ip: IpAddr) -> Option<&'static str> {
    let mut classes = table.iter();
    classes.find(|(network, _)| network.parse::<Network>().is_ok_and(|n| n.has(ip))).map(|(_, class)| *class)
}

/// Why an address is not public; `None`: it is.
fn not_public(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(_) => within(V4, ip),
        // Of IPv6 only 2000::/3 is handed out.
        IpAddr::V6(six) => within(V6, ip).or((six.segments()[0] >> 13 != 1).then_some("not handed out")),
    }
}

/// The guard.
#[derive(Clone, Debug, Default)]
pub struct Guard(Outgoing);

impl Guard {
    pub fn new(outgoing: Outgoing) -> Self {
        Self(outgoing)
    }

    /// Whether an address may be reached.
    fn judge(&self, address: SocketAddr) -> Result<(), SendError> {
        let ip = address.ip();
        if self.0.allow_networks.iter().any(|network| network.has(ip)) {
            return Ok(());
        }
        if let Some(class) = not_public(ip) {
            let refused =
                format!("{ip} is refused: it is {class}; outgoing.allow_networks may name its network");
            return Err(SendError::Refused(refused));
        }
        let port = address.port();
        if !self.0.ports.contains(&port) {
            let refused = format!("port {port} is refused: outgoing.ports does not have it");
            return Err(SendError::Refused(refused));
        }
        Ok(())
    }

    /// The addresses of a destination, each of them judged.
    async fn resolve(&self, url: &Url) -> Result<Vec<SocketAddr>, SendError> {
        let refused = |what: &str| SendError::Refused(format!("the address cannot be used: {what}"));
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("it is neither http nor https"));
        }
        let port = url.port_or_known_default().ok_or_else(|| refused("it has no port"))?;
        let addresses: Vec<SocketAddr> = match url.host() {
            None => return Err(refused("it has no host")),
            Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
            Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
            Some(Host::Domain(name)) => {
                let bound = Duration::from_secs(self.0.connect_timeout_seconds.max(1));
                let found = tokio::time::timeout(bound, tokio::net::lookup_host((name, port))).await;
                match found {
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
        addresses.iter().try_for_each(|address| self.judge(*address))?;
        Ok(addresses)
    }

    /// Posts `body` to `url`.
    pub async fn post(&self, url: &Url, headers: HeaderMap, body: Vec<u8>) -> Result<Answer, SendError> {
        let addresses = self.resolve(url).await?;
        let client = self.client(url, &addresses)?;
        let started = Instant::now();
        let sent = client.post(url.clone()).headers(headers).body(body).send().await;
        let response = sent.map_err(|error| self.why(&error))?;
        let code = response.status().as_u16();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = text(RETRY_AFTER).map(|value| value.chars().take(60).collect());
        let away = text(LOCATION).filter(|_| (300..400).contains(&code)).map(|to| redirected(url, to));
        let body = match away {
            Some(away) => away,
            None => self.beginning(response).await,
        };
        Ok(Answer { code, body, retry_after, latency: started.elapsed() })
    }

    /// A client that can reach these addresses and no other.
    fn client(&self, url: &Url, addresses: &[SocketAddr]) -> Result<reqwest::Client, SendError> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(self.0.connect_timeout_seconds.max(1)))
            .timeout(Duration::from_secs(self.0.timeout_seconds.max(1)))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .pool_max_idle_per_host(0);
        if let Some(Host::Domain(name)) = url.host() {
            builder = builder.resolve_to_addrs(name, addresses);
        }
        builder.build().map_err(|error| SendError::NoAnswer(format!("no client can be made: {error}")))
    }

    /// What a failed request is called. The address may be a secret, and is not in it.
    fn why(&self, error: &reqwest::Error) -> SendError {
        let what = match error {
            _ if error.is_connect() => "cannot connect".to_owned(),
            _ if error.is_timeout() => format!("no answer within {} s", self.0.timeout_seconds),
            _ => "the request broke off".to_owned(),
        };
        let mut cause = std::error::Error::source(error);
        while let Some(next) = cause.and_then(std::error::Error::source) {
            cause = Some(next);
        }
        SendError::NoAnswer(match cause.filter(|_| !error.is_timeout()) {
            Some(cause) => format!("{what}: {cause}"),
            None => what,
        })
    }

    /// The beginning of an answer. What breaks off, or comes too late, was an answer all the same: its status says all.
    async fn beginning(&self, mut response: reqwest::Response) -> String {
        let mut read: Vec<u8> = vec![];
        while read.len() < self.0.answer_bytes {
            match response.chunk().await {
                Ok(Some(chunk)) => read.extend_from_slice(&chunk),
                Ok(None) | Err(_) => break,
            }
        }
        read.truncate(self.0.answer_bytes);
        let text = String::from_utf8_lossy(&read);
        text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
    }
}

/// What is said of a redirect: where it leads, without what may be secret.
fn redirected(from: &Url, to: &str) -> String {
    let place = from.join(to).map(|to| to.origin().ascii_serialization()).unwrap_or_default();
    format!("a redirect to {place}, which is not followed")
}

/// Seconds of a `Retry-After` that is a number, or a date seen from `now`.
pub fn retry_after_seconds(value: &str, now: chrono::DateTime<chrono::Utc>) -> Option<u64> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(seconds);
    }
    let date = chrono::DateTime::parse_from_rfc2822(value.trim()).ok()?;
    u64::try_from((date.to_utc() - now).num_seconds().max(0)).ok()
}

#[cfg(test)]
mod tests;
