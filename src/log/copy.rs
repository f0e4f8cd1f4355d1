//! Moving a log from one engine to another: every event as it is, in its order, with its own time and hashes.
//!
//! A copy that was broken off goes on where it was: the last event that arrived says from where. Positions are the
//! engine's; all else is the same on both sides, which [`compare`] shows by reading both again.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::event::{Position, Recorded};
use crate::ndjson::{Restore, RestoreError};
use crate::{Direction, Filter, Hash, Log, ReadError};

/// Events that are taken over at once.
const BATCH: usize = 1000;

/// How far a copy or a comparison is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events that are in both.
    pub events: u64,
    /// The position of the last of them in the log that is copied.
    pub position: Position,
}

/// Why a copy ended early. What arrived stays; the same copy goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(
        "the target ends with event {id} of stream {stream}, which the source does not have: it is no beginning of the source"
    )]
    Foreign { id: uuid::Uuid, stream: String },
    #[error("the source cannot be read")]
    Source(#[source] ReadError),
    #[error("the target cannot be read")]
    Target(#[source] ReadError),
    #[error("the target does not take the events over")]
    Restore(#[from] RestoreError),
    #[error("event {number} differs: {what}, position {left} in the source and {right} in the target")]
    Differs { number: u64, left: Position, right: Position, what: String },
    #[error("the source has {left} events, the target {right}")]
    Length { left: u64, right: u64 },
}

/// Copies what `to` does not have yet of `from`. Both may be in use, but nobody else may append to `to`.
pub async fn copy<T: Log + Restore + ?Sized>(
    from: &dyn Log,
    to: &T,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, CopyError> {
    let mut done = Progress::default();
    let last =
        to.read_all(Position::MAX, Direction::Backward, 1, &Filter::All).await.map_err(CopyError::Target)?;
    let mut at = 0;
    if let Some(last) = last.events.first() {
        let known = from.event(last.id).await.map_err(CopyError::Source)?;
        let known = known.filter(|known| known.hash == last.hash);
        let foreign = || CopyError::Foreign { id: last.id, stream: last.stream.to_string() };
        done.position = known.ok_or_else(foreign)?.position;
        at = last.position;
    }
    loop {
        let page = from.read_all(done.position + 1, Direction::Forward, BATCH, &Filter::All).await;
        let page = page.map_err(CopyError::Source)?;
        if let Some(last) = page.events.last() {
            done.position = last.position;
            done.events += page.events.len() as u64;
            // Engines that number densely go on from their own end; the others number by themselves.
            let placed = page.events.iter().map(|event| {
                at += 1;
                event.placed_at(at)
            });
            to.restore(placed.collect()).await?;
            progress(done);
        }
        if page.next.is_none() {
            return Ok(done);
        }
    }
}

/// What two logs have in common when they have everything in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Same {
    pub events: u64,
    /// SHA-256 over the leaf hashes in their order.
    pub digest: Hash,
}

/// Reads both logs up to the end that `left` has now and refuses the first difference: in order, stream, revision, time of
/// recording or leaf hash, which stands for all the rest. Both sides verify what they read.
pub async fn compare(
    left: &dyn Log,
    right: &dyn Log,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Same, CopyError> {
    let (mut lefts, mut rights) = (Pages::new(left), Pages::new(right));
    let (mut digest, mut done) = (Sha256::new(), Progress::default());
    loop {
        let one = lefts.next().await.map_err(CopyError::Source)?;
        let other = rights.next().await.map_err(CopyError::Target)?;
        let (Some(one), Some(other)) = (&one, &other) else {
            let missing = |event: &Option<Arc<Recorded>>| done.events + u64::from(event.is_some());
            if one.is_none() && other.is_none() {
                return Ok(Same { events: done.events, digest: Hash(digest.finalize().into()) });
            }
            return Err(CopyError::Length { left: missing(&one), right: missing(&other) });
        };
        let what = if one.hash != other.hash {
            format!("leaf {} of {} is not {} of {}", one.hash, one.stream, other.hash, other.stream)
        } else if one.recorded_at != other.recorded_at {
            format!("recorded at {}, not {}", one.recorded_at, other.recorded_at)
        } else if one.data != other.data || one.salt != other.salt {
            "one of them is redacted".to_owned()
        } else {
            digest.update(one.hash.0);
            done = Progress { events: done.events + 1, position: one.position };
            if done.events % 10_000 == 0 {
                progress(done);
            }
            continue;
        };
        let (number, left, right) = (done.events + 1, one.position, other.position);
        return Err(CopyError::Differs { number, left, right, what });
    }
}

/// The events of a log one after the other.
struct Pages<'a> {
    log: &'a dyn Log,
    page: std::vec::IntoIter<Arc<Recorded>>,
    next: Option<Position>,
}

impl<'a> Pages<'a> {
    fn new(log: &'a dyn Log) -> Self {
        Self { log, page: vec![].into_iter(), next: Some(1) }
    }

    async fn next(&mut self) -> Result<Option<Arc<Recorded>>, ReadError> {
        loop {
            if let Some(event) = self.page.next() {
                return Ok(Some(event));
            }
            let Some(from) = self.next else { return Ok(None) };
            let page = self.log.read_all(from, Direction::Forward, BATCH, &Filter::All).await?;
            (self.page, self.next) = (page.events.into_iter(), page.next);
        }
    }
}
