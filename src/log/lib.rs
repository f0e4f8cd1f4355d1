//! The **log**: the only truth of the system and the only thing its processes share.
//!
//! This crate is the port ([`Log`]) and its engines. It knows streams, revisions, positions, tags and hashes; it knows
//! nothing of astronomy and does not look inside an event's data. One contract suite ([`contract`]) runs over every engine.

// The documentation is built with private items: it is for those who work in here.
#![allow(rustdoc::private_intra_doc_links)]

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};

pub mod contract;
pub mod copy;
pub mod event;
#[cfg(feature = "eventstore")]
pub mod eventstore;
pub mod filter;
pub mod hub;
pub mod leaf;
pub mod memory;
pub mod ndjson;
pub mod postgres;
pub mod prepare;
pub mod presence;
pub mod redaction;
pub mod sqlite;
pub mod verify;

#[cfg(feature = "eventstore")]
pub use self::eventstore::{EventStoreLog, EventStoreOptions};
pub use event::{Hash, NewEvent, Position, Recorded, Revision, category};
pub use filter::Filter;
pub use memory::MemoryLog;
pub use postgres::{PostgresLog, PostgresOptions};
pub use sqlite::{SqliteLog, SqliteOptions};

/// Where `recorded_at` comes from; handed in, so that tests move time by hand.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// The largest encoded event, in bytes.
pub const MAX_EVENT_BYTES: usize = 256 * 1024;
/// The largest encoded append, in bytes.
pub const MAX_APPEND_BYTES: usize = 900 * 1024;
/// How many events a filtered page examines before it answers short.
pub const MAX_EXAMINED: usize = 50_000;

/// What an append expects of its stream. There is no "any": an expectation is the lock and the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    NoStream,
    At { revision: Revision, hash: Hash },
}

/// The last event of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHead {
    pub revision: Revision,
    pub hash: Hash,
}

impl From<Option<StreamHead>> for Expected {
    fn from(head: Option<StreamHead>) -> Self {
        head.map_or(Self::NoStream, |StreamHead { revision, hash }| Self::At { revision, hash })
    }
}

/// The end of the log: `position` 0 and a zero hash while it is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub position: Position,
    pub hash: Hash,
}

/// What a durable append answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    pub first_revision: Revision,
    pub head: StreamHead,
    /// The position of the last event of the append.
    pub position: Position,
    /// True when the very same events were there already: nothing was written.
    pub repeated: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The stream is not where the caller thought. Load, decide again.
    #[error("stream {stream} is at {actual:?}, not as expected")]
    Conflict { stream: String, actual: Option<StreamHead> },
    /// An event or the append is over its limit, or is malformed (no events, an empty name). Asking again cannot help.
    #[error("cannot append to {stream}: {reason}")]
    Unacceptable { stream: String, reason: String },
    /// The writer's queue is full. Nothing was written; ask again after a moment.
    #[error("the log's writer queue is full")]
    Busy,
    /// The log refuses appends (full disk, damage, read-only, shutting down). Nothing was written.
    #[error("the log refuses appends: {0}")]
    Unavailable(String),
    /// It cannot be said whether it was written. Settle by reading the stream at the expected place.
    #[error("the outcome of the append is unknown: {0}")]
    Unknown(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What is stored is not what was written: says where.
    #[error("the log is damaged at {place}: {what}")]
    Damaged { place: String, what: String },
    #[error("the log cannot be read: {0}")]
    Unavailable(String),
    /// The log lost its end, as a restored copy or a standby that took over may: events up to `seen` were delivered, and
    /// only those up to `kept` are certain to be there as they were. Start again from what is there.
    #[error("the log has lost events: position {seen} was delivered, it is unchanged only up to {kept}")]
    Rewound { kept: Position, seen: Position },
}

#[derive(Debug, thiserror::Error)]
pub enum RedactError {
    #[error("no event {0} is in the log")]
    NoSuchEvent(uuid::Uuid),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

/// Events in order, and where the next page starts (`None`: there is nothing further now).
#[derive(Debug, Default)]
pub struct Page {
    pub events: Vec<Arc<Recorded>>,
    /// Pass it as `from` to go on. A page may be short, even empty, and still have a `next`.
    pub next: Option<Position>,
}

/// What a subscription delivers at once.
#[derive(Debug)]
pub struct Batch {
    /// In order of position; empty when only the checkpoint moved or the live end was reached.
    pub events: Vec<Arc<Recorded>>,
    /// Everything up to here was delivered or does not match: the follower's new checkpoint.
    pub through: Position,
    /// Whether nothing was left in the log when this batch was made.
    pub caught_up: bool,
}

/// A reader that follows: catch-up, then live, without gap or repeat.
#[async_trait::async_trait]
pub trait Follow: Send {
    /// Waits for more. At most `max` events. The first time the end is reached an (empty, if need be) batch says so.
    /// Cancel safe: a dropped call loses nothing.
    async fn next_batch(&mut self, max: usize) -> Result<Batch, ReadError>;
}

pub type Subscription = Box<dyn Follow>;

/// Whether appends and reads work now, from cached state.
#[derive(Clone, Debug)]
pub struct Health {
    /// `None` while appends work, else why not.
    pub append_refused: Option<String>,
    /// Damage that was found, with its place.
    pub damage: Option<String>,
    pub engine: &'static str,
    /// Whether positions count events: only then is their difference a number of events.
    pub dense: bool,
    /// Appends waiting in the writer's queue.
    pub queued_appends: usize,
    /// For how long this process has not heard where the log ends: what it has read of it may be that old. Zero where the
    /// log is in this process.
    pub silent_for: std::time::Duration,
}

/// A volatile fact about a process: not an event, not kept.
#[derive(Clone, Debug)]
pub struct Beat {
    pub who: String,
    /// Rises by one with every beat: a contender judges it by its own monotonic clock.
    pub counter: u64,
    pub at: DateTime<Utc>,
    /// JSON of the beater's choice.
    pub facts: serde_json::Value,
}

/// The port. Every engine passes the same contract suite.
#[async_trait::async_trait]
pub trait Log: Send + Sync + fmt::Debug + 'static {
    /// Appends atomically; durable and before every subscriber's wake-up when it returns.
    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError>;

    /// The events of one stream from revision `from` (inclusive; `Revision::MAX` backward is "from its end").
    async fn read_stream(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError>;

    /// Events in order of position from `from` (inclusive; `Position::MAX` backward is "from the end").
    async fn read_all(
        &self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError>;

    /// Follows everything after `after` that matches.
    fn subscribe(&self, filter: Filter, after: Position) -> Subscription;

    /// The last position and leaf hash, from memory.
    fn head(&self) -> Head;

    /// The last event of a stream, or `None` when there is no such stream.
    async fn stream_head(&self, stream: &str) -> Result<Option<StreamHead>, ReadError>;

    /// One event by its id.
    async fn event(&self, id: uuid::Uuid) -> Result<Option<Arc<Recorded>>, ReadError>;

    /// Removes salt and data of one event. `record` is the `log.redacted` event that names it; both happen or neither.
    async fn redact(&self, event: uuid::Uuid, record: NewEvent) -> Result<Appended, RedactError>;

    /// How often this log lost its end since it was opened, as after a failover to a standby that had not heard of everything.
    /// What somebody remembers of before may never have happened.
    fn rewinds(&self) -> u64 {
        0
    }

    fn health(&self) -> Health;

    /// Says that `who` is alive, with volatile facts. Not durable.
    async fn beat(&self, who: &str, facts: serde_json::Value);

    /// The latest beat of everyone who beats.
    async fn beats(&self) -> Result<Vec<Beat>, ReadError>;

    /// Takes what is queued to durability and refuses more.
    async fn close(&self);
}
