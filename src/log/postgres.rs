//! The **PostgreSQL engine**: one log that several processes and machines share, in one schema of one database.
//!
//! A process appends through one connection ([`writer`]), hears of the others' appends through another ([`tail`]), and reads
//! through a few ([`reader`]). What must hold whoever connects is in the schema itself (`migrations/log-postgres`): a
//! function numbers and writes a group of appends under one lock, triggers refuse every other change.
//!
//! Invariants: a position is visible before a later one is given, so no reader skips one, however long a transaction stays
//! open; an append is one statement that commits by itself, so no client holds the lock while it does nothing; an append is
//! answered after its commit is durable. A server that goes away is noticed and said; nothing needs a restart when it is back.
//! A server that comes back with less than we have seen is noticed, too: the head goes back, and subscriptions that had
//! delivered what is lost end with [`ReadError::Rewound`].
//!
//! Deliberately absent: transactions that a client keeps open, sequences, and a pooler in transaction mode.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::DateTime;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::event::{NewEvent, Position, Recorded, Revision};
use crate::hub::{Hub, Recent, Source};
use crate::ndjson::{Restore, RestoreError};
use crate::prepare::{Prepared, Unplaced};
use crate::verify::{VerifyProgress, VerifyReport};
use crate::{
    AppendError, Appended, Beat, Direction, Expected, Filter, Head, Health, Log, Page, ReadError,
    RedactError, StreamHead, Subscription, leaf, redaction,
};

mod call;
mod decode;
mod reader;
mod restore;
mod schema;
mod session;
mod tail;
mod target;
mod verify;
mod writer;

pub use schema::OpenError;
pub use target::Password;

use reader::{Reader, Readers};
use session::{ANSWER, Bell, Session, Trouble};
use target::Target;
use writer::{Job, Waiting, Writer};

/// The schema of a log whose address names none.
pub const DEFAULT_SCHEMA: &str = "beampipe";

const CLOSED: &str = "the log is closed";
const READ_ONLY: &str = "the log is open for reading only";
/// For how long the server's last refusal is held to be its answer to the next append.
const TROUBLE_LASTS: Duration = Duration::from_secs(15);
/// How long a beat, or a look at the beats, may take.
const PRESENCE: Duration = Duration::from_secs(2);
const BEAT: &str = "SELECT beat($1, $2)";
const BEATS: &str = "SELECT who, counter, at, facts FROM beats WHERE at > (extract(epoch FROM clock_timestamp()) - 86400) * 1000000
     ORDER BY who";

/// How a log is opened.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Where the password comes from; `None` where the server asks for none (or for a certificate).
    pub password: Option<Password>,
    /// How many appends may wait for the writer; more are answered [`AppendError::Busy`].
    pub queue_appends: usize,
    /// How many bytes they may have together.
    pub queue_bytes: usize,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { password: None, queue_appends: 8192, queue_bytes: 64 << 20 }
    }
}

/// What the tasks of one open log share.
struct Shared {
    target: Target,
    read_only: bool,
    hub: Arc<Hub>,
    /// Held by whoever adds to the hub, so that it is added to in order.
    showing: tokio::sync::Mutex<()>,
    readers: Readers,
    /// For beats alone: what stands in their way stands in nobody else's.
    presence: Readers,
    /// Why the server cannot be reached.
    away: watch::Sender<Option<Arc<str>>>,
    /// When the tail last knew the end of the log.
    heard: Mutex<Instant>,
    /// What the server said to the last append, unless it took it.
    trouble: Mutex<Option<(Instant, String)>>,
    /// What was found to be damaged; never taken back.
    damage: Mutex<Option<String>>,
    closing: watch::Sender<bool>,
    /// Set when the writer ended in order: what it did not take was not written.
    ended: AtomicBool,
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
}

fn word_of_category(category: &str) -> String {
    format!("c:{category}")
}

fn word_of_tag(tag: &str) -> String {
    format!("t:{tag}")
}

impl Shared {
    /// A connection to a server whose log has what we know. Where it has not, the tail finds out what is left.
    async fn connect(&self, what: &str, bell: Option<Arc<Bell>>) -> Result<Session, Trouble> {
        let session = Session::connect(&self.target, what, bell).await?;
        let known = self.hub.head();
        if !session.look(known, ANSWER).await?.known {
            let position = known.position;
            return Err(Trouble::Lost(format!(
                "the server does not have the event that we know at position {position}"
            )));
        }
        Ok(session)
    }

    /// Says that the server is away, or that it is there.
    fn is_away(&self, why: Option<&str>) {
        let why = why.map(|why| Arc::<str>::from(format!("{}: {why}", self.target.shown)));
        self.away.send_if_modified(|now| {
            match (&*now, &why) {
                (None, Some(why)) => tracing::error!(reason = %why, "the log's server is away; trying again"),
                (Some(_), None) => tracing::info!("the log's server is there again"),
                _ => {}
            }
            let changed = now.is_some() != why.is_some();
            *now = why;
            changed
        });
    }

    /// Why nothing can be asked now.
    fn present(&self) -> Result<(), String> {
        self.away.borrow().as_deref().map_or(Ok(()), |why| Err(why.to_owned()))
    }

    /// Resolves with the reason as soon as the server is away.
    async fn gone(&self) -> String {
        match self.away.subscribe().wait_for(Option::is_some).await {
            Ok(reason) => reason.as_deref().unwrap_or_default().to_owned(),
            Err(_) => CLOSED.into(),
        }
    }

    fn trouble(&self, what: Option<&str>) {
        let mut trouble = self.trouble.lock();
        if let (None, Some(what)) = (&*trouble, what) {
            tracing::error!(what, "the server refuses an append");
        }
        *trouble = what.map(|what| (Instant::now(), what.to_owned()));
    }

    /// What the server said to the last append, unless that is long ago: only another append can tell whether it still holds.
    fn last_trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.as_ref().filter(|(at, _)| at.elapsed() < TROUBLE_LASTS).map(|(_, what)| what.clone())
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

    fn append_refusal(&self) -> Option<String> {
        let damage = self.damage.lock().clone();
        damage.or_else(|| self.present().err())
    }

    fn unreadable(&self, trouble: &Trouble) -> ReadError {
        ReadError::Unavailable(format!("{}: {}", self.target.shown, trouble.said()))
    }

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

    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }
}

/// A log in a schema of a PostgreSQL database.
pub struct PostgresLog {
    shared: Arc<Shared>,
    options: PostgresOptions,
    jobs: Option<mpsc::Sender<Job>>,
    tasks: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
    closed: AtomicBool,
}

impl fmt::Debug for PostgresLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLog")
            .field("server", &self.shared.target.shown)
            .field("schema", &self.shared.target.schema)
            .field("head", &self.head().position)
            .finish()
    }
}

impl PostgresLog {
    /// Opens the log at `postgres://user@host[:port]/database[?schema=…&sslmode=…&sslrootcert=…]` for writing, and makes
    /// its schema if there is none. Any number of processes may do so. Fails when the server cannot be reached.
    pub async fn open(url: &str, options: PostgresOptions) -> Result<Self, OpenError> {
        Self::start(url, options, false).await
    }

    /// Opens the log for reading, from a standby as well. Nothing is written.
    pub async fn open_read_only(url: &str, options: PostgresOptions) -> Result<Self, OpenError> {
        Self::start(url, options, true).await
    }

    async fn start(url: &str, options: PostgresOptions, read_only: bool) -> Result<Self, OpenError> {
        let target = Target::parse(url, options.password.clone(), read_only)?;
        schema::prepare(&target, read_only).await?;
        let unreachable = |trouble: Trouble| OpenError::Unreachable {
            server: target.shown.clone(),
            what: trouble.said().to_owned(),
        };
        let session = Session::connect(&target, "writer", None).await.map_err(unreachable)?;
        let look = session.look(Head::default(), ANSWER).await.map_err(unreachable)?;
        if look.standby && !read_only {
            return Err(OpenError::Standby { server: target.shown.clone() });
        }
        let shared = Arc::new(Shared {
            target,
            read_only,
            hub: Arc::new(Hub::new(look.head)),
            showing: tokio::sync::Mutex::default(),
            readers: Readers::default(),
            presence: Readers::of(1),
            away: watch::Sender::new(None),
            heard: Mutex::new(Instant::now()),
            trouble: Mutex::default(),
            damage: Mutex::default(),
            closing: watch::Sender::new(false),
            ended: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
        });
        let bell = Arc::new(Bell::default());
        let closing = shared.closing.subscribe();
        let mut tasks = vec![tokio::spawn(tail::run(Arc::clone(&shared), Arc::clone(&bell), closing))];
        let jobs = (!read_only).then(|| {
            let (jobs, queue) = mpsc::channel(options.queue_appends.max(1));
            bell.own.lock().push(session.pid);
            let writer = Writer { shared: Arc::clone(&shared), bell, session: Some(session) };
            tasks.push(tokio::spawn(writer.run(queue)));
            jobs
        });
        let (tasks, closed) = (tokio::sync::Mutex::new(tasks), AtomicBool::new(false));
        Ok(Self { shared, options, jobs, tasks, closed })
    }

    /// The server, the database and the schema, without any secret.
    pub fn place(&self) -> String {
        format!("{}, schema {}", self.shared.target.shown, self.shared.target.schema)
    }

    /// Checks everything: chains, positions, times, commitments, redactions, and what is beside the leaves. `progress`
    /// hears of it now and then. Finds every fault and does not stop at the first.
    pub async fn verify(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, ReadError> {
        let report = verify::run(&self.shared, progress).await?;
        if let Some(fault) = report.faults.first() {
            self.shared.damaged(format!("the log is damaged at {}: {}", fault.place, fault.what));
        }
        Ok(report)
    }

    fn enqueue(&self, job: Job) -> Result<(), AppendError> {
        let Some(jobs) = &self.jobs else { return Err(AppendError::Unavailable(READ_ONLY.into())) };
        if self.closed.load(Ordering::Acquire) {
            return Err(AppendError::Unavailable(CLOSED.into()));
        }
        if let Some(reason) = self.shared.append_refusal() {
            return Err(AppendError::Unavailable(reason));
        }
        jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AppendError::Busy,
            mpsc::error::TrySendError::Closed(_) => AppendError::Unavailable(CLOSED.into()),
        })
    }
}

impl Drop for PostgresLog {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
    }
}

/// What a subscription of this log reads from.
struct Stored(Arc<Shared>);

#[async_trait::async_trait]
impl Source for Stored {
    async fn page(&self, from: Position, limit: usize, filter: &Filter) -> Result<Page, ReadError> {
        Reader::borrow(&self.0).await?.page(from, Direction::Forward, limit.max(1), filter).await
    }
}

#[async_trait::async_trait]
impl Log for PostgresLog {
    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        let prepared = Prepared::new(stream, expected, events)?;
        let bytes = prepared.bytes;
        let shared = &self.shared;
        if shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed) > self.options.queue_bytes {
            shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(AppendError::Busy);
        }
        shared.queued.fetch_add(1, Ordering::Relaxed);
        let (reply, mut answer) = oneshot::channel();
        let taken = Arc::new(AtomicBool::new(false));
        if let Err(error) = self.enqueue(Job::Append(Waiting { prepared, reply, taken: Arc::clone(&taken) }))
        {
            shared.dequeued(1, bytes);
            return Err(error);
        }
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            // What the writer has not begun with need not wait for it to settle what it has.
            reason = shared.gone() => {
                if !taken.swap(true, Ordering::AcqRel) {
                    return Err(AppendError::Unavailable(reason));
                }
                answer.await
            }
        };
        answer.unwrap_or_else(|_| Err(shared.unanswered()))
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
        Reader::borrow(&self.shared).await?.stream(stream, from, direction, limit).await
    }

    async fn read_all(
        &self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        let limit = limit.max(1);
        let hub = &self.shared.hub;
        // The newest events are in memory. Whoever asks for later ones may know more than we do.
        if direction == Direction::Forward
            && from <= hub.head().position
            && self.shared.present().is_ok()
            && let Recent::Within { events, through, at_end } = hub.after(from.max(1) - 1, filter, limit)
        {
            return Ok(Page { events, next: (!at_end).then_some(through + 1) });
        }
        Reader::borrow(&self.shared).await?.page(from, direction, limit, filter).await
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Subscription {
        Box::new(self.shared.hub.follow(Arc::new(Stored(Arc::clone(&self.shared))), filter, after))
    }

    fn head(&self) -> Head {
        self.shared.hub.head()
    }

    fn rewinds(&self) -> u64 {
        self.shared.hub.rewinds()
    }

    async fn stream_head(&self, stream: &str) -> Result<Option<StreamHead>, ReadError> {
        let last = self.read_stream(stream, Revision::MAX, Direction::Backward, 1).await?;
        Ok(last.first().map(|last| StreamHead { revision: last.revision, hash: last.hash }))
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        Reader::borrow(&self.shared).await?.event(id).await
    }

    async fn redact(&self, event: Uuid, record: NewEvent) -> Result<Appended, RedactError> {
        redaction::check(event, &record)?;
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Redact { event, record, reply })?;
        answer.await.unwrap_or_else(|_| Err(self.shared.unanswered().into()))
    }

    fn health(&self) -> Health {
        let refused = match &self.jobs {
            None => Some(READ_ONLY.to_owned()),
            Some(_) => self.closed.load(Ordering::Acquire).then(|| CLOSED.to_owned()),
        };
        Health {
            dense: true,
            append_refused: self.shared.append_refusal().or(refused).or_else(|| self.shared.last_trouble()),
            damage: self.shared.damage.lock().clone(),
            engine: "postgres",
            queued_appends: self.shared.queued.load(Ordering::Relaxed),
            silent_for: self.shared.heard.lock().elapsed(),
        }
    }

    async fn beat(&self, who: &str, facts: serde_json::Value) {
        let facts = facts.to_string();
        let beaten = match Reader::for_presence(&self.shared).await {
            Ok(mut reader) => reader.ask(BEAT, &[&who, &facts], PRESENCE).await,
            Err(error) => Err(error),
        };
        if let Err(error) = beaten {
            tracing::debug!(who, %error, "a beat was not heard");
        }
    }

    async fn beats(&self) -> Result<Vec<Beat>, ReadError> {
        let rows = Reader::for_presence(&self.shared).await?.ask(BEATS, &[], PRESENCE).await?;
        let beat = |row: &tokio_postgres::Row| {
            Some(Beat {
                who: row.try_get(0).ok()?,
                counter: row.try_get::<_, i64>(1).ok()? as u64,
                at: DateTime::from_timestamp_micros(row.try_get(2).ok()?)?,
                facts: serde_json::from_str(row.try_get(3).ok()?).ok()?,
            })
        };
        Ok(rows.iter().filter_map(beat).collect())
    }

    async fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel)
            && let Some(jobs) = &self.jobs
        {
            let _ended = jobs.send(Job::Close).await;
        }
        if self.jobs.is_none() {
            // Of a log that is only read no writer ends first, and the tail waits for the word.
            self.shared.closing.send_replace(true);
        }
        let mut tasks = self.tasks.lock().await;
        // The writer was started last; its last group still wants to be shown.
        while let Some(task) = tasks.pop() {
            if task.await.is_err() {
                tracing::error!("a task of the log panicked");
            }
            self.shared.closing.send_replace(true);
        }
    }
}

#[async_trait::async_trait]
impl Restore for PostgresLog {
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
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Restore { events, reply })?;
        answer.await.map_err(|_| RestoreError::Append(self.shared.unanswered()))?
    }
}
