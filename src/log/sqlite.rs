//! The **SQLite engine**: the embedded default, one file that is the log and one beside it that says what is where.
//!
//! `<log>` holds events and nothing else, appended by one writer thread ([`writer`]); `<log>.index` is derived and follows
//! ([`index`]). Reads go through a few connections of their own ([`reader`]), the live feed through the shared hub.
//! Invariants: an append is answered after its commit is synced and before anybody is woken; what was acknowledged is there
//! after any crash, or the log says that it is damaged, where, and refuses appends.
//!
//! | the file | is |
//! |---|---|
//! | `<log>`, `<log>-wal`, `<log>-shm` | the events |
//! | `<log>.index` (and `-wal`, `-shm`) | derived; deleted and built again at will |
//! | `<log>.lock` | who writes |
//! | `<log>.acked` | the last acknowledged position ([`mark`]) |

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::event::{Hash, NewEvent, Position, Recorded, Revision};
use crate::hub::{Hub, Recent, Source};
use crate::ndjson::{Restore, RestoreError};
use crate::prepare::{Prepared, Unplaced};
use crate::presence::Presence;
use crate::verify::{VerifyProgress, VerifyReport};
use crate::{
    AppendError, Appended, Beat, Clock, Direction, Expected, Filter, Head, Health, Log, Page, ReadError,
    RedactError, StreamHead, Subscription, leaf, redaction,
};

mod checkpoint;
mod decode;
pub(crate) mod heads;
pub(crate) mod index;
pub(crate) mod lock;
pub(crate) mod lookup;
mod mark;
mod reader;
mod runs;
pub(crate) mod schema;
mod verify;
mod wal;
mod writer;

pub use schema::OpenError;

use heads::Heads;
use index::Indexer;
use lock::WriterLock;
use mark::Mark;
use reader::{Reader, Readers};
use writer::{Job, Writer};

const CLOSED: &str = "the log is closed";
/// How many events the index may be behind before appends are answered [`AppendError::Busy`].
const MOST_UNINDEXED: u64 = 500_000;

/// How a log is opened.
#[derive(Clone)]
pub struct SqliteOptions {
    /// Where recorded_at comes from.
    pub clock: Clock,
    /// How many appends may wait for the writer; more are answered [`AppendError::Busy`].
    pub queue_appends: usize,
    /// How many bytes they may have together.
    pub queue_bytes: usize,
}

impl SqliteOptions {
    /// The usual limits.
    pub fn new(clock: Clock) -> Self {
        Self { clock, queue_appends: 8192, queue_bytes: 64 << 20 }
    }
}

/// What the threads of one open log share.
struct Shared {
    path: PathBuf,
    read_only: bool,
    hub: Arc<Hub>,
    heads: Mutex<Heads>,
    readers: Readers,
    presence: Presence,
    clock: Clock,
    /// Why appends are refused; the writer takes it back once it can write.
    refused: Mutex<Option<String>>,
    /// What was found to be damaged; never taken back.
    damage: Mutex<Option<String>>,
    indexed: AtomicU64,
    /// Set when the writer ended in order: what it did not take was not written.
    ended: AtomicBool,
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
}

impl Shared {
    fn new(path: &Path, read_only: bool, head: Head, clock: Clock) -> Self {
        Self {
            path: path.to_owned(),
            read_only,
            hub: Arc::new(Hub::new(head)),
            heads: Mutex::default(),
            readers: Readers::default(),
            presence: Presence::default(),
            clock,
            refused: Mutex::default(),
            damage: Mutex::default(),
            indexed: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
        }
    }

    /// Damage that somebody met makes the log refuse appends from now on.
    fn note(&self, error: &ReadError) {
        if let ReadError::Damaged { .. } = error {
            self.damaged(error.to_string());
        }
    }

    fn damaged(&self, what: String) {
        let mut damage = self.damage.lock();
        if damage.is_none() {
            tracing::error!(damage = %what, "appends are refused from now on");
            *damage = Some(what);
        }
    }

    fn refuse(&self, reason: Option<String>) {
        let mut refused = self.refused.lock();
        if let (None, Some(reason)) = (&*refused, &reason) {
            tracing::error!(%reason, "appends are refused until it can be written again");
        }
        *refused = reason;
    }

    fn append_refusal(&self) -> Option<String> {
        let damage = self.damage.lock().clone();
        damage.or_else(|| self.refused.lock().clone())
    }

    fn indexed(&self, through: Position) {
        self.indexed.store(through, Ordering::Release);
        self.heads.lock().trim(through);
    }

    /// Whether the index is so far behind that appends wait for it: until it knows them, heads stay in memory.
    fn index_is_overrun(&self) -> bool {
        self.hub.head().position.saturating_sub(self.indexed.load(Ordering::Acquire)) > MOST_UNINDEXED
    }

    /// What is said of an append whose answer never came.
    fn unanswered(&self) -> AppendError {
        if self.ended.load(Ordering::Acquire) {
            return AppendError::Unavailable(CLOSED.into());
        }
        AppendError::Unknown("the log's writer failed".into())
    }

    fn dequeued(&self, appends: usize, bytes: usize) {
        self.queued.fetch_sub(appends, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What a writing log has and a read-only one has not.
struct Threads {
    jobs: Sender<Job>,
    handles: Vec<JoinHandle<()>>,
    /// Given back last, when no thread writes to any of the files.
    _lock: WriterLock,
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Close);
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }
}

/// A log in an SQLite file.
pub struct SqliteLog {
    shared: Arc<Shared>,
    options: SqliteOptions,
    threads: Mutex<Option<Threads>>,
    jobs: Option<Sender<Job>>,
}

impl fmt::Debug for SqliteLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteLog")
            .field("path", &self.shared.path)
            .field("head", &self.head().position)
            .finish()
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

fn last(connection: &rusqlite::Connection) -> rusqlite::Result<Option<(Head, i64)>> {
    use rusqlite::OptionalExtension;
    connection
        .query_row(
            "SELECT position, hash, recorded_at FROM events ORDER BY position DESC LIMIT 1",
            [],
            |row| {
                let head = Head { position: row.get::<_, i64>(0)? as Position, hash: Hash(row.get(1)?) };
                Ok((head, row.get(2)?))
            },
        )
        .optional()
}

impl SqliteLog {
    /// Opens the log at `path` for writing, and makes it if there is none. A damaged log opens too, as long as something
    /// of it can be read: it answers reads, says what is wrong in its health, and refuses appends.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let lock = WriterLock::take(path)?;
        let mark = Mark::read(path);
        let bad_frame = wal::inspect(path).map_err(|error| OpenError::io(path, error))?;
        if let Some(damage) = Self::find_damage(path, mark, bad_frame.as_ref())? {
            // Writing would overwrite what could still be told from the files as they are.
            let log = Self::open_without_writer(path, options)?;
            log.shared.damaged(damage);
            return Ok(log);
        }
        let connection = schema::open_writer(path)?;
        let fail = |error| OpenError::sqlite(path, error);
        let last = last(&connection).map_err(fail)?;
        let (head, micros) = last.unwrap_or((Head::default(), i64::MIN));
        let recorded_at =
            chrono::DateTime::from_timestamp_micros(micros).unwrap_or(chrono::DateTime::UNIX_EPOCH);
        let shared = Arc::new(Shared::new(path, false, head, Arc::clone(&options.clock)));
        let mut indexer = Indexer::open(path, &connection)?;
        indexer.catch_up(path, &connection)?;
        shared.indexed(indexer.through());

        let (jobs, job_queue) = bounded(options.queue_appends.max(1));
        let (index, index_signals) = bounded(1);
        let (checkpointer, checkpoint_signals) = bounded(1);
        let mut writer = Writer {
            reader: Reader::open(&shared)?,
            mark: Mark::open(path).map_err(|error| OpenError::io(path, error))?,
            shared: Arc::clone(&shared),
            connection,
            recorded_at,
            index,
            checkpointer,
            unsettled: 0,
            littered: false,
            pending: Vec::new(),
        };
        // What an earlier process left half written must not be taken for damage later.
        writer.reset_wal("RESTART");
        let checkpoints = schema::open_checkpointer(path)?;
        let io = |error| OpenError::io(path, error);
        let handles = vec![
            spawn("log-writer", move || writer.run(&job_queue)).map_err(io)?,
            spawn("log-index", {
                let shared = Arc::clone(&shared);
                move || indexer.run(&shared, &index_signals)
            })
            .map_err(io)?,
            spawn("log-checkpoint", {
                let (jobs, shared) = (jobs.clone(), Arc::clone(&shared));
                move || checkpoint::run(&checkpoints, &shared, &checkpoint_signals, &jobs)
            })
            .map_err(io)?,
        ];
        let threads = Mutex::new(Some(Threads { jobs: jobs.clone(), handles, _lock: lock }));
        Ok(Self { shared, options, threads, jobs: Some(jobs) })
    }

    /// Opens the log at `path` for reading, whoever else writes to it. Nothing is written, not even to repair.
    pub fn open_read_only(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        Self::open_without_writer(path, options)
    }

    fn open_without_writer(path: &Path, options: SqliteOptions) -> Result<Self, OpenError> {
        let fail = |error| OpenError::sqlite(path, error);
        let connection = schema::open_reader(path).map_err(fail)?;
        schema::recognise(&connection, path)?;
        let head = last(&connection).map_err(fail)?.map_or(Head::default(), |(head, _)| head);
        let shared = Arc::new(Shared::new(path, true, head, Arc::clone(&options.clock)));
        Ok(Self { shared, options, threads: Mutex::new(None), jobs: None })
    }

    /// Whether acknowledged events are gone, before anything is written.
    fn find_damage(
        path: &Path,
        mark: Option<Head>,
        bad: Option<&wal::BadFrame>,
    ) -> Result<Option<String>, OpenError> {
        let wal = schema::beside(path, "-wal");
        let at =
            |bad: &wal::BadFrame| format!("{}, frame {} (byte {})", wal.display(), bad.frame, bad.offset);
        if let Some(bad) = bad.filter(|bad| bad.certain) {
            return Ok(Some(format!(
                "the log is damaged at {}: its checksum fails and committed events follow it; restore from a copy",
                at(bad)
            )));
        }
        let Some(mark) = mark.filter(|mark| mark.position > 0) else { return Ok(None) };
        let missing = |what: &str| {
            let place = bad.map_or_else(|| path.display().to_string(), at);
            let mark_file = Mark::path(path);
            format!(
                "the log is damaged at {place}: {what} position {}, which was acknowledged; restore from a copy, or, \
                 if this is such a copy, delete {}",
                mark.position,
                mark_file.display()
            )
        };
        if !path.exists() {
            return Err(OpenError::Damaged {
                place: path.display().to_string(),
                what: missing("it is gone, with"),
            });
        }
        let fail = |error| OpenError::sqlite(path, error);
        let connection = schema::open_reader(path).map_err(fail)?;
        let hash = connection.query_row(
            "SELECT hash FROM events WHERE position = ?1",
            [mark.position as i64],
            |row| row.get(0).map(Hash),
        );
        match hash {
            Ok(hash) if hash == mark.hash => Ok(None),
            Ok(_) => Ok(Some(missing("another event is at"))),
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(Some(missing("it ends before"))),
            Err(error) if error.to_string().contains("no such table") => {
                Ok(Some(missing("it is empty before")))
            }
            Err(error) => match schema::read_error(path, &error) {
                ReadError::Damaged { place, what } => {
                    Ok(Some(format!("the log is damaged at {place}: {what}")))
                }
                _ => Err(fail(error)),
            },
        }
    }

    /// The file that is the log.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Checks everything: chains, positions, times, commitments, redactions and the index. `progress` hears of it now
    /// and then. Finds every fault and does not stop at the first. Blocks: run it where that is fine.
    pub fn verify(&self, progress: &mut dyn FnMut(VerifyProgress)) -> Result<VerifyReport, ReadError> {
        let report = verify::run(&self.shared.path, progress)?;
        if let Some(fault) = report.faults.first() {
            self.shared.damaged(format!("the log is damaged at {}: {}", fault.place, fault.what));
        }
        Ok(report)
    }

    fn enqueue(&self, job: Job) -> Result<(), AppendError> {
        let refusal =
            || self.shared.append_refusal().unwrap_or_else(|| "the log is open for reading only".into());
        let Some(jobs) = &self.jobs else { return Err(AppendError::Unavailable(refusal())) };
        if self.threads.lock().is_none() {
            return Err(AppendError::Unavailable(CLOSED.into()));
        }
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => AppendError::Busy,
            TrySendError::Disconnected(_) => AppendError::Unavailable(CLOSED.into()),
        })
    }
}

/// What a subscription of this log reads from.
struct Tail(Arc<Shared>);

#[async_trait::async_trait]
impl Source for Tail {
    async fn page(&self, from: Position, limit: usize, filter: &Filter) -> Result<Page, ReadError> {
        let filter = filter.clone();
        let limit = limit.max(1);
        let read_only = self.0.read_only;
        let shared = Arc::clone(&self.0);
        let page = Readers::run(&self.0, move |reader| {
            let page = reader.read_all(from, Direction::Forward, limit, &filter)?;
            if read_only && let Some(position) = reader.last_position()? {
                let head = shared.hub.head().position;
                if position > head {
                    let last = reader.at(position)?;
                    shared.hub.skip_to(Head { position, hash: last.hash });
                }
            }
            Ok(page)
        });
        page.await
    }

    fn poll_every(&self) -> Option<Duration> {
        self.0.read_only.then_some(Duration::from_millis(250))
    }
}

#[async_trait::async_trait]
impl Log for SqliteLog {
    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        let prepared = Prepared::new(stream, expected, events)?;
        let bytes = prepared.bytes;
        let shared = &self.shared;
        if shared.index_is_overrun() {
            return Err(AppendError::Busy);
        }
        if shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed) > self.options.queue_bytes {
            shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(AppendError::Busy);
        }
        shared.queued.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        if let Err(error) = self.enqueue(Job::Append { prepared, reply }) {
            shared.dequeued(1, bytes);
            return Err(error);
        }
        answer.await.unwrap_or_else(|_| Err(shared.unanswered()))
    }

    async fn read_stream(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let stream = stream.to_owned();
        Readers::run(&self.shared, move |reader| reader.read_stream(&stream, from, direction, limit)).await
    }

    async fn read_all(
        &self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        let limit = limit.max(1);
        // The newest events are in memory; a look there costs no thread.
        if direction == Direction::Forward
            && !self.shared.read_only
            && let Recent::Within { events, through, at_end } =
                self.shared.hub.after(from.max(1) - 1, filter, limit)
        {
            return Ok(Page { events, next: (!at_end).then_some(through + 1) });
        }
        let filter = filter.clone();
        Readers::run(&self.shared, move |reader| reader.read_all(from, direction, limit, &filter)).await
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Subscription {
        Box::new(self.shared.hub.follow(Arc::new(Tail(Arc::clone(&self.shared))), filter, after))
    }

    fn head(&self) -> Head {
        self.shared.hub.head()
    }

    async fn stream_head(&self, stream: &str) -> Result<Option<StreamHead>, ReadError> {
        if let Some(known) = self.shared.heads.lock().get(stream) {
            return Ok(Some(known.head));
        }
        let last = self.read_stream(stream, Revision::MAX, Direction::Backward, 1).await?;
        // Not kept: only the writer may say where a stream ends, as it decides by it.
        Ok(last.first().map(|last| StreamHead { revision: last.revision, hash: last.hash }))
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        Readers::run(&self.shared, move |reader| reader.event(id)).await
    }

    async fn redact(&self, event: Uuid, record: NewEvent) -> Result<Appended, RedactError> {
        redaction::check(event, &record)?;
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Redact { event, record, reply })?;
        answer.await.unwrap_or_else(|_| Err(self.shared.unanswered().into()))
    }

    fn health(&self) -> Health {
        let closed = || self.threads.lock().is_none().then(|| CLOSED.into());
        let refused = match &self.jobs {
            None => Some("the log is open for reading only".into()),
            Some(_) => closed(),
        };
        Health {
            silent_for: std::time::Duration::ZERO,
            dense: true,
            append_refused: self.shared.append_refusal().or(refused),
            damage: self.shared.damage.lock().clone(),
            engine: "sqlite",
            queued_appends: self.shared.queued.load(Ordering::Relaxed),
        }
    }

    async fn beat(&self, who: &str, facts: serde_json::Value) {
        self.shared.presence.beat(who, facts, &self.shared.clock);
    }

    async fn beats(&self) -> Result<Vec<Beat>, ReadError> {
        Ok(self.shared.presence.beats())
    }

    async fn close(&self) {
        let threads = self.threads.lock().take();
        // Joining waits for the last commit; not on an async thread.
        let _ = tokio::task::spawn_blocking(move || drop(threads)).await;
    }
}

#[async_trait::async_trait]
impl Restore for SqliteLog {
    async fn restore(&self, events: Vec<Recorded>) -> Result<(), RestoreError> {
        let encode = move || -> Result<Vec<Unplaced>, RestoreError> {
            let one = |event: Recorded| {
                let leaf = leaf::encode(&(&event).into());
                leaf::check_encoded(&leaf, &event)
                    .map_err(|broken| RestoreError::broken(&event, broken.to_string()))?;
                Ok(Unplaced { event, leaf })
            };
            events.into_iter().map(one).collect()
        };
        let broken_off = |_| RestoreError::Append(AppendError::Unavailable(CLOSED.into()));
        let events = tokio::task::spawn_blocking(encode).await.map_err(broken_off)??;
        while self.shared.index_is_overrun() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Restore { events, reply })?;
        answer.await.map_err(|_| RestoreError::Append(self.shared.unanswered()))?
    }
}
