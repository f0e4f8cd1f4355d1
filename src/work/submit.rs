//! Hands an execution over to its backend, once, and **settles** what became of a hand-over whose answer was lost.
//!
//! `execution.submission_started` is durable before the first request leaves. Each step of the hand-over (create, append,
//! deploy) is one that the backend takes only once under the session's name, so whoever finds the hand-over half done goes
//! on from what is seen there: the absence of a session is established by *taking the name*, and a worker that slept
//! through all this is refused at its next step. Nothing here is repeated by a library, and no answer is guessed.
//!
//! One hand-over at a time to each backend: a DALiuGE Node Manager resolves the relative paths of a graph against the
//! directory of the session that was created *last*, when the graph is deployed. Two hand-overs that overlap would mix the
//! files of their sessions, and the wrong one would fail. For the same reason a half-done hand-over is only gone on with
//! while its session is the newest.

use std::sync::Arc;

use beampipe_domain::execution::Receipt;
use bytes::Bytes;
use uuid::Uuid;

use super::Shop;

mod book;
pub mod slurm;

use book::Book;
pub use book::overtakes;

use crate::backends::graph::PhysicalGraph;
use crate::backends::{Backend, Created, Look, LookError, State, Step, SubmitError};
use crate::handle::{Context, HandleError};

/// What is needed to hand over: the announced session, the physical graph, and where to.
pub struct HandOver {
    pub execution: Uuid,
    pub session_id: Uuid,
    /// The session's name at the backend.
    pub session: String,
    pub backend: Arc<dyn Backend>,
    pub graph: Bytes,
    pub receipt: Box<dyn Fn() -> Receipt + Send + Sync>,
    /// Held from the first request to the last.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// How far a hand-over came.
#[derive(Debug)]
pub enum HandedOver {
    /// The backend has it and the log says so.
    Recorded,
    /// The backend surely does not have it, or cannot run it: the execution has ended.
    Refused,
    /// A cancellation was asked for before anything ran: the execution has ended.
    Cancelled,
    /// Somebody gave the session up, or settled it, meanwhile: nothing was recorded, and whatever attempt is there now is not
    /// touched.
    Overtaken,
    /// It is not known, or cannot be done now; to be settled later.
    Open { reason: String },
}

/// Where a hand-over goes on.
enum Next {
    Create,
    Append,
    Deploy,
    Look,
    Record {
        seen: Option<State>,
    },
    Refuse {
        class: &'static str,
        error: String,
        evidence: Option<String>,
    },
    /// Frees the name of a session that has no graph, to take it again.
    Forget,
    Open {
        step: Step,
        reason: String,
        lost: bool,
    },
}

/// A hand-over, to whichever place.
pub enum Over {
    /// To a Data Island Manager, or a simulated one.
    Manager(HandOver),
    Cluster(Box<slurm::HandOver>),
}

/// The first hand-over of an attempt, right after it was announced.
pub async fn submit(shop: &Shop, context: &Context, over: &Over) -> Result<HandedOver, HandleError> {
    match over {
        Over::Manager(over) => go_on(shop, context, over, Next::Create).await,
        Over::Cluster(over) => slurm::submit(shop, context, over).await,
    }
}

/// Finds out what became of a hand-over, and finishes it if it had not happened.
pub async fn settle(shop: &Shop, context: &Context, over: &Over) -> Result<HandedOver, HandleError> {
    match over {
        Over::Manager(over) => go_on(shop, context, over, Next::Look).await,
        Over::Cluster(over) => slurm::settle(shop, context, over).await,
    }
}

async fn go_on(
    shop: &Shop,
    context: &Context,
    over: &HandOver,
    first: Next,
) -> Result<HandedOver, HandleError> {
    let settling = matches!(first, Next::Look);
    let book = Book { shop, context, execution: over.execution.to_string(), session_id: over.session_id };
    let physical = match PhysicalGraph::parse(&over.graph) {
        Ok(physical) => physical,
        Err(error) => {
            let error = format!("the physical graph cannot be read: {error}");
            return book.refuse("internal", error, None).await;
        }
    };
    let _turn = over.turn.lock().await;
    let mut next = first;
    // A hand-over has three steps with a look after each at most; more turns than this mean that two are at it.
    for _ in 0..12 {
        next = match next {
            Next::Create | Next::Append | Next::Deploy | Next::Forget if book.is_overtaken().await? => {
                return Ok(HandedOver::Overtaken);
            }
            Next::Create | Next::Append | Next::Deploy if book.cancel_requested().await? => {
                // Nothing was deployed: the name is ours or nobody's, and without a deployment nothing runs under it.
                return book.cancelled().await;
            }
            Next::Create => {
                crate::fault::point("session_asked_for");
                match over.backend.create(&over.session).await {
                    Ok(Created::New) => passed("session_created", Next::Append),
                    Ok(Created::Existed) => Next::Look,
                    Err(error) => after(error),
                }
            }
            Next::Append => match over.backend.append(&over.session, over.graph.clone()).await {
                Ok(()) => passed("graph_appended", Next::Deploy),
                // Another hand-over under this name may have appended first.
                Err(SubmitError::Refused { detail, .. }) => after_refused_append(over, &detail).await,
                Err(error) => after(error),
            },
            Next::Deploy => match over.backend.deploy(&over.session, &physical.roots()).await {
                Ok(()) => passed("session_deployed", Next::Record { seen: None }),
                Err(SubmitError::Refused { detail, .. }) => after_refused_deploy(over, &detail).await,
                Err(error) => after(error),
            },
            Next::Forget => match over.backend.forget(&over.session).await {
                Ok(()) => Next::Create,
                Err(error) => after(error),
            },
            Next::Look => match over.backend.look(&over.session).await {
                Ok(look) => from_look(look, over, physical.len()).await,
                Err(error) => Next::Open { step: Step::Create, reason: error.to_string(), lost: false },
            },
            Next::Record { seen } => {
                let found = seen.map(|state| format!("the session was found {state}"));
                let settled_by = found
                    .or_else(|| settling.then(|| "the hand-over was finished under its name".to_owned()));
                return book.receipt((over.receipt)(), settled_by).await;
            }
            Next::Refuse { class, error, evidence } => return book.refuse(class, error, evidence).await,
            Next::Open { step, reason, lost } => return book.open(&step.to_string(), reason, lost).await,
        };
    }
    Ok(HandedOver::Open { reason: "another worker seems to hand the same session over".into() })
}

/// A place between two steps, where a test may end the process.
fn passed(place: &str, next: Next) -> Next {
    crate::fault::point(place);
    next
}

fn after(error: SubmitError) -> Next {
    let step = error.step();
    match error {
        SubmitError::Refused { status, detail, .. } => {
            let class = if status == 401 || status == 403 { "authorization" } else { "conflict" };
            Next::Refuse { class, error: format!("{step} was refused: {detail}"), evidence: Some(detail) }
        }
        SubmitError::NotSent { detail, .. } => Next::Open { step, reason: detail, lost: false },
        SubmitError::Unknown { detail, .. } => Next::Open { step, reason: detail, lost: true },
    }
}

async fn after_refused_append(over: &HandOver, detail: &str) -> Next {
    match over.backend.look(&over.session).await {
        Ok(Look::Present { state: State::Pristine, .. }) => Next::Refuse {
            class: "validation",
            error: format!("the backend refused the graph: {detail}"),
            evidence: Some("the session exists and has no graph".into()),
        },
        Ok(Look::Absent) => {
            Next::Open { step: Step::Append, reason: "the session has gone".into(), lost: false }
        }
        Ok(_) => Next::Look,
        Err(error) => open(Step::Append, &error),
    }
}

async fn after_refused_deploy(over: &HandOver, detail: &str) -> Next {
    match over.backend.look(&over.session).await {
        Ok(Look::Present { state, .. }) => {
            // A refused deployment may leave a session that is called running and does nothing.
            let stopped = over.backend.cancel(&over.session).await;
            Next::Refuse {
                class: "validation",
                error: format!("the backend refused to deploy: {detail}"),
                evidence: Some(format!("the session was {state}; cancelling it: {stopped:?}")),
            }
        }
        Ok(Look::Absent) => {
            Next::Open { step: Step::Deploy, reason: "the session has gone".into(), lost: false }
        }
        Err(error) => open(Step::Deploy, &error),
    }
}

async fn from_look(look: Look, over: &HandOver, drops: usize) -> Next {
    match look {
        Look::Absent => Next::Create,
        Look::Present { state: State::Pristine, .. } => match over.backend.is_newest(&over.session).await {
            Ok(true) => Next::Append,
            Ok(false) => Next::Forget,
            Err(error) => open(Step::Append, &error),
        },
        Look::Present { state: State::Building, .. } => match over.backend.size(&over.session).await {
            Ok(size) if size == drops => match over.backend.is_newest(&over.session).await {
                Ok(true) => Next::Deploy,
                Ok(false) => Next::Refuse {
                    class: "inconsistent_state",
                    error: "another session was created on the manager between this one's graph and its deployment; \
                            deployed now, it would write into the other one's directory. Retry it"
                        .into(),
                    evidence: Some("the session has its graph and was never deployed".into()),
                },
                Err(error) => open(Step::Deploy, &error),
            },
            Ok(size) => Next::Refuse {
                class: "inconsistent_state",
                error: format!("the session has {size} of the graph's {drops} drops; it was never deployed"),
                evidence: Some("graph size".into()),
            },
            Err(error) => open(Step::Append, &error),
        },
        Look::Present { state: State::Other(word), .. } => Next::Open {
            step: Step::Deploy,
            reason: format!("the session's state {word:?} is not known"),
            lost: false,
        },
        Look::Present { state, .. } => Next::Record { seen: Some(state) },
    }
}

fn open(step: Step, error: &LookError) -> Next {
    Next::Open { step, reason: error.to_string(), lost: false }
}
