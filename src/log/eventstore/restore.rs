//! Taking events over from another log: with their times of recording and redactions, at positions of the server's choice.
//!
//! What follows in one stream goes in one append; the next stream waits for it, so that the order stays. Events that are
//! there already are compared and left: what was broken off goes on.

use std::sync::Arc;

use super::append::weight;
use super::envelope::{self, Brings};
use super::{EventStoreLog, Shared};
use crate::event::Recorded;
use crate::ndjson::{Restore, RestoreError};
use crate::prepare::{Prepared, Unplaced};
use crate::{
    AppendError, Direction, Expected, Log, MAX_APPEND_BYTES, ReadError, StreamHead, leaf, redaction,
};

#[async_trait::async_trait]
impl Restore for EventStoreLog {
    async fn restore(&self, events: Vec<Recorded>) -> Result<(), RestoreError> {
        let mut events = events.into_iter().peekable();
        while let Some(first) = events.next() {
            let mut run = vec![first];
            let mut size = weight(&run[0], &envelope::encode(&run[0], Brings::default()));
            while let Some(next) =
                events.next_if(|next| next.stream == run[0].stream && size < MAX_APPEND_BYTES / 2)
            {
                size += weight(&next, &envelope::encode(&next, Brings::default()));
                run.push(next);
            }
            take_over(self, &self.shared, run).await?;
        }
        Ok(())
    }
}

async fn take_over(
    log: &EventStoreLog,
    shared: &Arc<Shared>,
    run: Vec<Recorded>,
) -> Result<(), RestoreError> {
    let head = log.stream_head(&run[0].stream).await?;
    let next = head.map_or(0, |head| head.revision + 1);
    let mut expected = head;
    let mut prepared: Vec<Unplaced> = Vec::with_capacity(run.len());
    let mut brings = Vec::with_capacity(run.len());
    for event in run {
        leaf::check(&event).map_err(|broken| RestoreError::broken(&event, broken.to_string()))?;
        if event.revision < next {
            let there = log.read_stream(&event.stream, event.revision, Direction::Forward, 1).await?;
            if there.first().is_none_or(|there| there.hash != event.hash) {
                return Err(RestoreError::broken(&event, "another event is at its place".into()));
            }
            continue;
        }
        RestoreError::check_chain(&event, expected)?;
        expected = Some(StreamHead { revision: event.revision, hash: event.hash });
        brings.push(Brings { redacts: redacted_by(log, &event).await?, taken_over: true });
        prepared.push(Unplaced { leaf: leaf::encode(&(&event).into()), event });
    }
    if prepared.is_empty() {
        return Ok(());
    }
    let bytes = prepared.iter().map(Unplaced::bytes).sum();
    let stream = Arc::clone(&prepared[0].event.stream);
    let append = Prepared { stream, expected: Expected::from(head), events: prepared, bytes };
    match shared.append(append, brings).await {
        Ok(_) => Ok(()),
        Err(error) => Err(RestoreError::Append(error)),
    }
}

/// Which event a record redacts: the one that it names and that came without its data.
async fn redacted_by(log: &EventStoreLog, record: &Recorded) -> Result<Option<uuid::Uuid>, RestoreError> {
    for named in redaction::named_by(record) {
        match log.event(named).await {
            Ok(Some(event)) if event.is_redacted() => return Ok(Some(named)),
            Ok(_) => {}
            Err(ReadError::Unavailable(reason)) => return Err(AppendError::Unavailable(reason).into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
