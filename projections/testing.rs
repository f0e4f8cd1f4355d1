//! Histories made by hand, and folding them with batches cut anywhere.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beampipe_domain::{Aggregate, Event};
use beampipe_log::memory::MemoryLog;
use beampipe_log::{Expected, Hash, Head, Log, NewEvent, Recorded};
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::types::Value;
use uuid::Uuid;

use crate::file::{File, Fold};
use crate::projection::Projection;
use crate::reader::Reader;
use crate::{Decode, Envelope, Gauges, Now};

pub fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Events in order, one a second.
#[derive(Default)]
pub struct History {
    pub envelopes: Vec<Envelope>,
    revisions: HashMap<String, u64>,
}

impl History {
    /// One more event, tagged with project `p`.
    pub fn tell(&mut self, stream: &str, event: impl Into<Event>) -> &mut Self {
        let revision = self.revisions.entry(stream.to_owned()).and_modify(|r| *r += 1).or_default();
        let position = self.envelopes.len() as u64 + 1;
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&position.to_be_bytes());
        let recorded = Recorded {
            position,
            stream: stream.into(),
            revision: *revision,
            id: id(1_000_000 + u128::from(position)),
            event_type: "thing.happened".into(),
            schema_version: 1,
            occurred_at: at(position as i64),
            recorded_at: at(position as i64),
            actor: "system:test".into(),
            correlation_id: id(7),
            causation_id: None,
            tags: vec!["project:p".into()],
            data: Some("{}".into()),
            salt: None,
            commitment: Hash::default(),
            prev_hash: None,
            hash: Hash(hash),
            rendered: Default::default(),
        };
        self.envelopes.push(Envelope { recorded: Arc::new(recorded), event: event.into() });
        self
    }

    /// The events of `command`, if the decider accepts it on `state`.
    pub fn decide<A: Aggregate>(&mut self, stream: &str, state: &mut A, command: A::Command) -> bool {
        let Ok(events) = state.decide(command) else { return false };
        for event in events {
            *state = state.clone().evolve(&event);
            self.tell(stream, event);
        }
        true
    }

    /// The rows after this history, in batches of these sizes (and the rest in one).
    pub fn fold<P: Projection>(&self, sizes: &[usize]) -> Folded {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view.sqlite");
        let mut file: Box<dyn Fold> = Box::new(File::<P>::open(&path).unwrap());
        let mut rest = &self.envelopes[..];
        for size in sizes {
            let (batch, after) = rest.split_at((*size).min(rest.len()));
            file.apply(batch).unwrap();
            rest = after;
        }
        file.apply(rest).unwrap();
        let gauges = arc_swap::ArcSwap::<Gauges>::default();
        file.publish(&gauges).unwrap();
        file.close().unwrap();
        Folded { gauges: gauges.load_full(), reader: Reader::new(P::NAME, path.clone()), path, _dir: dir }
    }
}

pub struct Folded {
    pub gauges: Arc<Gauges>,
    pub reader: Arc<Reader>,
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Folded {
    pub fn number(&self, sql: &str) -> u64 {
        Connection::open(&self.path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    pub fn rows(&self) -> Tables {
        rows(&self.path)
    }
}

/// The rows of tables by name.
pub type Tables = Vec<(String, Vec<Vec<Value>>)>;

/// Every row of every table of a file, in order.
pub fn rows(path: &Path) -> Tables {
    let db = Connection::open(path).unwrap();
    let tables = crate::expand::tables(&db).unwrap();
    let read = |table: &String| {
        let mut statement = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|index| row.get(index)).collect();
        let mut rows: Vec<Vec<Value>> =
            statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap();
        rows.sort_by_key(|row| format!("{row:?}"));
        rows
    };
    tables.iter().map(|table| (table.clone(), read(table))).collect()
}

/// A real log (in memory) with the events of histories in it.
#[derive(Clone)]
pub struct Story {
    pub log: MemoryLog,
    known: Arc<Mutex<HashMap<Uuid, Event>>>,
    next: Arc<Mutex<u128>>,
}

impl Story {
    pub fn new() -> Self {
        let log = MemoryLog::new(Arc::new(|| at(0)));
        Self { log, known: Arc::default(), next: Arc::default() }
    }

    pub async fn append(&self, stream: &str, event: impl Into<Event>) -> Head {
        self.append_as(stream, "thing.happened", event).await
    }

    pub async fn append_as(&self, stream: &str, event_type: &str, event: impl Into<Event>) -> Head {
        let id = {
            let mut next = self.next.lock();
            *next += 1;
            id(1_000_000 + *next)
        };
        self.known.lock().insert(id, event.into());
        let new = NewEvent {
            id,
            event_type: event_type.to_owned(),
            schema_version: 1,
            occurred_at: at(i64::try_from(id.as_u128()).unwrap() - 1_000_000),
            actor: "system:test".into(),
            correlation_id: self::id(7),
            causation_id: None,
            tags: vec!["project:p".into()],
            data: "{}".into(),
            salt: [1; 32],
        };
        let expected = Expected::from(self.log.stream_head(stream).await.unwrap());
        self.log.append(stream, expected, vec![new]).await.unwrap();
        self.log.head()
    }

    pub async fn append_all(&self, history: &History) -> Head {
        for Envelope { recorded, event } in &history.envelopes {
            self.append(&recorded.stream, event.clone()).await;
        }
        self.log.head()
    }

    /// Redacts the event with this number.
    pub async fn redact(&self, n: u128, stream: &str) -> Head {
        let (event, by) = (id(1_000_000 + n), id(2_000_000 + n));
        let record = beampipe_domain::LogRedacted {
            event_id: event,
            event_type: "thing.happened".into(),
            stream: stream.into(),
            reason: "a name".into(),
        };
        let data = serde_json::to_vec(&record).unwrap();
        self.known.lock().insert(by, Event::LogRedacted(record));
        let new = NewEvent {
            id: by,
            event_type: "log.redacted".into(),
            schema_version: 1,
            occurred_at: at(9999),
            actor: "system:test".into(),
            correlation_id: id(7),
            causation_id: None,
            tags: vec![beampipe_domain::INSTALLATION.into()],
            data: data.into(),
            salt: [1; 32],
        };
        self.log.redact(event, new).await.unwrap();
        self.log.head()
    }

    pub fn log(&self) -> Arc<dyn Log> {
        Arc::new(self.log.clone())
    }

    /// Knows every event but those of a type that starts with `unknown`.
    pub fn decode(&self) -> Decode {
        let known = self.known.clone();
        Arc::new(move |recorded| {
            if recorded.event_type.starts_with("unknown") {
                return Err(format!("event type {} is not known", recorded.event_type));
            }
            let event = known.lock()[&recorded.id].clone();
            Ok(if recorded.is_redacted() { blank(&event) } else { event })
        })
    }

    pub fn now(&self) -> Now {
        Arc::new(|| at(10_000))
    }
}

/// How a redacted event is read.
fn blank(event: &Event) -> Event {
    use beampipe_domain::{execution, source};
    match event {
        Event::Source(source::Event::Registered(_)) => source::Event::Registered(Default::default()).into(),
        Event::Execution(execution::Event::Created(_)) => {
            execution::Event::Created(Default::default()).into()
        }
        other => panic!("no test redacts {other:?}"),
    }
}
