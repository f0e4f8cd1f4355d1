//! **Presence** across processes: a stream for each of those who beat, outside of the log, that keeps its last event.
//!
//! `$maxCount` makes older beats invisible at once and lets a scavenge remove them. The reader of `$all` meets everybody's
//! beats on its way, so nobody reads them one by one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eventstore::RecordedEvent;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::envelope;
use super::link::{Link, proposal};
use crate::{Beat, Clock};

/// How the streams of those who beat are called. No stream of the log may be.
pub(super) const PREFIX: &str = "beampipe_presence-";
const EVENT_TYPE: &str = "beampipe.beat";
/// Who was not heard for this long is forgotten.
const FORGET: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize, Deserialize)]
struct Said {
    who: String,
    facts: Value,
}

#[derive(Default)]
pub(super) struct Beats {
    latest: Mutex<BTreeMap<String, (Instant, Beat)>>,
    /// Those of this process whose stream is known to keep its last event only.
    kept: Mutex<Vec<String>>,
}

impl Beats {
    fn note(&self, beat: Beat) {
        let mut latest = self.latest.lock();
        latest.retain(|_, (heard, _)| heard.elapsed() < FORGET);
        match latest.get(&beat.who) {
            Some((_, known)) if known.counter >= beat.counter => {}
            _ => {
                latest.insert(beat.who.clone(), (Instant::now(), beat));
            }
        }
    }

    /// Takes note of a beat that the reader met. True if it was one.
    pub(super) fn meet(&self, event: &RecordedEvent, namespace: &str) -> bool {
        let name = event.stream_id().strip_prefix(namespace);
        if !name.is_some_and(|name| name.starts_with(PREFIX)) {
            return false;
        }
        if let Ok(Said { who, facts }) = serde_json::from_slice(&event.data) {
            self.note(Beat { who, counter: event.revision + 1, at: envelope::created(event), facts });
        }
        true
    }

    /// Beats. A beat that does not get through is lost, as beats may be.
    pub(super) async fn beat(&self, link: &Link, who: &str, facts: Value, clock: &Clock) {
        let stream = format!("{PREFIX}{who}");
        let said = Said { who: who.to_owned(), facts };
        let data: Bytes = match serde_json::to_vec(&said) {
            Ok(data) => data.into(),
            Err(error) => return tracing::debug!(%error, %who, "a beat cannot be encoded"),
        };
        if !self.kept.lock().contains(&stream) {
            if let Err(failure) = link.keep_last(&stream).await {
                return tracing::debug!(reason = failure.reason(), %who, "a beat was lost");
            }
            self.kept.lock().push(stream.clone());
        }
        let mut random = [0; 16];
        if let Err(error) = getrandom::fill(&mut random) {
            return tracing::debug!(%error, "a beat has no id");
        }
        let id = uuid::Builder::from_random_bytes(random).into_uuid();
        match link.append_anywhere(&stream, proposal(id, EVENT_TYPE, data, Bytes::new())).await {
            Ok(revision) => {
                let Said { who, facts } = said;
                self.note(Beat { who, counter: revision + 1, at: clock(), facts });
            }
            Err(failure) => tracing::debug!(reason = failure.reason(), %who, "a beat was lost"),
        }
    }

    pub(super) fn all(&self) -> Vec<Beat> {
        self.latest.lock().values().map(|(_, beat)| beat.clone()).collect()
    }
}
