//! The one writer of a process: takes everything that is queued, writes it by one call, and then answers.
//!
//! Group commit without a timer: while one call is on its way the next group gathers in the queue. The call is one statement
//! that commits by itself, so a client that stops in the middle holds nothing. Order after a commit: the hub, the
//! answers, the wake-ups.
//!
//! A connection that breaks during a call leaves it unknown whether the group was written. That is settled by the same
//! call with the same bytes on a new connection, which is nothing but a look with a consequence: under the log's lock
//! the function first reads each stream at the expected place. If the leaf hashes of the append are there, it was written and
//! nothing is written now. If the stream still ends where the append expects it, it was not, and is now. If anything else is
//! there, it was not and never will be: an expectation that once failed cannot be met again. It does not matter whether
//! the first call still runs somewhere: whichever of the two has the lock first writes, the other one finds the hashes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::event::{NewEvent, Position, Recorded};
use crate::ndjson::RestoreError;
use crate::prepare::{Prepared, Unplaced};
use crate::{
    AppendError, Appended, Direction, Expected, Head, ReadError, RedactError, Revision, StreamHead, redaction,
};

use super::Shared;
use super::call::{self, Call, Written};
use super::reader::Reader;
use super::restore;
use super::session::{Bell, Session, Trouble, told};

/// A group takes no more than this, so that its first append does not wait for its last too long.
const GROUP_APPENDS: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;
/// How many turns of the scheduler a call waits at most for others to join it.
const MOST_TURNS: usize = 64;
/// How long one question about many events may take.
const BULK: Duration = Duration::from_secs(29);
/// When what could not be settled is answered as unknown.
const DEADLINE: Duration = Duration::from_secs(10);
/// The first and the longest wait before another attempt to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

const RECORD: &str = "SELECT record FROM redactions WHERE event = $1";

pub(super) type Reply<T> = oneshot::Sender<T>;

/// An append in the queue.
pub(super) struct Waiting {
    pub prepared: Prepared,
    pub reply: Reply<Result<Appended, AppendError>>,
    /// Set by whoever has it first: the writer, that begins with it, or the caller, who gives up before that.
    pub taken: Arc<AtomicBool>,
}

pub(super) enum Job {
    Append(Waiting),
    Redact { event: Uuid, record: NewEvent, reply: Reply<Result<Appended, RedactError>> },
    Restore { events: Vec<Unplaced>, reply: Reply<Result<(), RestoreError>> },
    Close,
}

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub bell: Arc<Bell>,
    pub session: Option<Session>,
}

/// Why a call has no answer.
enum Failure {
    /// It was certainly not written.
    NotWritten {
        code: Option<SqlState>,
        why: String,
    },
    Unknown(String),
}

impl From<Failure> for AppendError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotWritten { why, .. } => Self::Unavailable(why),
            Failure::Unknown(why) => Self::Unknown(why),
        }
    }
}

impl Writer {
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => job,
                None => match jobs.recv().await {
                    Some(job) => job,
                    None => break,
                },
            };
            match job {
                Job::Append(first) => {
                    gather(&jobs).await;
                    let mut bytes = first.prepared.bytes;
                    let mut group = vec![first];
                    while group.len() < GROUP_APPENDS && bytes < GROUP_BYTES {
                        match jobs.try_recv() {
                            Ok(Job::Append(another)) => {
                                bytes += another.prepared.bytes;
                                group.push(another);
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.shared.dequeued(group.len(), bytes);
                    self.group(group).await;
                }
                Job::Redact { event, record, reply } => {
                    let _ = reply.send(self.redact(event, record).await);
                }
                Job::Restore { events, reply } => {
                    let _ = reply.send(self.restore(events).await);
                }
                Job::Close => break,
            }
        }
        self.shared.ended.store(true, Ordering::Release);
    }

    async fn group(&mut self, mut group: Vec<Waiting>) {
        group.retain(|waiting| !waiting.taken.swap(true, Ordering::AcqRel));
        if group.is_empty() {
            return;
        }
        if let Some(reason) = self.shared.append_refusal() {
            for Waiting { reply, .. } in group {
                let _ = reply.send(Err(AppendError::Unavailable(reason.clone())));
            }
            return;
        }
        let (appends, replies): (Vec<Prepared>, Vec<_>) =
            group.into_iter().map(|waiting| (waiting.prepared, waiting.reply)).unzip();
        let single = appends.len() == 1;
        match self.write(&appends, None).await {
            Ok(rows) => self.answer(&rows, appends, replies).await,
            // Something about one of them; the others are no party to it.
            Err(Failure::NotWritten { code: Some(code), .. }) if !single && is_about_one(&code) => {
                for (prepared, reply) in appends.into_iter().zip(replies) {
                    match self.write(std::slice::from_ref(&prepared), None).await {
                        Ok(rows) => self.answer(&rows, vec![prepared], vec![reply]).await,
                        Err(failure) => {
                            let _ = reply.send(Err(failure.into()));
                        }
                    }
                }
            }
            Err(failure) => {
                for reply in replies {
                    let _ = reply.send(Err(match &failure {
                        Failure::NotWritten { why, .. } => AppendError::Unavailable(why.clone()),
                        Failure::Unknown(why) => AppendError::Unknown(why.clone()),
                    }));
                }
            }
        }
    }

    async fn answer(
        &mut self,
        rows: &[Row],
        appends: Vec<Prepared>,
        replies: Vec<Reply<Result<Appended, AppendError>>>,
    ) {
        match call::read(rows, appends) {
            Ok(Written { answers, events, before }) => {
                self.shared.show_own(before, &events).await;
                for (answer, reply) in answers.into_iter().zip(replies) {
                    // What was repeated may have been written by another process.
                    if let Ok(appended) = &answer
                        && appended.repeated
                    {
                        self.shared.reach(appended.position).await;
                    }
                    let _ = reply.send(answer);
                }
                self.shared.hub.wake(&events);
            }
            Err(trouble) => {
                for reply in replies {
                    let _ = reply.send(Err(AppendError::Unknown(trouble.said().to_owned())));
                }
            }
        }
    }

    async fn write(&mut self, group: &[Prepared], redacts: Option<Position>) -> Result<Vec<Row>, Failure> {
        self.settle(Call::Append { group, redacts }).await
    }

    /// Makes the call, again if need be, until it has an answer or its time is over.
    async fn settle(&mut self, call: Call<'_>) -> Result<Vec<Row>, Failure> {
        let deadline = Instant::now() + DEADLINE;
        let mut pause = FIRST_PAUSE;
        let mut sent = false;
        loop {
            let shared = Arc::clone(&self.shared);
            let trouble = match self.session().await {
                // That a call broke off says little of the server; that there is no way to it does.
                Err(trouble) => {
                    shared.is_away(Some(trouble.said()));
                    trouble
                }
                Ok(session) => {
                    let answer = tokio::select! {
                        biased;
                        answer = call.make(session) => answer,
                        reason = shared.gone() => Err(Trouble::Silent(reason)),
                    };
                    match answer {
                        Ok(rows) => {
                            shared.trouble(None);
                            return Ok(rows);
                        }
                        Err(Trouble::Refused { code, message }) => {
                            shared.trouble(Some(&message));
                            if code == SqlState::READ_ONLY_SQL_TRANSACTION {
                                // A server out of service; the next connection may lead to its successor.
                                self.hang_up();
                            }
                            // Of this call we know; of one before it that broke off we do not.
                            if !sent && !is_passing(&code) {
                                return Err(Failure::NotWritten { code: Some(code), why: message });
                            }
                            Trouble::Refused { code, message }
                        }
                        Err(trouble) => {
                            self.hang_up();
                            sent = true;
                            trouble
                        }
                    }
                }
            };
            let why = trouble.said().to_owned();
            if !sent && !matches!(trouble, Trouble::Refused { .. }) {
                return Err(Failure::NotWritten { code: None, why });
            }
            if Instant::now() + pause > deadline || shared.is_closing() {
                return Err(if sent {
                    Failure::Unknown(why)
                } else {
                    Failure::NotWritten { code: None, why }
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn hang_up(&mut self) {
        if let Some(session) = self.session.take() {
            self.bell.own.lock().retain(|pid| *pid != session.pid);
        }
    }

    async fn session(&mut self) -> Result<&Session, Trouble> {
        if self.session.as_ref().is_some_and(|session| session.client.is_closed()) {
            self.hang_up();
        }
        if self.session.is_none() {
            let session = self.shared.connect("writer", None).await?;
            // Whatever was said of the server before, it is there.
            self.shared.is_away(None);
            self.bell.own.lock().push(session.pid);
            self.session = Some(session);
        }
        self.session.as_ref().ok_or_else(|| Trouble::Lost("there is no connection".into()))
    }

    async fn redact(&mut self, event: Uuid, record: NewEvent) -> Result<Appended, RedactError> {
        if let Some(reason) = self.shared.append_refusal() {
            return Err(AppendError::Unavailable(reason).into());
        }
        let ours = record.id;
        let shared = Arc::clone(&self.shared);
        loop {
            let mut reader = Reader::borrow(&shared).await?;
            let found = reader.event(event).await?.ok_or(RedactError::NoSuchEvent(event))?;
            redaction::check_target(&found)?;
            if found.is_redacted() {
                let record = record_of(&mut reader, found.position).await?;
                let mut answer = redaction::repeated(&record);
                // Its first attempt was broken off after it was written.
                answer.repeated = record.id != ours;
                self.shared.reach(answer.position).await;
                return Ok(answer);
            }
            let last = reader.stream(redaction::STREAM, Revision::MAX, Direction::Backward, 1).await?;
            drop(reader);
            let head = last.first().map(|last| StreamHead { revision: last.revision, hash: last.hash });
            let prepared = Prepared::new(redaction::STREAM, Expected::from(head), vec![record.clone()])?;
            let rows = self
                .write(std::slice::from_ref(&prepared), Some(found.position))
                .await
                .map_err(AppendError::from)?;
            let written = call::read(&rows, vec![prepared])
                .map_err(|trouble| AppendError::Unknown(trouble.said().to_owned()))?;
            match written.answers.into_iter().next() {
                Some(Ok(answer)) => {
                    self.shared.show_own(written.before, &written.events).await;
                    self.shared.reach(answer.position).await;
                    self.shared.hub.replace(&Arc::new(redaction::without_data(&found)));
                    self.shared.hub.wake(&written.events);
                    return Ok(Appended { repeated: false, ..answer });
                }
                // Another process has recorded something meanwhile; perhaps this very redaction.
                Some(Err(AppendError::Conflict { .. })) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err(AppendError::Unknown("an empty answer".into()).into()),
            }
        }
    }

    /// Takes events over as they are, with their positions and times of recording.
    async fn restore(&mut self, events: Vec<Unplaced>) -> Result<(), RestoreError> {
        if let Some(reason) = self.shared.append_refusal() {
            return Err(AppendError::Unavailable(reason).into());
        }
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        let (first, end) =
            (first.event.position, Head { position: last.event.position, hash: last.event.hash });
        let shared = Arc::clone(&self.shared);
        let redactions = {
            let mut reader = Reader::borrow(&shared).await?;
            restore::check(&mut reader, &events, first).await?;
            restore::redactions(&mut reader, &events).await?
        };
        let call = Call::Restore { head: first - 1, events: &events, redactions: &redactions };
        let rows = self.settle(call).await.map_err(AppendError::from)?;
        let written: bool =
            rows.first().map(|row| row.try_get(0)).transpose().map_err(unreadable)?.unwrap_or(false);
        // The log ends elsewhere: perhaps because an attempt that was broken off has succeeded.
        if !written {
            let there = Reader::borrow(&shared).await?.at(end.position).await?;
            if there.is_none_or(|event| event.hash != end.hash) {
                return Err(RestoreError::Gap { expected: shared.hub.head().position + 1, found: first });
            }
        }
        let _order = shared.showing.lock().await;
        if shared.hub.head().position < end.position {
            shared.hub.skip_to(end);
        }
        Ok(())
    }
}

/// Lets those who were just answered ask again before the next call leaves: a call costs the same for one append as for many.
/// No clock is waited for; it ends as soon as a turn brings nobody.
async fn gather(jobs: &mpsc::Receiver<Job>) {
    let (mut waiting, mut quiet) = (jobs.len(), 0);
    for _ in 0..MOST_TURNS {
        tokio::task::yield_now().await;
        let now = jobs.len();
        quiet = if now > waiting { 0 } else { quiet + 1 };
        if quiet == 2 || now >= GROUP_APPENDS {
            return;
        }
        waiting = now;
    }
}

async fn record_of(reader: &mut Reader<'_>, position: Position) -> Result<Arc<Recorded>, ReadError> {
    let rows = reader.ask(RECORD, &[&(position as i64)], BULK).await?;
    let at: Option<i64> = rows.first().map(|row| row.try_get(0)).transpose().map_err(unreadable)?;
    let at = at.unwrap_or_default() as Position;
    reader.at(at).await?.ok_or_else(|| ReadError::Damaged {
        place: format!("position {position}"),
        what: "its data is gone and no redaction is recorded".into(),
    })
}

pub(super) fn unreadable(error: tokio_postgres::Error) -> ReadError {
    ReadError::Unavailable(told(&error))
}

/// Whether the server may say something else to the same call a moment later.
fn is_passing(code: &SqlState) -> bool {
    [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE].contains(code)
}

/// Whether an error is about what was sent (classes 22 and 23, or a limit) and not about the server.
fn is_about_one(code: &SqlState) -> bool {
    ["22", "23", "54"].iter().any(|class| code.code().starts_with(class))
}
