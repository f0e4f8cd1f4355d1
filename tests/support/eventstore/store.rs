//! What is written, and the rules of the server about it.

use std::collections::HashMap;
use std::time::SystemTime;

use prost::bytes::Bytes;
use uuid::Uuid;

/// How often the server writes an event of its own between those of others.
const OWN_EVERY: usize = 7;

/// An event as it is proposed.
#[derive(Clone)]
pub(crate) struct Proposed {
    pub id: Uuid,
    pub metadata: HashMap<String, String>,
    pub custom_metadata: Bytes,
    pub data: Bytes,
}

/// An event as it is kept.
#[derive(Clone)]
pub(crate) struct Kept {
    pub stream: Bytes,
    pub revision: u64,
    pub position: u64,
    /// Ticks of 100 ns since 1970.
    pub created: u64,
    pub event: Proposed,
}

/// The guard of an append.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guard {
    Any,
    NoStream,
    Exists,
    At(u64),
}

/// Where an append went, or where its stream is instead.
pub(crate) enum Outcome {
    Written { revision: u64, position: u64 },
    Wrong { actual: Option<u64> },
}

#[derive(Default)]
pub(crate) struct Store {
    all: Vec<Kept>,
    streams: HashMap<Bytes, Vec<usize>>,
    end: u64,
    /// Seconds that the server's clock is off.
    pub skew: i64,
}

fn is_own(stream: &[u8]) -> bool {
    stream.starts_with(b"$")
}

impl Store {
    pub fn append(&mut self, stream: &Bytes, guard: Guard, events: Vec<Proposed>) -> Outcome {
        let places = self.streams.get(stream).map_or(&[][..], Vec::as_slice);
        let actual = (places.len() as u64).checked_sub(1);
        let expected = match guard {
            Guard::Any => actual,
            Guard::Exists if actual.is_some() => actual,
            Guard::Exists => return Outcome::Wrong { actual },
            Guard::NoStream => None,
            Guard::At(revision) => Some(revision),
        };
        if expected != actual {
            // Ids alone decide whether this is taken for the same append.
            let first = expected.map_or(0, |revision| revision as usize + 1);
            let there = places.get(first..first + events.len());
            return match there {
                Some(there) if there.iter().zip(&events).all(|(&at, e)| self.all[at].event.id == e.id) => {
                    let last = &self.all[there[there.len() - 1]];
                    Outcome::Written { revision: last.revision, position: last.position }
                }
                _ => Outcome::Wrong { actual },
            };
        }
        for event in events {
            self.put(stream, event);
        }
        if !is_own(stream) && self.all.len().is_multiple_of(OWN_EVERY) {
            let last = self.all.len() - 1;
            let (revision, position) = (self.all[last].revision, self.all[last].position);
            self.write_foreign("$stats-0.0.0.0:2113", b"{\"proc-cpu\":1}");
            return Outcome::Written { revision, position };
        }
        let last = &self.all[self.all.len() - 1];
        Outcome::Written { revision: last.revision, position: last.position }
    }

    fn put(&mut self, stream: &Bytes, event: Proposed) {
        // The length of a record of the real server is of this order.
        let length = 120 + stream.len() + event.data.len() + event.custom_metadata.len();
        let position = self.end + 64;
        self.end = position + length as u64;
        #[expect(clippy::disallowed_methods, reason = "a server of its own has a clock of its own")]
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = (since.as_secs() as i64 + self.skew).max(0) as u64;
        let created = seconds * 10_000_000 + u64::from(since.subsec_nanos() / 100);
        let places = self.streams.entry(stream.clone()).or_default();
        let revision = places.len() as u64;
        places.push(self.all.len());
        self.all.push(Kept { stream: stream.clone(), revision, position, created, event });
    }

    pub fn write_foreign(&mut self, stream: &str, data: &[u8]) {
        let metadata = HashMap::from([
            ("type".to_owned(), "somebody.else".to_owned()),
            ("content-type".to_owned(), "application/json".to_owned()),
        ]);
        let id = Uuid::from_u128(u128::from(self.end) + 1);
        let data = Bytes::copy_from_slice(data);
        self.put(
            &Bytes::copy_from_slice(stream.as_bytes()),
            Proposed { id, metadata, custom_metadata: Bytes::new(), data },
        );
    }

    pub fn written(&self) -> usize {
        self.all.iter().filter(|kept| !is_own(&kept.stream)).count()
    }

    pub fn lose_end(&mut self, events: usize) {
        for _ in 0..events {
            let Some(lost) = self.all.pop() else { return };
            if let Some(places) = self.streams.get_mut(&lost.stream) {
                places.pop();
            }
            self.streams.retain(|_, places| !places.is_empty());
        }
    }

    /// How many of its last events a stream shows.
    fn shown(&self, stream: &Bytes) -> usize {
        let metadata = [b"$$", &stream[..]].concat();
        let last = self.streams.get(&metadata[..]).and_then(|places| places.last());
        let told = last.and_then(|&at| {
            let text = std::str::from_utf8(&self.all[at].event.data).ok()?;
            let rest = text.split_once("\"$maxCount\":")?.1;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        told.unwrap_or(usize::MAX)
    }

    /// `None` when there is no such stream. `from` is `None` for its end.
    pub fn read_stream(
        &self,
        stream: &Bytes,
        from: Option<u64>,
        backward: bool,
        count: u64,
    ) -> Option<Vec<Kept>> {
        let places = self.streams.get(stream)?;
        let hidden = places.len().saturating_sub(self.shown(stream));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let event = |&at: &usize| self.all[at].clone();
        let from = from.map_or(places.len() - 1, |from| usize::try_from(from).unwrap_or(usize::MAX));
        Some(if backward {
            // Like the real one, which looks into a range of revisions below `from`, however far off that is.
            let low = from.saturating_add(1).saturating_sub(count).max(hidden);
            let high = from.saturating_add(1).min(places.len());
            places.get(low..high).unwrap_or_default().iter().rev().map(event).collect()
        } else {
            places.iter().skip(from.max(hidden)).take(count).map(event).collect()
        })
    }

    /// `from` is `None` for the end. Forward from a position, backward from before it.
    pub fn read_all(&self, from: Option<u64>, backward: bool, count: u64) -> Vec<Kept> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let from = from.unwrap_or(u64::MAX);
        let at = self.all.partition_point(|kept| kept.position < from);
        if backward {
            self.all[..at].iter().rev().take(count).cloned().collect()
        } else {
            self.all[at..].iter().take(count).cloned().collect()
        }
    }
}
