//! The peer: UmaDB's server, as its Python package carries it, and a client for its four calls.
//!
//! The messages follow the package's published protocol (`umadb.v1`, 0.7). The client speaks plain gRPC over loopback and
//! keeps what it receives as decoded messages, which is what a consumer has to do at the least.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use beampipe_log::{NewEvent, Recorded};
use http::uri::PathAndQuery;
use tokio::process::{Child, Command};
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic::{IntoRequest, Request};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    #[prost(string, tag = "1")]
    pub event_type: String,
    #[prost(string, repeated, tag = "2")]
    pub tags: Vec<String>,
    #[prost(bytes = "bytes", tag = "3")]
    pub data: bytes::Bytes,
    #[prost(string, tag = "4")]
    pub uuid: String,
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<Entry>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Sequenced {
    #[prost(uint64, tag = "1")]
    pub position: u64,
    #[prost(message, optional, tag = "2")]
    pub event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AppendRequest {
    #[prost(message, repeated, tag = "1")]
    events: Vec<Event>,
}

/// Also the answer to `Head`: both are one optional position.
#[derive(Clone, PartialEq, prost::Message)]
struct At {
    #[prost(uint64, optional, tag = "1")]
    position: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct ReadRequest {
    #[prost(uint64, optional, tag = "2")]
    start: Option<u64>,
    #[prost(uint32, optional, tag = "6")]
    batch_size: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SubscribeRequest {
    #[prost(uint64, optional, tag = "2")]
    after: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Events {
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<Sequenced>,
}

/// The same envelope, in the peer's terms: what has no field of its own there is metadata.
pub fn envelope(stream: &str, event: &NewEvent) -> Event {
    let entry = |key: &str, value: String| Entry { key: key.into(), value };
    let mut metadata = vec![
        entry("stream", stream.to_owned()),
        entry("schema_version", event.schema_version.to_string()),
        entry("occurred_at", event.occurred_at.timestamp_micros().to_string()),
        entry("actor", event.actor.clone()),
        entry("correlation_id", event.correlation_id.to_string()),
    ];
    metadata.extend(event.causation_id.map(|id| entry("causation_id", id.to_string())));
    Event {
        event_type: event.event_type.clone(),
        tags: event.tags.clone(),
        data: event.data.clone(),
        uuid: event.id.to_string(),
        metadata,
    }
}

/// The same of an event that is in a log.
pub fn copied(event: &Recorded) -> Event {
    envelope(
        &event.stream,
        &NewEvent {
            id: event.id,
            event_type: event.event_type.to_string(),
            schema_version: event.schema_version,
            occurred_at: event.occurred_at,
            actor: event.actor.to_string(),
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            tags: event.tags.iter().map(ToString::to_string).collect(),
            data: event.data.clone().unwrap_or_default(),
            salt: [0; 32],
        },
    )
}

/// A running server; it ends with this value.
pub struct Server {
    _child: Child,
    address: String,
}

impl Server {
    /// Starts the server on `database` and waits until it answers.
    pub async fn start(program: &Path, database: &Path) -> anyhow::Result<Self> {
        let port = crate::service::free_port()?;
        let address = format!("127.0.0.1:{port}");
        let child = Command::new(program)
            .args(["--listen", &address, "--db-path"])
            .arg(database)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let server = Self { _child: child, address };
        for _ in 0..300 {
            if let Ok(mut client) = server.connect().await
                && client.head().await.is_ok()
            {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the UmaDB server does not answer on {}", server.address)
    }

    /// A connection of its own.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        let channel =
            Endpoint::from_shared(format!("http://{}", self.address))?.tcp_nodelay(true).connect().await?;
        Ok(Client(Grpc::new(channel).max_decoding_message_size(64 << 20)))
    }
}

/// A client; clones share its connection.
#[derive(Clone)]
pub struct Client(Grpc<Channel>);

impl Client {
    async fn unary<Q, A>(&mut self, path: &'static str, request: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        self.0.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.0.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?;
        Ok(answer.into_inner())
    }

    async fn stream<Q>(&mut self, path: &'static str, request: Q) -> anyhow::Result<Streaming<Events>>
    where
        Q: prost::Message + Default + 'static,
    {
        self.0.ready().await?;
        let codec = ProstCodec::<Q, Events>::default();
        let path = PathAndQuery::from_static(path);
        Ok(self.0.server_streaming(request.into_request(), path, codec).await?.into_inner())
    }

    /// Appends without a condition, which is the peer's quickest way.
    pub async fn append(&mut self, events: Vec<Event>) -> anyhow::Result<u64> {
        let at: At = self.unary("/umadb.v1.DCB/Append", AppendRequest { events }).await?;
        Ok(at.position.unwrap_or(0))
    }

    pub async fn head(&mut self) -> anyhow::Result<u64> {
        let at: At = self.unary("/umadb.v1.DCB/Head", Nothing {}).await?;
        Ok(at.position.unwrap_or(0))
    }

    /// Everything from the beginning; ends at the head.
    pub async fn read(&mut self, batch_size: Option<u32>) -> anyhow::Result<Streaming<Events>> {
        self.stream("/umadb.v1.DCB/Read", ReadRequest { start: None, batch_size }).await
    }

    /// Everything after `after`, for as long as one listens.
    pub async fn subscribe(&mut self, after: u64) -> anyhow::Result<Streaming<Events>> {
        self.stream("/umadb.v1.DCB/Subscribe", SubscribeRequest { after: Some(after) }).await
    }
}
