//! The **link**: the official client behind deadlines of our own, made anew when it has given up.
//!
//! The client is not trusted with time or with recovery. A call of it may wait for ever; once it fails to connect, every
//! later call of it fails, too; and in a cluster it stays with a node that is gone. So each call has a deadline here, and
//! a client that cannot connect, or fails twice in a row, is dropped for a new one, which asks the cluster again who leads.
//! It also panics where an answer lacks a field, which is caught here and is an answer that was lost.
//!
//! Its subscriptions are not used at all: one that the server ends in order is asked again without a pause and never
//! yields. Following is reading `$all` again and again ([`super::follow`]).

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use eventstore::{
    AppendToStreamOptions, Client, ClientSettings, Credentials, Error, EventData, ReadAllOptions, ReadEvent,
    ReadStream, ReadStreamOptions, RecordedEvent, StreamMetadataBuilder, StreamPosition, StreamState,
};
use futures::FutureExt;
use parking_lot::Mutex;

use crate::event::Revision;
use crate::{Direction, Expected};

/// The largest count that every server release takes.
const MOST: usize = i32::MAX as usize;

/// How a call ended that has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody was reached: the server has not heard of it.
    NotSent(String),
    /// It was sent, and what became of it is not known.
    Lost(String),
    /// The server will not do it, and has not.
    Refused(String),
    /// The stream is not where the append expects it.
    Elsewhere,
}

impl Failure {
    pub(super) fn reason(&self) -> String {
        match self {
            Self::NotSent(reason) | Self::Lost(reason) | Self::Refused(reason) => reason.clone(),
            Self::Elsewhere => "the stream is elsewhere".into(),
        }
    }
}

fn classify(error: Error) -> Failure {
    match error {
        Error::WrongExpectedVersion { .. } => Failure::Elsewhere,
        Error::ConnectionClosed | Error::GrpcConnectionError(_) | Error::NotLeaderException(_) => {
            Failure::NotSent(error.to_string())
        }
        Error::AccessDenied => Failure::Refused("access is denied: see log.username and log.password".into()),
        Error::ResourceDeleted | Error::UnsupportedFeature => Failure::Refused(error.to_string()),
        // The code of a request that is malformed or too large. The type is that of a crate we do not name.
        Error::Grpc { code, message } if code as i32 == 3 => Failure::Refused(message),
        other => Failure::Lost(other.to_string()),
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For a connection, and for each next event of a read.
    pub read: Duration,
    /// For the answer to one append.
    pub append: Duration,
    /// For everything that an append takes, settling a lost answer among it.
    pub settle: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { read: Duration::from_secs(2), append: Duration::from_secs(5), settle: Duration::from_secs(15) }
    }
}

#[derive(Default)]
struct Held {
    client: Option<Client>,
    /// Which client it is, counted.
    generation: u64,
    /// Failures since the last answer.
    failures: u32,
}

pub(super) struct Link {
    settings: ClientSettings,
    credentials: Option<Credentials>,
    /// Where it leads, without anything secret.
    pub(super) place: String,
    /// What the names of all streams of this log start with on the server.
    pub(super) namespace: String,
    pub(super) deadlines: Deadlines,
    held: Mutex<Held>,
}

impl Link {
    pub(super) fn new(
        settings: ClientSettings,
        credentials: Option<(String, String)>,
        place: String,
        namespace: String,
        deadlines: Deadlines,
    ) -> Self {
        let credentials = credentials.map(|(user, password)| Credentials::new(user, password));
        Self { settings, credentials, place, namespace, deadlines, held: Mutex::default() }
    }

    async fn client(&self) -> Result<(u64, Client), Failure> {
        {
            let held = self.held.lock();
            if let Some(client) = &held.client {
                return Ok((held.generation, client.clone()));
            }
        }
        let (settings, runtime) = (self.settings.clone(), tokio::runtime::Handle::current());
        // Reading certificates blocks, and malformed ones make the client panic.
        let made = tokio::task::spawn_blocking(move || Client::with_runtime_handle(runtime, settings)).await;
        let client = match made {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(Failure::NotSent(format!("no client can be made: {error}"))),
            Err(_) => {
                return Err(Failure::NotSent("no client can be made: are the certificates readable?".into()));
            }
        };
        let mut held = self.held.lock();
        held.generation += 1;
        held.failures = 0;
        held.client = Some(client.clone());
        Ok((held.generation, client))
    }

    fn ended<T>(&self, generation: u64, outcome: &Result<T, Failure>) {
        let mut held = self.held.lock();
        if held.generation != generation {
            return;
        }
        match outcome {
            Ok(_) | Err(Failure::Elsewhere | Failure::Refused(_)) => held.failures = 0,
            Err(failure) => {
                held.failures += 1;
                if held.failures > 1 || matches!(failure, Failure::NotSent(_)) {
                    held.client = None;
                }
            }
        }
    }

    async fn call<T>(
        &self,
        generation: u64,
        deadline: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let outcome = match tokio::time::timeout(deadline, AssertUnwindSafe(call).catch_unwind()).await {
            Err(_) => Err(Failure::Lost(format!("no answer from {} within {deadline:?}", self.place))),
            Ok(Err(_)) => Err(Failure::Lost("the client could not read the answer".into())),
            Ok(Ok(answer)) => answer.map_err(classify),
        };
        self.ended(generation, &outcome);
        outcome
    }

    /// Appends, all or nothing.
    pub(super) async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<EventData>,
    ) -> Result<(), Failure> {
        let state = match expected {
            Expected::NoStream => StreamState::NoStream,
            Expected::At { revision, .. } => StreamState::StreamRevision(revision),
        };
        let (deadline, stream) = (self.deadlines.append, format!("{}{stream}", self.namespace));
        self.append_with(&stream, state, deadline, events).await.map(|_| ())
    }

    async fn append_with(
        &self,
        stream: &str,
        state: StreamState,
        deadline: Duration,
        events: Vec<EventData>,
    ) -> Result<Revision, Failure> {
        let (generation, client) = self.client().await?;
        let mut options =
            AppendToStreamOptions::default().stream_state(state).requires_leader(true).deadline(deadline);
        if let Some(credentials) = &self.credentials {
            options = options.authenticated(credentials.clone());
        }
        let call = client.append_to_stream(stream, &options, events);
        Ok(self.call(generation, deadline, call).await?.next_expected_version)
    }

    /// Appends one event wherever the stream is, and says where that was.
    pub(super) async fn append_anywhere(&self, stream: &str, event: EventData) -> Result<Revision, Failure> {
        let stream = format!("{}{stream}", self.namespace);
        self.append_with(&stream, StreamState::Any, self.deadlines.read, vec![event]).await
    }

    /// Makes the stream keep its last event only, unless that was said before.
    pub(super) async fn keep_last(&self, stream: &str) -> Result<(), Failure> {
        let metadata = StreamMetadataBuilder::new().max_count(1).build();
        let event = EventData::json("$metadata", &metadata).map_err(|e| Failure::Refused(e.to_string()))?;
        let name = format!("$${}{stream}", self.namespace);
        match self.append_with(&name, StreamState::NoStream, self.deadlines.read, vec![event]).await {
            Ok(_) | Err(Failure::Elsewhere) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Up to `limit` events of a stream from `from` on; none when there is no such stream.
    pub(super) async fn read_stream(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, Failure> {
        let known = from <= i64::MAX as u64;
        let position = match direction {
            Direction::Forward if !known => return Ok(Vec::new()),
            Direction::Backward if !known => StreamPosition::End,
            _ => StreamPosition::Position(from),
        };
        let mut options =
            ReadStreamOptions::default().position(position).max_count(limit.min(MOST)).requires_leader(true);
        options = match direction {
            Direction::Forward => options.forwards(),
            Direction::Backward => options.backwards(),
        };
        if let Some(credentials) = &self.credentials {
            options = options.authenticated(credentials.clone());
        }
        let (generation, client) = self.client().await?;
        let begun = async {
            match client.read_stream(format!("{}{stream}", self.namespace), &options).await {
                Err(Error::ResourceNotFound) => Ok(None),
                other => other.map(Some),
            }
        };
        match self.call(generation, self.deadlines.read, begun).await? {
            Some(mut reading) => self.take(generation, &mut reading, |_| true).await,
            None => Ok(Vec::new()),
        }
    }

    /// Up to `limit` events of `$all`, from `from` (inclusive; `None` is the beginning), while `wanted`.
    pub(super) async fn read_all(
        &self,
        from: Option<eventstore::Position>,
        limit: usize,
        wanted: impl Fn(&RecordedEvent) -> bool + Send,
    ) -> Result<Vec<RecordedEvent>, Failure> {
        let position = from.map_or(StreamPosition::Start, StreamPosition::Position);
        let mut options = ReadAllOptions::default()
            .position(position)
            .max_count(limit.min(MOST))
            .forwards()
            .requires_leader(true);
        if let Some(credentials) = &self.credentials {
            options = options.authenticated(credentials.clone());
        }
        let (generation, client) = self.client().await?;
        let mut reading = self.call(generation, self.deadlines.read, client.read_all(&options)).await?;
        self.take(generation, &mut reading, wanted).await
    }

    async fn take(
        &self,
        generation: u64,
        reading: &mut ReadStream,
        wanted: impl Fn(&RecordedEvent) -> bool,
    ) -> Result<Vec<RecordedEvent>, Failure> {
        let mut found = Vec::new();
        loop {
            let next = async {
                match reading.next_read_event().await {
                    Err(Error::ResourceNotFound) => Ok(None),
                    other => other,
                }
            };
            match self.call(generation, self.deadlines.read, next).await? {
                None => return Ok(found),
                Some(ReadEvent::Event(event)) => {
                    // Links are not resolved, so this is the event as it stands in its stream.
                    let Some(event) = event.event else { continue };
                    if !wanted(&event) {
                        return Ok(found);
                    }
                    found.push(event);
                }
                Some(_) => {}
            }
        }
    }
}

/// An event to send. JSON is marked as such for the server's own views; the bytes stay as they are.
pub(super) fn proposal(id: uuid::Uuid, event_type: &str, data: Bytes, metadata: Bytes) -> EventData {
    let raw = serde_json::from_slice::<&serde_json::value::RawValue>(&data);
    let exact = raw.ok().filter(|raw| raw.get().len() == data.len());
    let event = match exact.map(|raw| EventData::json(event_type, &raw)) {
        Some(Ok(event)) => event,
        _ => EventData::binary(event_type, data.clone()),
    };
    event.id(id).metadata(metadata)
}
