//! The **EventStoreDB engine**: streams map one to one, and the server's `$all` is the log.
//!
//! The server orders, guards revisions and keeps the bytes; what it does not know is done here. One reader over `$all`
//! ([`follow`]) keeps an index of tags, categories, correlations and ids ([`index`]) and feeds the hub; appends are checked by
//! leaf hash and answered once that reader has met them ([`append`]); reads ask the index where and the server what
//! ([`read`]); every call goes through one link with deadlines of its own ([`link`]).
//!
//! Position is the server's commit position: rising, not dense. recorded_at is the server's time, or that of the event
//! before where the server's clock stepped back: every process that reads the log from its beginning comes to the same.
//! Redaction withholds salt and data from every reader of this port; the bytes stay in the server's files
//! (`docs/adr/0011-eventstoredb.md`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::event::{NewEvent, Position, Recorded, Revision};
use crate::hub::Hub;
use crate::leaf::Interner;
use crate::prepare::Prepared;
use crate::sqlite::heads::Heads;
use crate::sqlite::lock::WriterLock;
use crate::{
    AppendError, Appended, Beat, Clock, Direction, Expected, Filter, Head, Health, Log, Page, ReadError,
    RedactError, StreamHead, Subscription, redaction,
};

mod append;
mod envelope;
mod follow;
mod index;
mod link;
mod place;
mod presence;
mod read;
mod restore;
mod verify;

pub use link::Deadlines;
pub use place::PlaceError;

use append::{Awaited, Turns};
use envelope::Brings;
use follow::{Last, Reader};
use index::{Keeper, Lookup, Notes};
use link::{Failure, Link};
use presence::Beats;

const CLOSED: &str = "the log is closed";
/// How many appends may be under way; more are answered [`AppendError::Busy`].
const IN_FLIGHT: usize = 4_096;

/// How a log is opened.
#[derive(Clone)]
pub struct EventStoreOptions {
    /// `esdb://[user@]host:port?…` or `esdb://[user@]host:port,host:port?…` (also `kurrentdb://`), without a password.
    pub url: String,
    /// The user, if the address does not name one.
    pub username: Option<String>,
    /// Where the server asks for one.
    pub password: Option<String>,
    /// What the server is to put before the names of all streams, where it keeps several logs. Usually empty.
    pub namespace: String,
    /// The file of this process's index, which no other process uses. Made if it is missing, made anew if it is not of
    /// this log. `None`: one that is gone with the value.
    pub index: Option<PathBuf>,
    /// Whether appends are refused.
    pub read_only: bool,
    /// Dates the beats of this process; events are dated by the server.
    pub clock: Clock,
    pub deadlines: Deadlines,
}

impl EventStoreOptions {
    /// The usual deadlines, an index of its own, and no user.
    pub fn new(url: impl Into<String>, clock: Clock) -> Self {
        let deadlines = Deadlines::default();
        let (url, namespace) = (url.into(), String::new());
        Self {
            url,
            username: None,
            password: None,
            namespace,
            index: None,
            read_only: false,
            clock,
            deadlines,
        }
    }
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("the log at {place} cannot be read")]
    Read {
        place: String,
        #[source]
        source: ReadError,
    },
    #[error("there is no place for an index")]
    Scratch(#[source] std::io::Error),
    #[error("the index {path} cannot be opened")]
    Index {
        path: PathBuf,
        #[source]
        source: crate::sqlite::OpenError,
    },
}

/// Whether an address can be one of these logs. Nobody is asked.
pub fn check_address(url: &str) -> Result<(), PlaceError> {
    place::parse(url).map(|_| ())
}

/// What the parts of one open log share.
struct Shared {
    link: Link,
    hub: Arc<Hub>,
    heads: Mutex<Heads>,
    index_path: PathBuf,
    lookup: Arc<Lookup>,
    notes: Notes,
    beats: Beats,
    clock: Clock,
    read_only: bool,
    awaited: Awaited,
    turns: Turns,
    in_flight: Arc<Semaphore>,
    /// Rung where something new is to be read.
    bell: Notify,
    /// The head, for those who wait for it.
    moved: watch::Sender<Position>,
    /// Why the server is taken to be away; the reader takes it back.
    away: Mutex<Option<String>>,
    /// When the reader last reached the end of the log.
    heard: Mutex<std::time::Instant>,
    /// What was found to be wrong with the log; never taken back.
    damage: Mutex<Option<String>>,
    /// Set while the log is read anew after it lost its end.
    anew: AtomicBool,
    closed: AtomicBool,
    /// Set when the reader has nothing more to do.
    ended: AtomicBool,
}

impl Shared {
    fn refusal(&self) -> Option<String> {
        if self.closed.load(Ordering::Acquire) {
            return Some(CLOSED.into());
        }
        if self.read_only {
            return Some("the log is open for reading only".into());
        }
        let damage = self.damage.lock().clone();
        damage.or_else(|| self.away.lock().clone())
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn away(&self, reason: String) {
        let mut away = self.away.lock();
        if away.is_none() {
            tracing::error!(place = %self.link.place, %reason, "the log is away");
        }
        *away = Some(format!("{} is away: {reason}", self.link.place));
    }

    fn back(&self) {
        if self.away.lock().take().is_some() {
            tracing::info!(place = %self.link.place, "the log is back");
        }
    }

    fn damaged(&self, what: String) {
        let mut damage = self.damage.lock();
        if damage.is_none() {
            tracing::error!(damage = %what, "appends are refused from now on");
            *damage = Some(what);
        }
    }

    fn note(&self, error: &ReadError) {
        if let ReadError::Damaged { .. } = error {
            self.damaged(error.to_string());
        }
    }
}

/// A log in an EventStoreDB or KurrentDB server or cluster.
pub struct EventStoreLog {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
    _scratch: Option<tempfile::TempDir>,
}

impl fmt::Debug for EventStoreLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStoreLog")
            .field("place", &self.shared.link.place)
            .field("head", &self.head().position)
            .finish()
    }
}

impl EventStoreLog {
    /// Opens the log, and returns once its index has everything that is in it: the first time that takes a while.
    pub async fn open(options: EventStoreOptions) -> Result<Self, OpenError> {
        // The client would install another provider of cryptography than the rest of the process uses.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let place::Place { settings, shown, user } = place::parse(&options.url)?;
        let credentials = options.username.or(user).zip(options.password);
        let link = Link::new(settings, credentials, shown, options.namespace, options.deadlines);
        let (index_path, scratch) = match options.index {
            Some(path) => (path, None),
            None => {
                let scratch = tempfile::tempdir().map_err(OpenError::Scratch)?;
                (scratch.path().join("index.sqlite"), Some(scratch))
            }
        };
        let index_error = |source| OpenError::Index { path: index_path.clone(), source };
        let read_error = |source| OpenError::Read { place: link.place.clone(), source };

        let lock = WriterLock::take(&index_path).map_err(index_error)?;
        let (mut head, mut last, mut kept) = (Head::default(), None, None);
        if let Some((keeper, through)) = Keeper::open(&index_path) {
            match of_this_log(&link, through).await.map_err(read_error)? {
                Known::Nothing => kept = Some(keeper),
                Known::Through(event) => (head, last, kept) = (through, Some(event), Some(keeper)),
                Known::Another => {
                    tracing::warn!(path = %index_path.display(), "the index is of another log and is built anew");
                }
            }
        }
        let keeper = kept.map_or_else(|| Keeper::create(&index_path), Ok).map_err(index_error)?;
        let (notes, latest) = keeper.notes().map_err(|source| {
            index_error(crate::sqlite::OpenError::Sqlite { path: index_path.clone(), source })
        })?;
        let shared = Arc::new(Shared {
            link,
            hub: Arc::new(Hub::new(head)),
            heads: Mutex::default(),
            lookup: Arc::new(Lookup::new(index_path.clone())),
            index_path,
            notes,
            beats: Beats::default(),
            clock: options.clock,
            read_only: options.read_only,
            awaited: Awaited::default(),
            turns: Turns::default(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            bell: Notify::new(),
            moved: watch::channel(head.position).0,
            away: Mutex::default(),
            heard: Mutex::new(std::time::Instant::now()),
            damage: Mutex::default(),
            anew: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let mut reader = Reader {
            shared: Arc::clone(&shared),
            keeper: Some(keeper),
            _lock: lock,
            last,
            anew: None,
            latest,
            texts: Interner::default(),
        };
        if let Err(source) = reader.catch_up().await {
            return Err(OpenError::Read { place: shared.link.place.clone(), source });
        }
        let reader = Mutex::new(Some(tokio::spawn(reader.run())));
        Ok(Self { shared, reader, _scratch: scratch })
    }

    /// The file of the index.
    pub fn index_path(&self) -> &Path {
        &self.shared.index_path
    }
}

/// What an index that was found is worth.
enum Known {
    Nothing,
    /// Its last event is in the log: where, and under which id.
    Through(Last),
    Another,
}

async fn of_this_log(link: &Link, through: Head) -> Result<Known, ReadError> {
    let at = through.position;
    if at == 0 {
        return Ok(Known::Nothing);
    }
    let start = eventstore::Position { commit: at, prepare: at };
    let found = link.read_all(Some(start), 1, |event| event.position.commit == at).await?.pop();
    let Some(event) = found else { return Ok(Known::Another) };
    Ok(match envelope::decode(&event, &link.namespace, &mut Interner::default()) {
        Ok(Some(ours)) if ours.event.hash == through.hash => {
            Known::Through(Last { position: event.position, id: event.id, ours: true })
        }
        _ => Known::Another,
    })
}

#[async_trait::async_trait]
impl Log for EventStoreLog {
    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        let prepared = Prepared::new(stream, expected, events)?;
        self.shared.append(prepared, Vec::new()).await
    }

    async fn read_stream(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        self.shared.read_stream(stream, from, direction, limit).await
    }

    async fn read_all(
        &self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        self.shared.read_all(from, direction, limit, filter).await
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Subscription {
        Box::new(self.shared.hub.follow(Arc::<Shared>::clone(&self.shared), filter, after))
    }

    fn head(&self) -> Head {
        self.shared.hub.head()
    }

    async fn stream_head(&self, stream: &str) -> Result<Option<StreamHead>, ReadError> {
        if let Some(known) = self.shared.heads.lock().get(stream) {
            return Ok(Some(known.head));
        }
        let last = self.read_stream(stream, Revision::MAX, Direction::Backward, 1).await?;
        Ok(last.first().map(|last| StreamHead { revision: last.revision, hash: last.hash }))
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        self.shared.event(id).await
    }

    async fn redact(&self, event: Uuid, record: NewEvent) -> Result<Appended, RedactError> {
        redaction::check(event, &record)?;
        let Some(target) = self.event(event).await? else { return Err(RedactError::NoSuchEvent(event)) };
        redaction::check_target(&target)?;
        let shared = &self.shared;
        let until = Instant::now() + shared.link.deadlines.settle;
        loop {
            // Read here and not from the cache, so that a redaction by another process is met before this one.
            let last = self.read_stream(redaction::STREAM, Revision::MAX, Direction::Backward, 1).await?;
            if let Some(at) = shared.notes.redacted(event) {
                let record = shared.read_all(at, Direction::Forward, 1, &Filter::All).await?;
                let found = record.events.first().filter(|record| record.position == at);
                let missing = || ReadError::Unavailable(format!("the record at position {at} is not there"));
                return Ok(redaction::repeated(found.ok_or_else(missing)?));
            }
            let head = last.first().map(|last| StreamHead { revision: last.revision, hash: last.hash });
            let prepared = Prepared::new(redaction::STREAM, head.into(), vec![record.clone()])?;
            match shared.append(prepared, vec![Brings { redacts: Some(event), ..Brings::default() }]).await {
                Err(AppendError::Conflict { .. }) if Instant::now() < until => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    fn rewinds(&self) -> u64 {
        self.shared.hub.rewinds()
    }

    fn health(&self) -> Health {
        let shared = &self.shared;
        Health {
            dense: false,
            append_refused: shared.refusal(),
            damage: shared.damage.lock().clone(),
            engine: "eventstore",
            queued_appends: IN_FLIGHT.saturating_sub(shared.in_flight.available_permits()),
            silent_for: shared.heard.lock().elapsed(),
        }
    }

    async fn beat(&self, who: &str, facts: serde_json::Value) {
        self.shared.beats.beat(&self.shared.link, who, facts, &self.shared.clock).await;
    }

    async fn beats(&self) -> Result<Vec<Beat>, ReadError> {
        Ok(self.shared.beats.all())
    }

    async fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        // Every place taken means that nothing is under way; what is under way ends by its deadlines.
        if let Ok(all) = self.shared.in_flight.acquire_many(IN_FLIGHT as u32).await {
            all.forget();
            self.shared.in_flight.close();
        }
        self.shared.ended.store(true, Ordering::Release);
        self.shared.bell.notify_one();
        let reader = self.reader.lock().take();
        if let Some(reader) = reader
            && let Err(error) = reader.await
        {
            tracing::error!(%error, "the reader of the log ended badly");
        }
    }
}

impl Drop for EventStoreLog {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.ended.store(true, Ordering::Release);
        self.shared.bell.notify_one();
    }
}
