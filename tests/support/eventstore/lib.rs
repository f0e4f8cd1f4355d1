//! A **stand-in** for an EventStoreDB server, for tests: it speaks the protocol of the official client for what the log
//! engine uses, keeps everything in memory, and does what a network does when it is told to.
//!
//! What it keeps to, of the real server: positions are byte places (rising, not dense); forward reads of `$all` start at a
//! position, backward ones before it; an expected revision is checked, and events whose ids are already at the expected
//! place are answered as written without a look at what they say; events of the server's own are in `$all`, too; a stream
//! with `$maxCount` shows its last events. What it leaves out: subscriptions, batch appends, deletes, links, filters,
//! access control beyond one user, and everything about disks and replication.

#![expect(clippy::result_large_err, reason = "the protocol's own error is large")]

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

mod faults;
mod front;
mod service;
mod store;
mod wire;

pub use faults::{Fault, Faults};

use front::Front;
use store::Store;

/// A server that is stopped with the value.
pub struct EventStore {
    store: Arc<Mutex<Store>>,
    faults: Arc<Faults>,
    front: Arc<Front>,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl EventStore {
    /// Starts an empty one on a free port of the loopback.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_with(None).await
    }

    /// Starts one that answers nobody but this user.
    pub async fn start_for(user: &str, password: &str) -> std::io::Result<Self> {
        Self::start_with(Some((user.to_owned(), password.to_owned()))).await
    }

    async fn start_with(user: Option<(String, String)>) -> std::io::Result<Self> {
        Self::over(Arc::new(Mutex::new(Store::default())), user).await
    }

    async fn over(store: Arc<Mutex<Store>>, user: Option<(String, String)>) -> std::io::Result<Self> {
        let behind = TcpListener::bind(("127.0.0.1", 0)).await?;
        let before = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (inner, address) = (behind.local_addr()?, before.local_addr()?);
        let faults = Arc::new(Faults::default());
        let front = Arc::new(Front::new(inner));
        let serving =
            service::serve(behind, Arc::clone(&store), Arc::clone(&faults), Arc::clone(&front), user);
        let accepting = Arc::clone(&front).accept(before);
        Ok(Self {
            store,
            faults,
            front,
            address,
            tasks: vec![tokio::spawn(serving), tokio::spawn(accepting)],
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connection string.
    pub fn url(&self) -> String {
        format!("esdb://{}?tls=false", self.address)
    }

    /// A second node of the same server: what is written to one is in the other.
    pub async fn join(&self) -> std::io::Result<Self> {
        Self::over(Arc::clone(&self.store), None).await
    }

    /// Tells who asks this node which nodes there are. The first one leads.
    pub fn say_members(&self, nodes: &[SocketAddr]) {
        self.front.say_members(nodes);
    }

    /// What is to happen to the calls that come.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Cuts every connection; new ones are taken.
    pub fn cut(&self) {
        self.front.cut();
    }

    /// Cuts every connection and takes no new one until it is back.
    pub fn go_away(&self, away: bool) {
        self.front.go_away(away);
    }

    /// Lets no byte through in either direction, as a network does that was cut, until it is told otherwise.
    pub fn go_silent(&self, silent: bool) {
        self.front.go_silent(silent);
    }

    /// How many events were ever written, without the server's own and without metadata.
    pub fn written(&self) -> usize {
        self.store.lock().written()
    }

    /// Moves the clock of the server, by whole seconds.
    pub fn move_clock(&self, seconds: i64) {
        self.store.lock().skew += seconds;
    }

    /// Takes the last `events` away, as a log does that was restored from an older copy.
    pub fn lose_end(&self, events: usize) {
        self.store.lock().lose_end(events);
    }

    /// Writes an event that is none of ours, as somebody with another client would.
    pub fn write_foreign(&self, stream: &str, data: &[u8]) {
        self.store.lock().write_foreign(stream, data);
    }
}

impl Drop for EventStore {
    fn drop(&mut self) {
        self.front.go_away(true);
        for task in &self.tasks {
            task.abort();
        }
    }
}
