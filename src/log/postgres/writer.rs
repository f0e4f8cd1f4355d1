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
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::event::{Hash, NewEvent, Position, Recorded};
use crate::ndjson::RestoreError;
use crate::prepare::{Prepared, Unplaced};
use crate::{
    AppendError, Appended, Direction, Expected, Head, ReadError, RedactError, Revision, StreamHead, redaction,
};

use super::Shared;
use super::call::{self, Call, Written};
use super::reader::Reader;
use super::session::{Bell, Session, Trouble, told};

/// A group takes no more than this, so that its first append does not wait for its last too long.
const GROUP_APPENDS: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;
/// How long one question about many events may take.
const BULK: Duration = Duration::from_secs(29);
/// When what could not be settled is answered as unknown.
const DEADLINE: Duration = Duration::from_secs(12);
/// The first and the longest wait before another attempt to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

const HEADS: &str = "SELECT h.revision, h.hash FROM unnest($1::text[]) WITH ORDINALITY AS s (name, i)
     LEFT JOIN LATERAL (
         SELECT e.revision, e.hash FROM events e WHERE e.stream = s.name ORDER BY e.revision DESC LIMIT 1
     ) h ON true ORDER BY s.i";
const RECORD: &str = "SELECT record FROM redactions WHERE event = $1";
const REDACTED: &str = "SELECT e.position, e.id FROM events e WHERE e.id = ANY($1) AND e.data IS NULL";

pub(super) type Reply<T> = oneshot::Sender<T>;

pub(super) enum Job {
    Append { prepared: Prepared, reply: Reply<Result<Appended, AppendError>> },
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

    async fn group(&mut self, group: Vec<(Prepared, Reply<Result<Appended, AppendError>>)>) {
        if let Some(reason) = self.shared.append_refusal() {
            for (_, reply) in group {
                let _ = reply.send(Err(AppendError::Unavailable(reason.clone())));
            }
            return;
        }
        let (appends, replies): (Vec<Prepared>, Vec<_>) = group.into_iter().unzip();
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
            let lost = match self.session().await {
                Err(trouble) => {
                    // A call that broke off says little of the server; that there is no way to it does.
                    self.shared.is_away(Some(trouble.said()));
                    trouble
                }
                Ok(session) => {
                    match call.make(session).await {
                        Ok(answer) => {
                            self.shared.trouble(None);
                            return Ok(answer);
                        }
                        Err(Trouble::Refused { code, message }) if !is_passing(&code) => {
                            self.shared.trouble(Some(&message));
                            if code == SqlState::READ_ONLY_SQL_TRANSACTION {
                                // A server that was taken out of service; the next connection may lead to its successor.
                                self.hang_up();
                            }
                            if !sent {
                                return Err(Failure::NotWritten { code: Some(code), why: message });
                            }
                            // Of this call we know; of the one before it we do not.
                            Trouble::Refused { code, message }
                        }
                        Err(trouble @ Trouble::Refused { .. }) => trouble,
                        Err(Trouble::Lost(why)) => {
                            sent = true;
                            Trouble::Lost(why)
                        }
                    }
                }
            };
            if let Trouble::Lost(_) = &lost {
                self.hang_up();
            }
            if Instant::now() + pause > deadline || self.shared.is_closing() {
                let why = lost.said().to_owned();
                return Err(if sent {
                    Failure::Unknown(why)
                } else {
                    Failure::NotWritten { code: None, why }
                });
            }
            if !sent && matches!(lost, Trouble::Lost(_)) {
                return Err(Failure::NotWritten { code: None, why: lost.said().to_owned() });
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
            check(&mut reader, &events, first).await?;
            redactions(&mut reader, &events).await?
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

/// Whether the events go on from where the log is.
async fn check(reader: &mut Reader<'_>, events: &[Unplaced], first: Position) -> Result<(), RestoreError> {
    let last = reader.page(Position::MAX, Direction::Backward, 1, &crate::Filter::All).await?.events;
    let (mut expected, mut recorded_at) = last
        .first()
        .map_or((1, chrono::DateTime::<chrono::Utc>::MIN_UTC), |last| (last.position + 1, last.recorded_at));
    if first != expected {
        return Err(RestoreError::Gap { expected, found: first });
    }
    let mut heads: std::collections::HashMap<Arc<str>, Option<StreamHead>> =
        events.iter().map(|unplaced| (Arc::clone(&unplaced.event.stream), None)).collect();
    let names: Vec<Arc<str>> = heads.keys().cloned().collect();
    let texts: Vec<&str> = names.iter().map(|name| &**name).collect();
    let rows = reader.ask(HEADS, &[&texts], BULK).await?;
    for (name, row) in names.into_iter().zip(&rows) {
        let hash: Option<&[u8]> = row.try_get(1).map_err(unreadable)?;
        let revision: Option<i64> = row.try_get(0).map_err(unreadable)?;
        let head = revision.zip(hash.and_then(|hash| hash.try_into().ok()));
        heads.insert(
            name,
            head.map(|(revision, hash)| StreamHead { revision: revision as u64, hash: Hash(hash) }),
        );
    }
    for Unplaced { event, .. } in events {
        if event.position != expected {
            return Err(RestoreError::Gap { expected, found: event.position });
        }
        if event.recorded_at < recorded_at {
            return Err(RestoreError::broken(event, "it was recorded before the event before it".into()));
        }
        (expected, recorded_at) = (expected + 1, event.recorded_at);
        let head = heads.entry(Arc::clone(&event.stream)).or_default();
        RestoreError::check_chain(event, *head)?;
        *head = Some(StreamHead { revision: event.revision, hash: event.hash });
    }
    Ok(())
}

/// The redactions that records among the events tell of, each with the record's position.
async fn redactions(
    reader: &mut Reader<'_>,
    events: &[Unplaced],
) -> Result<Vec<(Position, Position)>, RestoreError> {
    let named: Vec<(Uuid, Position)> = events
        .iter()
        .flat_map(|unplaced| {
            let position = unplaced.event.position;
            redaction::named_by(&unplaced.event).into_iter().map(move |id| (id, position))
        })
        .collect();
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = named.iter().map(|(id, _)| *id).collect();
    let mut found = std::collections::HashMap::new();
    for row in reader.ask(REDACTED, &[&ids], BULK).await? {
        let position: i64 = row.try_get(0).map_err(unreadable)?;
        found.insert(row.try_get::<_, Uuid>(1).map_err(unreadable)?, position as Position);
    }
    for Unplaced { event, .. } in events.iter().filter(|unplaced| unplaced.event.is_redacted()) {
        found.insert(event.id, event.position);
    }
    let mut seen = std::collections::HashSet::new();
    let pairs = named.into_iter().filter_map(|(id, record)| Some((*found.get(&id)?, record)));
    Ok(pairs.filter(|(event, _)| seen.insert(*event)).collect())
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

fn unreadable(error: tokio_postgres::Error) -> ReadError {
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
