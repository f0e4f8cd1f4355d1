//! **Backends**: where an execution runs. `Backend` is what a worker needs of one; `dim` is a DALiuGE Data
//! Island Manager over REST, `slurm` a job of its own on a cluster, `simulated` a stand-in for load tests, so named. `translator` turns a logical graph
//! into the physical one that a backend is given; `graph` reads that; `evidence` says why a run failed.
//!
//! Invariant: an error says what may be done next. After `SubmitError::Refused` and `SubmitError::NotSent` the
//! step surely did not happen and may be asked again; after `SubmitError::Unknown` it may have happened, and only
//! looking settles it. Nothing here repeats a request by itself.
//!
//! Deliberately absent: what to do about any of it. That is decided by the execution's decider, and done by a worker.

pub mod dim;
pub mod evidence;
pub mod graph;
pub mod simulated;
pub mod slurm;
pub mod translator;
mod wire;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use evidence::Evidence;
pub use wire::client;

/// What a worker asks of the place where an execution runs. A session is an execution's attempt there, and its name
/// is given by us, so that a lost answer can be matched with what is found.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Takes the name: whoever creates the session first is the only one to do so.
    async fn create(&self, session: &str) -> Result<Created, SubmitError>;

    /// Gives the session its physical graph. Starts nothing.
    async fn append(&self, session: &str, physical_graph: Bytes) -> Result<(), SubmitError>;

    /// Starts the session from the roots of its graph.
    ///
    /// A session without a graph would finish at once and look like a success: see that [`Backend::size`] is the
    /// size of the graph first.
    async fn deploy(&self, session: &str, roots: &[String]) -> Result<(), SubmitError>;

    /// How the session stands. Only [`Look::Absent`] says that there is none; an error says nothing about it.
    async fn look(&self, session: &str) -> Result<Look, LookError>;

    /// How many drops the session's graph has; 0 also for a session that is not there, so look first.
    async fn size(&self, session: &str) -> Result<usize, LookError>;

    /// How far the drops are.
    async fn progress(&self, session: &str) -> Result<Progress, LookError>;

    /// Whether no other session was created after this one. It matters where sessions share something that belongs to
    /// the last one created.
    async fn is_newest(&self, _session: &str) -> Result<bool, LookError> {
        Ok(true)
    }

    /// Forgets a session that was never given a graph, so that its name can be taken again.
    async fn forget(&self, session: &str) -> Result<(), SubmitError>;

    /// Ends a running session. Refused when it does not run.
    async fn cancel(&self, session: &str) -> Result<(), SubmitError>;

    /// The drops in error, the culprits first, each with what it logged. Also of a session that still runs.
    async fn evidence(&self, session: &str, physical_graph: &[u8]) -> Result<Evidence, LookError>;

    /// Where people read the session's status, if this backend has such a place.
    fn session_status_url(&self, _session: &str) -> Option<String> {
        None
    }

    /// Where people read the status of each drop, if this backend has such a place.
    fn graph_status_url(&self, _session: &str) -> Option<String> {
        None
    }
}

/// The answer to taking a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The name is ours from this request on.
    New,
    /// Somebody has it: an earlier request of ours whose answer was lost, or another worker.
    Existed,
}

/// What was seen of a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// Every node says that it does not know the session.
    Absent,
    Present {
        state: State,
        /// The answer as it came, for the run record.
        raw: serde_json::Value,
    },
}

/// The state of a session, over all its nodes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum State {
    Pristine,
    Building,
    Deploying,
    Running,
    Finished,
    Cancelled,
    Failed,
    /// A word we do not know, or nodes that disagree in a way we do not know: not an end.
    Other(String),
}

impl State {
    /// Whether the session has ended. What we do not understand has not.
    pub fn is_terminal(&self) -> bool {
        matches!(self, State::Finished | State::Cancelled | State::Failed)
    }

    pub fn as_str(&self) -> &str {
        match self {
            State::Pristine => "pristine",
            State::Building => "building",
            State::Deploying => "deploying",
            State::Running => "running",
            State::Finished => "finished",
            State::Cancelled => "cancelled",
            State::Failed => "failed",
            State::Other(word) => word,
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<State> for String {
    fn from(state: State) -> String {
        state.as_str().to_owned()
    }
}

impl From<String> for State {
    fn from(word: String) -> State {
        use State::*;
        [Pristine, Building, Deploying, Running, Finished, Cancelled, Failed]
            .into_iter()
            .find(|state| state.as_str() == word)
            .unwrap_or(Other(word))
    }
}

/// How many drops stand where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub total: usize,
    pub completed: usize,
    pub running: usize,
    /// Drops in error. A session may run on with some of them, and fails only when every leaf has ended.
    pub failed: usize,
}

/// The steps that change something at a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Create,
    Append,
    Deploy,
    Cancel,
    Forget,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Step::Create => "create",
            Step::Append => "append",
            Step::Deploy => "deploy",
            Step::Cancel => "cancel",
            Step::Forget => "forget",
        })
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a step has no good answer, sorted by what may be done next.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The backend answered no: surely not done. Asking the same again will hardly help, and does no harm.
    #[error("{step} was refused with status {status}: {detail}")]
    Refused {
        step: Step,
        status: u16,
        /// The backend's own names for the cause; several where nodes disagree.
        kinds: Vec<String>,
        detail: String,
    },
    /// It never left, or never arrived: surely not done, may be asked again.
    #[error("{step} was not sent: {detail}")]
    NotSent {
        step: Step,
        detail: String,
        #[source]
        cause: Option<Cause>,
    },
    /// It left and no answer that can be relied on came: it may have happened. May not be asked again; look.
    #[error("whether {step} happened is not known: {detail}")]
    Unknown {
        step: Step,
        detail: String,
        #[source]
        cause: Option<Cause>,
    },
}

impl SubmitError {
    /// Whether the step surely did not happen.
    pub fn surely_not_done(&self) -> bool {
        !matches!(self, SubmitError::Unknown { .. })
    }

    pub fn step(&self) -> Step {
        match self {
            SubmitError::Refused { step, .. }
            | SubmitError::NotSent { step, .. }
            | SubmitError::Unknown { step, .. } => *step,
        }
    }
}

/// Why nothing was seen. None of these says that a session is gone; all may be asked again.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("cannot reach {peer}: {detail}")]
    Unreachable {
        peer: String,
        detail: String,
        #[source]
        cause: Option<Cause>,
    },
    #[error("{peer} did not answer within {seconds} s")]
    Timeout { peer: String, seconds: u64 },
    /// The peer is there and cannot say: it lost a node, or something stands between.
    #[error("{peer} cannot say, status {status}: {detail}")]
    Unavailable { peer: String, status: u16, kinds: Vec<String>, detail: String },
    /// Asked for something of a session that this session, in its state, does not have.
    #[error("{peer} has no such thing in session {session}: {detail}")]
    NoSuch { peer: String, session: String, detail: String },
    #[error("{peer} answered what cannot be read: {detail}")]
    Malformed { peer: String, detail: String },
}
