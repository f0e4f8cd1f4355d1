//! What is asked of an execution. What somebody learned of a session names that session ([`Command::session`]).

use uuid::Uuid;

use super::{
    Abandonment, Axes, Created, GraphPrepared, ManifestBuilt, Observation, Receipt, SubmissionStarted,
    Terminal, Translated,
};

#[derive(Clone, Debug)]
pub enum Command {
    Create(Box<Created>),
    Execute {
        job_id: Uuid,
        do_stage: bool,
        do_submit: bool,
    },
    /// A worker begins.
    Begin {
        phase: String,
    },
    RecordManifest(ManifestBuilt),
    RecordGraph(GraphPrepared),
    RecordTranslation(Translated),
    BeginSubmission(SubmissionStarted),
    RecordReceipt {
        session_id: Uuid,
        receipt: Receipt,
        settled_by: Option<String>,
    },
    RecordRefusal {
        session_id: Uuid,
        failure_class: String,
        error: String,
        evidence: Option<String>,
    },
    LoseReceipt {
        session_id: Uuid,
        step: String,
        reason: String,
    },
    Abandon(Abandonment),
    AwaitScheduler {
        session_id: Uuid,
        reason: Option<String>,
    },
    Observe {
        session_id: Uuid,
        axes: Axes,
        observation: Observation,
    },
    Complete(Terminal),
    Fail {
        failure_class: String,
        error: String,
        terminal: Option<Terminal>,
    },
    /// Staged as asked, and not to be submitted.
    NotSubmit,
    RequestCancel {
        reason: Option<String>,
    },
    ConfirmCancel {
        session_id: Uuid,
        terminal: Option<Terminal>,
    },
    Retry {
        reason: String,
    },
}

impl Command {
    /// The session that it is about. Whoever learned something of a session may have been slow: meanwhile it may have been
    /// abandoned, and the next attempt have announced another one.
    pub fn session(&self) -> Option<Uuid> {
        match self {
            Self::RecordReceipt { session_id, .. }
            | Self::RecordRefusal { session_id, .. }
            | Self::LoseReceipt { session_id, .. }
            | Self::ConfirmCancel { session_id, .. }
            | Self::AwaitScheduler { session_id, .. }
            | Self::Observe { session_id, .. } => Some(*session_id),
            Self::Complete(terminal) => Some(terminal.session_id),
            Self::Fail { terminal, .. } => terminal.as_ref().map(|terminal| terminal.session_id),
            Self::Create(_)
            | Self::Execute { .. }
            | Self::Begin { .. }
            | Self::RecordManifest(_)
            | Self::RecordGraph(_)
            | Self::RecordTranslation(_)
            | Self::BeginSubmission(_)
            | Self::Abandon(_)
            | Self::NotSubmit
            | Self::RequestCancel { .. }
            | Self::Retry { .. } => None,
        }
    }
}
