//! The calls of the protocol.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use parking_lot::Mutex;
use prost::bytes::Bytes;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Interceptor;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::faults::{Fault, Faults};
use crate::front::Front;
use crate::store::{Guard, Kept, Outcome, Proposed, Store};
use crate::wire::gossip::gossip_server::{Gossip, GossipServer};
use crate::wire::server_features::server_features_server::{ServerFeatures, ServerFeaturesServer};
use crate::wire::streams::streams_server::{Streams, StreamsServer};
use crate::wire::streams::{append_req, append_resp, read_req, read_resp};
use crate::wire::{Empty, StreamIdentifier, gossip, server_features, streams, uuid as wire_uuid};

/// What the real server takes in one append unless told otherwise, in bytes.
const MAX_APPEND: usize = 1024 * 1024;

#[derive(Clone)]
struct Service {
    store: Arc<Mutex<Store>>,
    faults: Arc<Faults>,
    front: Arc<Front>,
}

/// Asks for the user's header.
#[derive(Clone)]
struct Door(Option<String>);

impl Interceptor for Door {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(wanted) = &self.0 else { return Ok(request) };
        let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if shown == Some(wanted.as_str()) { Ok(request) } else { Err(Status::unauthenticated("who are you")) }
    }
}

pub(crate) async fn serve(
    listener: TcpListener,
    store: Arc<Mutex<Store>>,
    faults: Arc<Faults>,
    front: Arc<Front>,
    user: Option<(String, String)>,
) {
    let address = listener.local_addr();
    let service = Service { store, faults, front };
    let door = Door(
        user.map(|(user, password)| format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))),
    );
    let served = tonic::transport::Server::builder()
        .add_service(StreamsServer::with_interceptor(service.clone(), door))
        .add_service(ServerFeaturesServer::new(service.clone()))
        .add_service(GossipServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener).map(|connection| {
            let connection = connection?;
            connection.set_nodelay(true)?;
            Ok::<_, std::io::Error>(connection)
        }))
        .await;
    if let Err(error) = served {
        eprintln!("the stand-in at {address:?} has ended: {error}");
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0_u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

fn proposed(message: append_req::ProposedMessage) -> Result<Proposed, Status> {
    let id = match message.id.and_then(|id| id.value) {
        Some(wire_uuid::Value::String(text)) => {
            Uuid::parse_str(&text).map_err(|error| Status::invalid_argument(error.to_string()))?
        }
        Some(wire_uuid::Value::Structured(halves)) => {
            Uuid::from_u64_pair(halves.most_significant_bits as u64, halves.least_significant_bits as u64)
        }
        None => return Err(Status::invalid_argument("an event has no id")),
    };
    Ok(Proposed {
        id,
        metadata: message.metadata,
        custom_metadata: message.custom_metadata,
        data: message.data,
    })
}

fn event(kept: Kept) -> streams::ReadResp {
    let mut metadata = kept.event.metadata;
    metadata.insert("created".into(), kept.created.to_string());
    let recorded = read_resp::read_event::RecordedEvent {
        id: Some(crate::wire::Uuid { value: Some(wire_uuid::Value::String(kept.event.id.to_string())) }),
        stream_identifier: Some(StreamIdentifier { stream_name: kept.stream }),
        stream_revision: kept.revision,
        prepare_position: kept.position,
        commit_position: kept.position,
        metadata,
        custom_metadata: kept.event.custom_metadata,
        data: kept.event.data,
    };
    let read = read_resp::ReadEvent {
        event: Some(recorded),
        link: None,
        position: Some(read_resp::read_event::Position::CommitPosition(kept.position)),
    };
    streams::ReadResp { content: Some(read_resp::Content::Event(read)) }
}

impl Service {
    async fn take(
        &self,
        mut sent: Streaming<streams::AppendReq>,
    ) -> Result<(Bytes, Guard, Vec<Proposed>), Status> {
        use append_req::options::ExpectedStreamRevision as Wanted;
        let mut to = None;
        let mut events = Vec::new();
        while let Some(message) = sent.message().await? {
            match message.content {
                Some(append_req::Content::Options(options)) => {
                    let guard = match options.expected_stream_revision {
                        Some(Wanted::Revision(revision)) => Guard::At(revision),
                        Some(Wanted::NoStream(_)) => Guard::NoStream,
                        Some(Wanted::StreamExists(_)) => Guard::Exists,
                        Some(Wanted::Any(_)) | None => Guard::Any,
                    };
                    to = options.stream_identifier.map(|stream| (stream.stream_name, guard));
                }
                Some(append_req::Content::ProposedMessage(message)) => events.push(proposed(message)?),
                None => return Err(Status::invalid_argument("a message without content")),
            }
        }
        let (stream, guard) = to.ok_or_else(|| Status::invalid_argument("no options"))?;
        Ok((stream, guard, events))
    }
}

fn answer(outcome: Outcome, guard: Guard) -> streams::AppendResp {
    use append_resp::success::{CurrentRevisionOption, PositionOption};
    use append_resp::wrong_expected_version as wrong;
    let result = match outcome {
        Outcome::Written { revision, position } => append_resp::Result::Success(append_resp::Success {
            current_revision_option: Some(CurrentRevisionOption::CurrentRevision(revision)),
            position_option: Some(PositionOption::Position(append_resp::Position {
                commit_position: position,
                prepare_position: position,
            })),
        }),
        Outcome::Wrong { actual } => {
            append_resp::Result::WrongExpectedVersion(append_resp::WrongExpectedVersion {
                current_revision_option: Some(match actual {
                    Some(revision) => wrong::CurrentRevisionOption::CurrentRevision(revision),
                    None => wrong::CurrentRevisionOption::CurrentNoStream(Empty {}),
                }),
                expected_revision_option: Some(match guard {
                    Guard::At(revision) => wrong::ExpectedRevisionOption::ExpectedRevision(revision),
                    Guard::NoStream => wrong::ExpectedRevisionOption::ExpectedNoStream(Empty {}),
                    Guard::Exists => wrong::ExpectedRevisionOption::ExpectedStreamExists(Empty {}),
                    Guard::Any => wrong::ExpectedRevisionOption::ExpectedAny(Empty {}),
                }),
                ..Default::default()
            })
        }
    };
    streams::AppendResp { result: Some(result) }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Streams for Service {
    type ReadStream = Answers<streams::ReadResp>;
    type BatchAppendStream = Answers<streams::BatchAppendResp>;

    async fn read(&self, request: Request<streams::ReadReq>) -> Result<Response<Self::ReadStream>, Status> {
        use read_req::options::{CountOption, StreamOption, all_options, stream_options};
        if let Some(delay) = self.faults.read_delay() {
            tokio::time::sleep(delay).await;
        }
        let options = request.into_inner().options.ok_or_else(|| Status::invalid_argument("no options"))?;
        let Some(CountOption::Count(count)) = options.count_option else {
            return Err(Status::unimplemented("the stand-in has no subscriptions"));
        };
        let backward = options.read_direction == read_req::options::ReadDirection::Backwards as i32;
        let found = match options.stream_option {
            Some(StreamOption::Stream(wanted)) => {
                let stream = wanted.stream_identifier.unwrap_or_default().stream_name;
                let from = match wanted.revision_option {
                    Some(stream_options::RevisionOption::Revision(revision)) => Some(revision),
                    Some(stream_options::RevisionOption::End(_)) => None,
                    Some(stream_options::RevisionOption::Start(_)) | None => Some(0),
                };
                match self.store.lock().read_stream(&stream, from, backward, count) {
                    Some(found) => found,
                    None => {
                        let missing = read_resp::StreamNotFound {
                            stream_identifier: Some(StreamIdentifier { stream_name: stream }),
                        };
                        let content = Some(read_resp::Content::StreamNotFound(missing));
                        let only = futures::stream::iter([Ok(streams::ReadResp { content })]);
                        return Ok(Response::new(Box::pin(only)));
                    }
                }
            }
            Some(StreamOption::All(wanted)) => {
                let from = match wanted.all_option {
                    Some(all_options::AllOption::Position(position)) => Some(position.commit_position),
                    Some(all_options::AllOption::End(_)) => None,
                    Some(all_options::AllOption::Start(_)) | None => Some(0),
                };
                self.store.lock().read_all(from, backward, count)
            }
            None => return Err(Status::invalid_argument("no stream")),
        };
        Ok(Response::new(Box::pin(futures::stream::iter(found).map(|kept| Ok(event(kept))))))
    }

    async fn append(
        &self,
        request: Request<Streaming<streams::AppendReq>>,
    ) -> Result<Response<streams::AppendResp>, Status> {
        let (stream, guard, events) = self.take(request.into_inner()).await?;
        let size: usize = events.iter().map(|event| event.data.len() + event.custom_metadata.len()).sum();
        if size > MAX_APPEND {
            return Err(Status::invalid_argument(format!("Maximum Append Size of {MAX_APPEND} Exceeded")));
        }
        let fault = if matches!(guard, Guard::Any) { None } else { self.faults.take_append() };
        match fault {
            Some(Fault::CutBefore) => {
                self.front.cut();
                std::future::pending::<()>().await;
            }
            Some(Fault::WriteLate(by)) => {
                let store = Arc::clone(&self.store);
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    store.lock().append(&stream, guard, events);
                });
                std::future::pending::<()>().await;
                return Err(Status::aborted("nobody gets here"));
            }
            _ => {}
        }
        let outcome = self.store.lock().append(&stream, guard, events);
        match fault {
            Some(Fault::CutAfter) => {
                self.front.cut();
                std::future::pending::<()>().await;
            }
            Some(Fault::AnswerLate(by)) => tokio::time::sleep(by).await,
            _ => {}
        }
        Ok(Response::new(answer(outcome, guard)))
    }

    async fn delete(&self, _: Request<streams::DeleteReq>) -> Result<Response<streams::DeleteResp>, Status> {
        Err(Status::unimplemented("nothing is deleted"))
    }

    async fn tombstone(
        &self,
        _: Request<streams::TombstoneReq>,
    ) -> Result<Response<streams::TombstoneResp>, Status> {
        Err(Status::unimplemented("nothing is deleted"))
    }

    async fn batch_append(
        &self,
        _: Request<Streaming<streams::BatchAppendReq>>,
    ) -> Result<Response<Self::BatchAppendStream>, Status> {
        Err(Status::unimplemented("one append is one call"))
    }
}

#[tonic::async_trait]
impl ServerFeatures for Service {
    async fn get_supported_methods(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<server_features::SupportedMethods>, Status> {
        let event_store_server_version = "24.10.0".into();
        Ok(Response::new(server_features::SupportedMethods {
            methods: Vec::new(),
            event_store_server_version,
        }))
    }
}

#[tonic::async_trait]
impl Gossip for Service {
    async fn read(&self, _: Request<Empty>) -> Result<Response<gossip::ClusterInfo>, Status> {
        Ok(Response::new(gossip::ClusterInfo { members: self.front.members() }))
    }
}
