//! **Reading**: the index says where, the server says what.
//!
//! Positions are places in the server's files, so how far apart two of them are says how much lies between: events that
//! are close are read in one go, those that are not one by one, some at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use eventstore::RecordedEvent;
use futures::StreamExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Shared, envelope};
use crate::event::{Position, Recorded, Revision};
use crate::hub::{Recent, Source};
use crate::leaf::Interner;
use crate::{Direction, Filter, Head, Page, ReadError};

/// Up to how many bytes of other events are read over rather than asked around.
const NEAR: u64 = 16 << 10;
/// About how many bytes one read takes at most.
const LONG: u64 = 1 << 20;
/// How many reads a page has under way at once.
const READS: usize = 8;
/// A page of events with large data ends early.
const PAGE_BYTES: usize = 16 << 20;

/// Neighbours in one read. In the order of `places`, which rise or fall.
fn spans(places: &[Position]) -> Vec<Vec<Position>> {
    let mut spans: Vec<Vec<Position>> = Vec::new();
    for &place in places {
        if let Some(span) = spans.last_mut()
            && span[span.len() - 1].abs_diff(place) <= NEAR
            && span[0].abs_diff(place) <= LONG
        {
            span.push(place);
        } else {
            spans.push(vec![place]);
        }
    }
    spans
}

impl Shared {
    /// Decodes and verifies what was read from one stream.
    pub(super) fn verified(&self, read: Vec<RecordedEvent>) -> Result<Vec<Recorded>, ReadError> {
        let mut texts = Interner::default();
        let decode = |event: RecordedEvent| match envelope::decode(&event, &self.link.namespace, &mut texts)?
        {
            Some(ours) => Ok(ours.event),
            None => Err(ReadError::Damaged {
                place: format!("stream {} revision {}", event.stream_id(), event.revision),
                what: "it is an event of somebody else".into(),
            }),
        };
        let verified: Result<Vec<_>, _> = read.into_iter().map(decode).collect();
        verified.inspect_err(|error| self.note(error))
    }

    /// Waits until the reader has met `position`. False when it has not in time.
    pub(super) async fn reach(&self, position: Position, until: Instant) -> bool {
        if self.hub.head().position >= position {
            return true;
        }
        self.bell.notify_one();
        let mut moved = self.moved.subscribe();
        let reached = moved.wait_for(|head| *head >= position);
        matches!(tokio::time::timeout_at(until, reached).await, Ok(Ok(_)))
    }

    pub(super) async fn read_stream(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        if limit == 0 || stream.is_empty() {
            return Ok(Vec::new());
        }
        self.not_anew()?;
        let mut read = self.link.read_stream(stream, from, direction, limit).await?;
        if read.is_empty() && direction == Direction::Backward && from < Revision::MAX {
            // Far beyond the end the server finds nothing; the end is not beyond it.
            let last = self.link.read_stream(stream, Revision::MAX, direction, limit).await?;
            read = last.into_iter().filter(|event| event.revision <= from).collect();
        }
        let events = self.verified(read)?;
        // What the reader has not met yet may be redacted, or recorded late, and nobody here knows.
        let newest = events.iter().map(|event| event.position).max().unwrap_or_default();
        if !self.reach(newest, Instant::now() + self.link.deadlines.append).await && !self.has_ended() {
            return Err(ReadError::Unavailable(format!("position {newest} is not indexed yet")));
        }
        Ok(events.into_iter().map(|event| self.notes.amend(event)).collect())
    }

    pub(super) async fn read_all(
        &self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        self.not_anew()?;
        let limit = limit.max(1);
        // The newest events are in memory.
        if direction == Direction::Forward
            && let Recent::Within { events, through, at_end } = self.hub.after(from.max(1) - 1, filter, limit)
        {
            return Ok(Page { events, next: (!at_end).then_some(through + 1) });
        }
        let through = self.hub.head().position;
        let mut places = self.lookup.places(filter, from, direction, limit + 1, through).await?;
        let next = (places.len() > limit).then(|| places.pop()).flatten();
        let mut page = Page { events: Vec::with_capacity(places.len()), next };
        let spans = spans(&places);
        let mut reads = futures::stream::iter(spans).map(|span| self.fetch(span)).buffered(READS);
        let mut size = 0;
        while let Some(events) = reads.next().await {
            for event in events? {
                if size > PAGE_BYTES {
                    page.next = Some(event.position);
                    return Ok(page);
                }
                size += event.data.as_ref().map_or(0, bytes::Bytes::len);
                page.events.push(event);
            }
        }
        Ok(page)
    }

    /// The events at these positions, which are close to each other, in their order.
    async fn fetch(&self, places: Vec<Position>) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let (Some(first), Some(last)) = (places.iter().min().copied(), places.iter().max().copied()) else {
            return Ok(Vec::new());
        };
        let start = eventstore::Position { commit: first, prepare: first };
        // No record is this small, so there cannot be more of them.
        let most = if first == last { 1 } else { (last - first) as usize / 32 + 2 };
        let read = self.link.read_all(Some(start), most, |event| event.position.commit <= last).await?;
        let mut found = HashMap::with_capacity(places.len());
        let mut texts = Interner::default();
        for event in read {
            if places.len() > 1 && !places.contains(&event.position.commit) {
                continue;
            }
            let decoded = envelope::decode(&event, &self.link.namespace, &mut texts)
                .inspect_err(|error| self.note(error))?;
            if let Some(ours) = decoded {
                found.insert(ours.event.position, self.notes.amend(ours.event));
            }
        }
        let take = |place: &Position| {
            found.remove(place).ok_or_else(|| ReadError::Damaged {
                place: format!("{}, position {place}", self.link.place),
                what: "the event that was there is not there now".into(),
            })
        };
        places.iter().map(take).collect()
    }

    /// Whether an event that was published is in the log as it was.
    pub(super) async fn is_there(&self, known: Head) -> Result<bool, ReadError> {
        let at = eventstore::Position { commit: known.position, prepare: known.position };
        let read = self.link.read_all(Some(at), 1, |event| event.position == at).await?.pop();
        let ours = read.map(|event| envelope::decode(&event, &self.link.namespace, &mut Interner::default()));
        Ok(matches!(ours, Some(Ok(Some(ours))) if ours.event.hash == known.hash))
    }

    fn not_anew(&self) -> Result<(), ReadError> {
        match self.anew.load(Ordering::Acquire) {
            true => Err(ReadError::Unavailable("the log has lost events and is read anew".into())),
            false => Ok(()),
        }
    }

    pub(super) async fn event(&self, id: Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        self.not_anew()?;
        let Some(place) = self.lookup.place_of(id).await? else { return Ok(None) };
        Ok(self.fetch(vec![place]).await?.pop())
    }

    /// Withholds the data of a redacted event from what is kept in memory.
    pub(super) async fn withhold(&self, event: Uuid, recorded: Position) {
        if let Ok(Some(place)) = self.lookup.place_of(event).await
            && place < recorded
            && let Some(kept) = self.hub.since(place - 1, 1).and_then(|mut events| events.pop())
            && kept.id == event
        {
            self.hub.replace(&Arc::new(crate::redaction::without_data(&kept)));
        }
    }
}

#[async_trait::async_trait]
impl Source for Shared {
    async fn page(&self, from: Position, limit: usize, filter: &Filter) -> Result<Page, ReadError> {
        self.read_all(from, Direction::Forward, limit, filter).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together_and_others_are_not() {
        let found = spans(&[100, 900, 20_000, 4_000_000, 4_000_200]);
        assert_eq!(found, [vec![100, 900], vec![20_000], vec![4_000_000, 4_000_200]]);
        let backward = spans(&[4_000_200, 4_000_000, 100]);
        assert_eq!(backward, [vec![4_000_200, 4_000_000], vec![100]]);
    }

    #[test]
    fn one_read_does_not_go_on_for_ever() {
        let places: Vec<Position> = (1..2_000).map(|n| n * 1_000).collect();
        assert_eq!(spans(&places).len(), 2);
    }
}
