//! What is looked at before events of another log are taken over: whether they go on from where this one is, and which of
//! their redactions are to be recorded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::event::{Hash, Position};
use crate::ndjson::RestoreError;
use crate::prepare::Unplaced;
use crate::{Direction, Filter, StreamHead, redaction};

use super::reader::Reader;
use super::writer::unreadable;

/// How long one question about many events may take.
const BULK: Duration = Duration::from_secs(29);

const HEADS: &str = "SELECT h.revision, h.hash FROM unnest($1::text[]) WITH ORDINALITY AS s (name, i)
     LEFT JOIN LATERAL (
         SELECT e.revision, e.hash FROM events e WHERE e.stream = s.name ORDER BY e.revision DESC LIMIT 1
     ) h ON true ORDER BY s.i";
const REDACTED: &str = "SELECT e.position, e.id FROM events e WHERE e.id = ANY($1) AND e.data IS NULL";

/// Whether the events go on from where the log is.
pub(super) async fn check(
    reader: &mut Reader<'_>,
    events: &[Unplaced],
    first: Position,
) -> Result<(), RestoreError> {
    let last = reader.page(Position::MAX, Direction::Backward, 1, &Filter::All).await?.events;
    let (mut expected, mut recorded_at) =
        last.first().map_or((1, DateTime::<Utc>::MIN_UTC), |last| (last.position + 1, last.recorded_at));
    if first != expected {
        return Err(RestoreError::Gap { expected, found: first });
    }
    let mut heads: HashMap<Arc<str>, Option<StreamHead>> =
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
pub(super) async fn redactions(
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
    let mut found = HashMap::new();
    for row in reader.ask(REDACTED, &[&ids], BULK).await? {
        let position: i64 = row.try_get(0).map_err(unreadable)?;
        found.insert(row.try_get::<_, Uuid>(1).map_err(unreadable)?, position as Position);
    }
    for Unplaced { event, .. } in events.iter().filter(|unplaced| unplaced.event.is_redacted()) {
        found.insert(event.id, event.position);
    }
    let mut seen = HashSet::new();
    let pairs = named.into_iter().filter_map(|(id, record)| Some((*found.get(&id)?, record)));
    Ok(pairs.filter(|(event, _)| seen.insert(*event)).collect())
}
