//! One connection: TCP or a channel of another connection, the exchange of keys, the proof of who we are.
//!
//! Invariant: no more channels are open at once than the settings say, whatever becomes of those who opened them.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use russh::client::{self, AuthResult, Handle, Msg};
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKey};
use russh::{Channel, Preferred};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::credentials::Slot;
use super::known_hosts::{HostKeyError, KnownHosts};
use super::{Error, Settings, Target};

/// A connection that is open, or was.
pub(super) struct Link {
    pub target: Target,
    handle: Handle<Checker>,
    channels: Arc<Semaphore>,
    ended: CancellationToken,
    patience: Duration,
    /// The server takes no more channels here; those that are open may go on.
    full: AtomicBool,
    /// What this connection runs through has to outlive it.
    _through: Option<Arc<Link>>,
}

/// Answers the one question of a handshake that is ours to answer.
struct Checker {
    target: Target,
    hosts: KnownHosts,
    verdict: Arc<Mutex<Option<HostKeyError>>>,
    /// The library drops this with the connection.
    _ended: DropGuard,
}

impl client::Handler for Checker {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKey) -> Result<bool, russh::Error> {
        let verdict = self.hosts.check(&self.target.host, self.target.port, key);
        *self.verdict.lock() = verdict.clone().err();
        Ok(verdict.is_ok())
    }
}

impl Link {
    /// Connects and authenticates, each within its time.
    pub async fn open(
        target: &Target,
        slot: Slot,
        settings: &Settings,
        through: Option<Arc<Link>>,
    ) -> Result<Self, Error> {
        let (verdict, ended) = (Arc::new(Mutex::new(None)), CancellationToken::new());
        let config = Arc::new(config(&slot.known_hosts, target, settings));
        let checker = Checker {
            target: target.clone(),
            hosts: slot.known_hosts,
            verdict: verdict.clone(),
            _ended: ended.clone().drop_guard(),
        };
        let handle =
            match timeout(settings.connect, connect(target, config, checker, through.as_deref())).await {
                Ok(Ok(handle)) => handle,
                Ok(Err(error)) => return Err(verdict.lock().take().map_or(error, Error::HostKey)),
                Err(_) => return Err(late(target, "connection", settings.connect)),
            };
        let handle = match timeout(settings.auth, authenticate(target, handle, slot.key)).await {
            Ok(done) => done?,
            Err(_) => return Err(late(target, "answer to our key", settings.auth)),
        };
        Ok(Self {
            target: target.clone(),
            handle,
            channels: Arc::new(Semaphore::new(settings.channels.max(1))),
            ended,
            patience: settings.connect,
            full: AtomicBool::new(false),
            _through: through,
        })
    }

    /// Whether another connection is to be used instead.
    pub fn is_closed(&self) -> bool {
        self.ended.is_cancelled() || self.handle.is_closed() || self.full.load(Ordering::Relaxed)
    }

    /// Waits until the connection has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// A channel, once there is room for it.
    pub async fn channel(&self, wait: Duration) -> Result<(Channel<Msg>, OwnedSemaphorePermit), Error> {
        let room = timeout(wait, self.channels.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = room else {
            return Err(late(&self.target, "free channel", wait));
        };
        let mut refused = 0;
        loop {
            let opened = tokio::select! {
                opened = timeout(self.patience, self.handle.channel_open_session()) => opened,
                () = self.ended() => return Err(Error::not_sent(&self.target, "the connection was lost")),
            };
            match opened {
                Ok(Ok(channel)) => return Ok((channel, permit)),
                // The server may still be clearing away the channel that ended before this one.
                Ok(Err(russh::Error::ChannelOpenFailure(_))) if refused < 5 => {
                    refused += 1;
                    sleep(Duration::from_millis(50 * refused)).await;
                }
                Ok(Err(error)) => {
                    self.full.store(true, Ordering::Relaxed);
                    return Err(Error::not_sent(&self.target, "no channel was opened").because(error));
                }
                Err(_) => {
                    // A connection that opens no channel is of no use to anybody.
                    self.ended.cancel();
                    return Err(late(&self.target, "channel", self.patience));
                }
            }
        }
    }
}

fn late(target: &Target, what: &str, limit: Duration) -> Error {
    Error::not_sent(target, format!("no {what} within {} s", limit.as_secs_f32()))
}

fn config(hosts: &KnownHosts, target: &Target, settings: &Settings) -> client::Config {
    client::Config {
        keepalive_interval: Some(settings.keep_alive),
        keepalive_max: 3,
        inactivity_timeout: None,
        nodelay: true,
        preferred: Preferred { key: Cow::Owned(host_keys(hosts, target)), ..Preferred::DEFAULT },
        ..client::Config::default()
    }
}

/// The kinds of host keys to ask for: first those we know of this host. RSA with SHA-1 is not among them.
fn host_keys(hosts: &KnownHosts, target: &Target) -> Vec<Algorithm> {
    let mut wanted = Vec::new();
    for known in hosts.algorithms(&target.host, target.port) {
        match known {
            Algorithm::Rsa { .. } => wanted
                .extend([HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) })),
            other => wanted.push(other),
        }
    }
    let others = Preferred::DEFAULT.key.iter().filter(|kind| **kind != Algorithm::Rsa { hash: None });
    wanted.extend(others.cloned());
    let mut unique: Vec<Algorithm> = Vec::new();
    for kind in wanted {
        if !unique.contains(&kind) {
            unique.push(kind);
        }
    }
    unique
}

async fn connect(
    target: &Target,
    config: Arc<client::Config>,
    checker: Checker,
    through: Option<&Link>,
) -> Result<Handle<Checker>, Error> {
    let (host, port) = (target.host.as_str(), target.port);
    let done = match through {
        None => {
            let stream = TcpStream::connect((host, port))
                .await
                .map_err(|error| Error::not_sent(target, error.to_string()).because(error))?;
            // Only slower without.
            let _ = stream.set_nodelay(true);
            client::connect_stream(config, stream, checker).await
        }
        Some(link) => {
            let channel =
                link.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await.map_err(
                    |error| {
                        Error::not_sent(target, format!("{} leads no further", link.target)).because(error)
                    },
                )?;
            client::connect_stream(config, channel.into_stream(), checker).await
        }
    };
    done.map_err(|error| Error::not_sent(target, format!("no SSH connection: {error}")).because(error))
}

async fn authenticate(
    target: &Target,
    mut handle: Handle<Checker>,
    key: Arc<russh::keys::PrivateKey>,
) -> Result<Handle<Checker>, Error> {
    let lost = |error: russh::Error| {
        Error::not_sent(target, format!("the connection ended during authentication: {error}")).because(error)
    };
    let hash = handle.best_supported_rsa_hash().await.map_err(lost)?.flatten();
    let key = PrivateKeyWithHashAlg::new(key, hash);
    let denied =
        |detail: String| Error::Denied { target: target.to_string(), slot: target.slot.clone(), detail };
    match handle.authenticate_publickey(&target.user, key).await.map_err(lost)? {
        AuthResult::Success => Ok(handle),
        AuthResult::Failure { partial_success: true, remaining_methods } => Err(denied(format!(
            "the key is taken, and {remaining_methods:?} is asked for besides; a service has only its key"
        ))),
        // A server that says no says what else it would take; russh says no with nothing when the connection ended instead.
        AuthResult::Failure { remaining_methods, .. } if remaining_methods.is_empty() => {
            Err(Error::not_sent(target, "the connection ended during authentication"))
        }
        AuthResult::Failure { .. } => Err(denied(
            "the key is not, or no longer, in the authorized_keys of this user, or there is no such user"
                .into(),
        )),
    }
}
