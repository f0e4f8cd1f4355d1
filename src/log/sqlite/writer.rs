//! The one writer: a thread that takes everything that is queued, commits it once, and only then answers.
//!
//! Group commit without a timer: while one group is being synced the next one gathers in the queue. Each append is
//! decided on its own, against the state that the appends before it in the group leave behind; a conflict fails that
//! append and no other. Order after a commit: the mark, the hub's ring, the acknowledgements, the wake-ups. So nobody hears
//! of an event that could still be lost, and whoever was answered finds its events wherever it looks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::event::{NewEvent, Position, Recorded};
use crate::ndjson::RestoreError;
use crate::prepare::{Prepared, Unplaced, to_micros};
use crate::{
    AppendError, Appended, Direction, Expected, Head, ReadError, RedactError, StreamHead, redaction,
};

use super::heads::KnownHead;
use super::mark::Mark;
use super::reader::Reader;
use super::schema::beside;
use super::{Shared, decode};

/// A group takes no more than this, so that its first append does not wait for its last too long.
const GROUP_APPENDS: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;
/// How often a writer that refuses looks whether it can write again.
const PROBE: Duration = Duration::from_millis(250);
/// How much room has to be there before appends are taken again.
const PROBE_BYTES: usize = 512 * 1024;
/// After so many bytes the checkpointer is told to move the WAL into the database.
const CHECKPOINT_BYTES: usize = 16 << 20;

pub(super) type Reply<T> = oneshot::Sender<T>;

pub(super) enum Job {
    Append {
        prepared: Prepared,
        reply: Reply<Result<Appended, AppendError>>,
    },
    Redact {
        event: Uuid,
        record: NewEvent,
        reply: Reply<Result<Appended, RedactError>>,
    },
    Restore {
        events: Vec<Unplaced>,
        reply: Reply<Result<(), RestoreError>>,
    },
    /// The WAL is nearly all in the database: start it from its beginning again.
    ResetWal,
    Close,
}

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub connection: Connection,
    pub reader: Reader,
    pub mark: Mark,
    pub recorded_at: DateTime<Utc>,
    pub index: Sender<()>,
    pub checkpointer: Sender<()>,
    pub unsettled: usize,
    /// Whether frames of a commit that failed may be left in the WAL.
    pub littered: bool,
    /// Committed and not yet shown.
    pub pending: Vec<Arc<Recorded>>,
}

/// The end of a stream inside a group, with every leaf the group has put there.
#[derive(Default)]
struct Staged {
    heads: HashMap<Arc<str>, Vec<KnownHead>>,
    events: Vec<Unplaced>,
}

impl Writer {
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut probed = Instant::now();
        let _alarm = Alarm(Arc::clone(&self.shared));
        loop {
            let job = if self.shared.refused.lock().is_some() {
                if probed.elapsed() > PROBE {
                    self.probe();
                    probed = Instant::now();
                    continue;
                }
                match jobs.recv_timeout(PROBE) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                match jobs.recv() {
                    Ok(job) => job,
                    Err(_) => break,
                }
            };
            if !self.work(job, jobs) {
                break;
            }
        }
        self.close();
    }

    /// Whether to go on.
    fn work(&mut self, first: Job, jobs: &Receiver<Job>) -> bool {
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Append { prepared, reply } => {
                    let mut bytes = prepared.bytes;
                    let mut group = vec![(prepared, reply)];
                    while group.len() < GROUP_APPENDS && bytes < GROUP_BYTES {
                        match jobs.try_recv() {
                            Ok(Job::Append { prepared, reply }) => {
                                bytes += prepared.bytes;
                                group.push((prepared, reply));
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.shared.dequeued(group.len(), bytes);
                    self.group(group);
                }
                Job::Redact { event, record, reply } => {
                    let _ = reply.send(self.redact(event, record));
                }
                Job::Restore { events, reply } => {
                    let _ = reply.send(self.restore(events));
                }
                Job::ResetWal => self.reset_wal("RESTART"),
                Job::Close => return false,
            }
        }
        true
    }

    fn group(&mut self, group: Vec<(Prepared, Reply<Result<Appended, AppendError>>)>) {
        if let Some(reason) = self.shared.append_refusal() {
            for (_, reply) in group {
                let _ = reply.send(Err(AppendError::Unavailable(reason.clone())));
            }
            return;
        }
        let mut staged = Staged::default();
        let mut answers = Vec::with_capacity(group.len());
        for (prepared, reply) in group {
            answers.push((self.decide(prepared, &mut staged), reply));
        }
        if !staged.events.is_empty()
            && let Err(error) = self.commit(staged, |_| Ok(()))
        {
            // A conflict with something that was not written is none: nobody in this group gets another answer.
            for (_, reply) in answers {
                let _ = reply.send(Err(again(&error)));
            }
            return;
        }
        let published = self.publish();
        for (answer, reply) in answers {
            let _ = reply.send(answer);
        }
        self.after(&published);
    }

    fn next_position(&self, staged: &Staged) -> Position {
        self.shared.hub.head().position + staged.events.len() as Position + 1
    }

    fn known_head(&mut self, stream: &Arc<str>, staged: &Staged) -> Result<Option<KnownHead>, ReadError> {
        if let Some(known) = staged.heads.get(stream).and_then(|heads| heads.last()) {
            return Ok(Some(*known));
        }
        if let Some(known) = self.shared.heads.lock().get(stream) {
            return Ok(Some(known));
        }
        Ok(self.reader.indexed_last(stream)?.map(|last| {
            let head = StreamHead { revision: last.revision, hash: last.hash };
            let known = KnownHead { head, position: last.position };
            self.shared.heads.lock().set(stream, known);
            known
        }))
    }

    fn decide(&mut self, prepared: Prepared, staged: &mut Staged) -> Result<Appended, AppendError> {
        let shared = Arc::clone(&self.shared);
        let unreadable = |error: ReadError| {
            shared.note(&error);
            AppendError::Unavailable(error.to_string())
        };
        let actual = self.known_head(&prepared.stream, staged).map_err(unreadable)?;
        if Expected::from(actual.map(|known| known.head)) == prepared.expected {
            let first = self.next_position(staged);
            let answer = prepared.answer(first + prepared.events.len() as Position - 1, false);
            let heads = staged.heads.entry(Arc::clone(&prepared.stream)).or_default();
            for (position, mut unplaced) in (first..).zip(prepared.events) {
                unplaced.event.position = position;
                let head = StreamHead { revision: unplaced.event.revision, hash: unplaced.event.hash };
                heads.push(KnownHead { head, position });
                staged.events.push(unplaced);
            }
            return Ok(answer);
        }
        // The last leaf names the one before, and so on: if it is there, the whole append is.
        let wanted = prepared.head();
        let there = match actual {
            Some(known) if known.head.revision < wanted.revision => None,
            None => None,
            Some(known) if known.head.revision == wanted.revision => Some(known),
            Some(_) => {
                let in_group = staged
                    .heads
                    .get(&prepared.stream)
                    .and_then(|heads| heads.iter().find(|known| known.head.revision == wanted.revision))
                    .copied();
                match in_group {
                    Some(known) => Some(known),
                    None => self
                        .reader
                        .read_stream(&prepared.stream, wanted.revision, Direction::Forward, 1)
                        .map_err(unreadable)?
                        .first()
                        .map(|event| KnownHead {
                            head: StreamHead { revision: event.revision, hash: event.hash },
                            position: event.position,
                        }),
                }
            }
        };
        match there {
            Some(known) if known.head == wanted => Ok(prepared.answer(known.position, true)),
            _ => Err(prepared.conflict(actual.map(|known| known.head))),
        }
    }

    /// Writes what is staged in one transaction, with `more` inside it. On success it is kept for [`Writer::publish`].
    fn commit(
        &mut self,
        staged: Staged,
        more: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), AppendError> {
        let recorded_at = to_micros((self.shared.clock)()).max(self.recorded_at);
        let mut staged = staged;
        for unplaced in &mut staged.events {
            unplaced.event.recorded_at = recorded_at;
        }
        self.write(staged, more)
    }

    fn write(
        &mut self,
        staged: Staged,
        more: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), AppendError> {
        let connection = &self.connection;
        let fill = || -> rusqlite::Result<()> {
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            let mut insert = connection.prepare_cached(
                "INSERT INTO events (position, recorded_at, leaf, hash, salt, data, seal)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for Unplaced { event, leaf } in &staged.events {
                let recorded_at = event.recorded_at.timestamp_micros();
                insert.execute((
                    event.position as i64,
                    recorded_at,
                    leaf,
                    &event.hash.0[..],
                    event.salt.as_ref().map(|salt| &salt[..]),
                    event.data.as_deref(),
                    decode::seal(event.position, recorded_at, &event.hash),
                ))?;
            }
            more(connection)
        };
        let done = fill().map_err(|error| (error, false)).and_then(|()| {
            let commit = connection.prepare_cached("COMMIT").and_then(|mut statement| statement.execute([]));
            commit.map(|_| ()).map_err(|error| (error, true))
        });
        if let Err((error, committing)) = done {
            if !connection.is_autocommit()
                && let Err(error) = connection.execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "cannot roll back");
            }
            self.littered = true;
            return Err(self.failed(&error, committing));
        }
        let mut heads = self.shared.heads.lock();
        for (stream, known) in &staged.heads {
            if let Some(last) = known.last() {
                heads.set(stream, *last);
            }
        }
        drop(heads);
        self.unsettled += staged.events.iter().map(Unplaced::bytes).sum::<usize>();
        self.pending = staged.events.into_iter().map(|unplaced| Arc::new(unplaced.event)).collect();
        Ok(())
    }

    fn failed(&self, error: &rusqlite::Error, committing: bool) -> AppendError {
        let path = self.shared.path.display();
        let code = error.sqlite_error_code();
        if matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) {
            self.shared.note(&super::schema::read_error(&self.shared.path, error));
            return AppendError::Unavailable(format!("{path}: {error}"));
        }
        let reason = match code {
            Some(ErrorCode::DiskFull) => format!("no space is left to write {path}"),
            _ => format!("cannot write {path}: {error}"),
        };
        self.shared.refuse(Some(reason.clone()));
        match code {
            // The write itself failed, so its commit frame is not whole.
            Some(ErrorCode::DiskFull) => AppendError::Unavailable(reason),
            _ if committing => AppendError::Unknown(reason),
            _ => AppendError::Unavailable(reason),
        }
    }

    /// Notes and shows what was committed. Wakes nobody yet.
    fn publish(&mut self) -> Vec<Arc<Recorded>> {
        let events = std::mem::take(&mut self.pending);
        if let Some(last) = events.last() {
            self.recorded_at = last.recorded_at;
            self.mark.write(Head { position: last.position, hash: last.hash });
            self.shared.hub.publish(&events);
        }
        events
    }

    /// What may happen once everyone is answered.
    fn after(&mut self, events: &[Arc<Recorded>]) {
        if events.is_empty() {
            return;
        }
        self.shared.hub.wake(events);
        let _ = self.index.try_send(());
        if self.unsettled > CHECKPOINT_BYTES {
            self.unsettled = 0;
            let _ = self.checkpointer.try_send(());
        }
        if self.littered {
            self.reset_wal("RESTART");
        }
    }

    fn redact(&mut self, event: Uuid, record: NewEvent) -> Result<Appended, RedactError> {
        if let Some(reason) = self.shared.append_refusal() {
            return Err(AppendError::Unavailable(reason).into());
        }
        let found = self.reader.event(event).inspect_err(|error| self.shared.note(error))?;
        let Some(found) = found else { return Err(RedactError::NoSuchEvent(event)) };
        redaction::check_target(&found)?;
        if found.is_redacted() {
            let record = self.record_of(found.position)?;
            return Ok(redaction::repeated(&record));
        }
        let mut staged = Staged::default();
        let head = self.known_head(&redaction::STREAM.into(), &staged)?;
        let head = head.map(|known| known.head);
        let prepared = Prepared::new(redaction::STREAM, head.into(), vec![record])?;
        let answer = self.decide(prepared, &mut staged)?;
        let (at, by) = (found.position as i64, answer.position as i64);
        self.commit(staged, |connection| {
            connection
                .prepare_cached("INSERT INTO redactions (event, event_id, record) VALUES (?1, ?2, ?3)")?
                .execute((at, event.as_bytes(), by))?;
            connection
                .prepare_cached("UPDATE events SET salt = NULL, data = NULL WHERE position = ?1")?
                .execute([at])?;
            Ok(())
        })?;
        self.shared.hub.replace(&Arc::new(redaction::without_data(&found)));
        let published = self.publish();
        self.after(&published);
        // What was there is still in the WAL's older frames.
        self.reset_wal("TRUNCATE");
        Ok(answer)
    }

    fn record_of(&mut self, position: Position) -> Result<Arc<Recorded>, ReadError> {
        let record = self
            .connection
            .prepare_cached("SELECT record FROM redactions WHERE event = ?1")
            .and_then(|mut statement| statement.query_row([position as i64], |row| row.get::<_, i64>(0)));
        match record {
            Ok(record) => self.reader.at(record as Position),
            Err(error) => Err(super::schema::read_error(&self.shared.path, &error)),
        }
    }

    /// Takes events over as they are, with their positions and times of recording.
    fn restore(&mut self, events: Vec<Unplaced>) -> Result<(), RestoreError> {
        if let Some(reason) = self.shared.append_refusal() {
            return Err(AppendError::Unavailable(reason).into());
        }
        let mut staged = Staged::default();
        let mut records = Vec::new();
        let mut recorded_at = self.recorded_at;
        for unplaced in events {
            let event = &unplaced.event;
            let expected = self.next_position(&staged);
            if event.position != expected {
                return Err(RestoreError::Gap { expected, found: event.position });
            }
            if event.recorded_at < recorded_at {
                return Err(RestoreError::broken(event, "it was recorded before the event before it".into()));
            }
            recorded_at = event.recorded_at;
            let known =
                self.known_head(&event.stream, &staged).inspect_err(|error| self.shared.note(error))?;
            RestoreError::check_chain(event, known.map(|known| known.head))?;
            for id in redaction::named_by(event) {
                records.push((id, event.position));
            }
            let head = StreamHead { revision: event.revision, hash: event.hash };
            staged
                .heads
                .entry(Arc::clone(&event.stream))
                .or_default()
                .push(KnownHead { head, position: event.position });
            staged.events.push(unplaced);
        }
        let mut redactions = Vec::new();
        for (id, record) in records {
            let here = staged.events.iter().map(|unplaced| &unplaced.event).find(|event| event.id == id);
            let redacted = match here {
                Some(event) => event.is_redacted().then_some(event.position),
                None => {
                    self.reader.event(id)?.filter(|event| event.is_redacted()).map(|event| event.position)
                }
            };
            redactions.extend(redacted.map(|position| (position, id, record)));
        }
        self.write(staged, |connection| {
            let mut insert = connection
                .prepare_cached("INSERT INTO redactions (event, event_id, record) SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM redactions WHERE event = ?1)")?;
            for (event, id, record) in redactions {
                insert.execute((event as i64, id.as_bytes(), record as i64))?;
            }
            Ok(())
        })?;
        let published = self.publish();
        self.after(&published);
        Ok(())
    }

    pub(super) fn reset_wal(&mut self, mode: &str) {
        let connection = &self.connection;
        let reset = connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| {
                connection
                    .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, i64>(0))
            })
            .and_then(|busy| connection.busy_timeout(Duration::from_secs(10)).map(|()| busy));
        match reset {
            Ok(0) => self.littered = false,
            Ok(_) => tracing::debug!("a reader keeps the write-ahead log from starting over"),
            Err(error) => tracing::debug!(%error, "cannot move the write-ahead log into the database"),
        }
    }

    /// Looks whether there is room again, without appending anything.
    fn probe(&mut self) {
        let path: PathBuf = beside(&self.shared.path, ".probe");
        let written = std::fs::File::create(&path).and_then(|mut file| {
            use std::io::Write;
            file.write_all(&vec![1; PROBE_BYTES])?;
            file.sync_data()
        });
        let _ = std::fs::remove_file(&path);
        if written.is_ok() {
            tracing::info!(path = %self.shared.path.display(), "the log can be written again");
            self.shared.refuse(None);
        } else {
            // Room may be in the WAL: what of it can be copied need not be kept.
            self.reset_wal("TRUNCATE");
        }
    }

    fn close(mut self) {
        self.shared.readers.close();
        self.shared.ended.store(true, Ordering::Release);
        if self.shared.damage.lock().is_none() {
            self.reset_wal("TRUNCATE");
        }
    }
}

/// Says that appends no longer work if the writer ends by a panic.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.refuse(Some("the log's writer failed; start again".into()));
        }
    }
}

fn again(error: &AppendError) -> AppendError {
    match error {
        AppendError::Unknown(reason) => AppendError::Unknown(reason.clone()),
        AppendError::Unavailable(reason) => AppendError::Unavailable(reason.clone()),
        other => AppendError::Unavailable(other.to_string()),
    }
}
