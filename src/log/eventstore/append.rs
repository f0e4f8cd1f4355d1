//! **Appending**: look where the stream is, send, and say nothing before our own reader has met the event.
//!
//! The server checks revisions; the hash that an expectation names is checked here, against the event at that revision,
//! which cannot change any more. It also takes an append whose event ids are already at the expected place for a
//! repetition, whatever it says: so an acknowledged append is compared by leaf hash with what is there.
//!
//! An answer that was lost is settled by reading the expected place. Where that is still empty the same bytes are sent
//! again: the expectation is exact, so whichever of the two attempts the server takes first, the other one cannot be
//! written after it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use eventstore::EventData;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::envelope::{self, Brings};
use super::link::{Failure, proposal};
use crate::event::{Recorded, Revision};
use crate::prepare::Prepared;
use crate::{AppendError, Appended, Direction, Expected, MAX_APPEND_BYTES, StreamHead};

/// What the server keeps with each event beside what we send, in bytes, at most.
const FRAME: usize = 128;
/// How long between two looks at a place that could not be read.
const PAUSE: Duration = Duration::from_millis(100);

/// A stream and a revision in it.
type Place = (Arc<str>, Revision);

/// Those who wait for the reader to meet an event.
#[derive(Default)]
pub(super) struct Awaited(Mutex<HashMap<Place, oneshot::Sender<Arc<Recorded>>>>);

impl Awaited {
    fn wait(&self, stream: &Arc<str>, revision: Revision) -> oneshot::Receiver<Arc<Recorded>> {
        let (tell, told) = oneshot::channel();
        self.0.lock().insert((Arc::clone(stream), revision), tell);
        told
    }

    fn leave(&self, stream: &Arc<str>, revision: Revision) {
        self.0.lock().remove(&(Arc::clone(stream), revision));
    }

    pub(super) fn tell(&self, events: &[Arc<Recorded>]) {
        let mut waiting = self.0.lock();
        if waiting.is_empty() {
            return;
        }
        for event in events {
            if let Some(tell) = waiting.remove(&(Arc::clone(&event.stream), event.revision)) {
                let _ = tell.send(Arc::clone(event));
            }
        }
    }
}

/// One append at a time for each stream of this process: of two, the second could only be refused.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Arc<str>, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub(super) async fn take(&self, stream: &Arc<str>) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            if turns.len() > 4_096 {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            match turns.get(stream).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(tokio::sync::Mutex::new(()));
                    turns.insert(Arc::clone(stream), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

/// What the server counts of an event, at most.
pub(super) fn weight(event: &Recorded, metadata: &[u8]) -> usize {
    let data = event.data.as_ref().map_or(0, bytes::Bytes::len);
    data + metadata.len() + event.event_type.len() + FRAME
}

/// An append as it is sent: the same bytes each time.
fn encode(prepared: &Prepared, brings: &[Brings]) -> Result<Vec<EventData>, AppendError> {
    let mut size = 0;
    let mut proposals = Vec::with_capacity(prepared.events.len());
    for (at, unplaced) in prepared.events.iter().enumerate() {
        let event = &unplaced.event;
        let brings = brings.get(at).copied().unwrap_or_default();
        let (data, metadata) = (event.data.clone().unwrap_or_default(), envelope::encode(event, brings));
        size += weight(event, &metadata);
        proposals.push(proposal(event.id, &event.event_type, data, metadata));
    }
    if size > MAX_APPEND_BYTES {
        let reason = format!(
            "its {} events have {size} bytes with their metadata, {MAX_APPEND_BYTES} are allowed in one append",
            proposals.len()
        );
        return Err(AppendError::Unacceptable { stream: prepared.stream.to_string(), reason });
    }
    Ok(proposals)
}

/// What an expectation is worth, given where its stream is.
enum Fit {
    Fits,
    /// The stream goes on from there: what follows may be this very append.
    Passed,
    Differs,
}

fn compare(expected: Expected, head: Option<StreamHead>) -> Fit {
    match (expected, head) {
        (Expected::NoStream, None) => Fit::Fits,
        (Expected::NoStream, Some(_)) => Fit::Passed,
        (Expected::At { revision, .. }, Some(head)) if head.revision > revision => Fit::Passed,
        (Expected::At { revision, hash }, Some(head)) if head == (StreamHead { revision, hash }) => Fit::Fits,
        (Expected::At { .. }, _) => Fit::Differs,
    }
}

impl Shared {
    /// Appends, to the end of it even if whoever asked is gone.
    pub(super) async fn append(
        self: &Arc<Self>,
        prepared: Prepared,
        brings: Vec<Brings>,
    ) -> Result<Appended, AppendError> {
        let shared = Arc::clone(self);
        let appending = tokio::spawn(async move { shared.take_in(prepared, &brings).await });
        appending.await.unwrap_or_else(|error| Err(AppendError::Unknown(error.to_string())))
    }

    async fn take_in(
        self: &Arc<Self>,
        prepared: Prepared,
        brings: &[Brings],
    ) -> Result<Appended, AppendError> {
        if envelope::is_beside(&prepared.stream) {
            let reason = "streams of this name are not in the log".into();
            return Err(AppendError::Unacceptable { stream: prepared.stream.to_string(), reason });
        }
        let proposals = encode(&prepared, brings)?;
        let _taken = Arc::clone(&self.in_flight).try_acquire_owned().map_err(|_| match self.refusal() {
            Some(reason) => AppendError::Unavailable(reason),
            None => AppendError::Busy,
        })?;
        if let Some(reason) = self.refusal() {
            return Err(AppendError::Unavailable(reason));
        }
        let _turn = self.turns.take(&prepared.stream).await;
        // Waiting for the turn may have taken long.
        if let Some(reason) = self.refusal().filter(|_| !self.closed.load(Ordering::Acquire)) {
            return Err(AppendError::Unavailable(reason));
        }
        if let Some(answer) = self.look(&prepared).await? {
            return Ok(answer);
        }
        let (stream, last) = (Arc::clone(&prepared.stream), prepared.head().revision);
        let met = self.awaited.wait(&stream, last);
        let outcome = self.send(&prepared, proposals, met).await;
        self.awaited.leave(&stream, last);
        outcome
    }

    /// Whether it fits where its stream is. The answer, if it is there already.
    async fn look(&self, prepared: &Prepared) -> Result<Option<Appended>, AppendError> {
        let known = self.heads.lock().get(&prepared.stream).map(|known| known.head);
        let (mut head, mut place) = (known, compare(prepared.expected, known));
        // What is cached may be old, and says nothing about streams that it does not have.
        if matches!(place, Fit::Differs) {
            head = self.last(&prepared.stream).await?;
            place = compare(prepared.expected, head);
        }
        match place {
            Fit::Fits => Ok(None),
            Fit::Differs => Err(prepared.conflict(head)),
            Fit::Passed => match self.there(prepared).await? {
                Some(there) if there.hash == prepared.head().hash => {
                    Ok(Some(prepared.answer(there.position, true)))
                }
                _ => Err(prepared.conflict(self.last(&prepared.stream).await?)),
            },
        }
    }

    /// Where the stream ends on the server.
    async fn last(&self, stream: &str) -> Result<Option<StreamHead>, AppendError> {
        let read = self.link.read_stream(stream, Revision::MAX, Direction::Backward, 1).await;
        let read = read.map_err(|failure| AppendError::Unavailable(failure.reason()))?;
        let event = self.verified(read).map_err(|error| AppendError::Unavailable(error.to_string()))?.pop();
        Ok(event.map(|event| StreamHead { revision: event.revision, hash: event.hash }))
    }

    /// What is where the last event of the append would be.
    async fn there(&self, prepared: &Prepared) -> Result<Option<Recorded>, AppendError> {
        let revision = prepared.head().revision;
        let read = self.link.read_stream(&prepared.stream, revision, Direction::Forward, 1).await;
        let read = read.map_err(|failure| AppendError::Unavailable(failure.reason()))?;
        Ok(self.verified(read).map_err(|error| AppendError::Unavailable(error.to_string()))?.pop())
    }

    async fn send(
        &self,
        prepared: &Prepared,
        proposals: Vec<EventData>,
        mut met: oneshot::Receiver<Arc<Recorded>>,
    ) -> Result<Appended, AppendError> {
        let until = Instant::now() + self.link.deadlines.settle;
        // Why it is not known whether an earlier attempt was written.
        let mut unknown: Option<String> = None;
        loop {
            let sent = self.link.append(&prepared.stream, prepared.expected, proposals.clone()).await;
            self.bell.notify_one();
            match sent {
                Ok(()) => return self.confirm(prepared, &mut met, until).await,
                Err(Failure::Elsewhere) => {
                    return match self.settle(prepared, until).await {
                        Ok(Some(answer)) => Ok(answer),
                        Ok(None) => Err(prepared.conflict(self.last(&prepared.stream).await?)),
                        Err(reason) => Err(unknown.map_or(
                            AppendError::Unavailable(format!(
                                "the stream has gone on, and cannot be read: {reason}"
                            )),
                            AppendError::Unknown,
                        )),
                    };
                }
                Err(Failure::Refused(reason) | Failure::NotSent(reason)) if unknown.is_none() => {
                    return Err(AppendError::Unavailable(reason));
                }
                Err(failure) => {
                    let reason = unknown.get_or_insert(failure.reason()).clone();
                    match self.settle(prepared, until).await {
                        Ok(Some(answer)) => return Ok(answer),
                        Ok(None) if Instant::now() < until => {
                            tracing::debug!(stream = %prepared.stream, %reason, "an append is sent again");
                        }
                        Ok(None) | Err(_) => return Err(AppendError::Unknown(reason)),
                    }
                }
            }
        }
    }

    /// Reads the expected place until that works: the answer if the append is there, `None` where nothing is, a conflict
    /// where something else is.
    async fn settle(&self, prepared: &Prepared, until: Instant) -> Result<Option<Appended>, String> {
        loop {
            match self.there(prepared).await {
                Ok(Some(there)) if there.hash == prepared.head().hash => {
                    self.reach(there.position, until).await;
                    return Ok(Some(prepared.answer(there.position, false)));
                }
                Ok(_) => return Ok(None),
                Err(error) if Instant::now() >= until || self.damage.lock().is_some() => {
                    return Err(error.to_string());
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// After the server's yes: that it was said of these very events, and where they are.
    async fn confirm(
        &self,
        prepared: &Prepared,
        met: &mut oneshot::Receiver<Arc<Recorded>>,
        until: Instant,
    ) -> Result<Appended, AppendError> {
        let hash = prepared.head().hash;
        let passed = || {
            let known = self.heads.lock().get(&prepared.stream);
            known.is_some_and(|known| known.head.revision >= prepared.head().revision)
        };
        // The reader may have met them before anybody waited, when somebody else sent the same.
        if let Ok(event) = met.try_recv() {
            return self.confirmed(prepared, &event);
        }
        if !passed() {
            match tokio::time::timeout(self.link.deadlines.append, &mut *met).await {
                Ok(Ok(event)) => return self.confirmed(prepared, &event),
                _ => {
                    tracing::debug!(stream = %prepared.stream, "the reader is behind an acknowledged append")
                }
            }
        } else if let Ok(event) = met.try_recv() {
            return self.confirmed(prepared, &event);
        }
        match self.settle(prepared, until).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                let head = self.last(&prepared.stream).await?;
                tracing::warn!(stream = %prepared.stream, %hash, "the server took another append for this one");
                Err(prepared.conflict(head))
            }
            Err(reason) => Err(AppendError::Unknown(reason)),
        }
    }

    fn confirmed(&self, prepared: &Prepared, met: &Recorded) -> Result<Appended, AppendError> {
        if met.hash == prepared.head().hash {
            return Ok(prepared.answer(met.position, false));
        }
        Err(prepared.conflict(self.heads.lock().get(&prepared.stream).map(|known| known.head)))
    }
}
