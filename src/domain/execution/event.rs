//! What happens to an execution, field by field.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::profile;

payload! {
    /// One source of an execution, as it was asked for.
    pub struct RequestedSource {
        pub source_id: Uuid,
        pub source_identifier: String,
        /// The scheduling blocks that were asked for; absent: all that were discovered.
        pub sbids: Option<Vec<String>>,
        /// The discovery that was current, if there was one.
        pub signature: Option<String>,
        pub metadata_sha256: Option<String>,
    }

    /// The deployment profile as it was when the execution was created.
    pub struct PinnedProfile {
        pub profile_id: Uuid,
        pub revision: u64,
        pub spec_sha256: String,
        pub spec: profile::Spec,
    }

    /// `execution.created`
    pub struct Created {
        pub project_module: String,
        pub archive_name: String,
        pub sources: Vec<RequestedSource>,
        pub source_identifiers: Vec<String>,
        /// The one source's signature, or a digest over all of them.
        pub discovery_signature: Option<String>,
        pub profile: PinnedProfile,
        pub project_config_id: Uuid,
        pub project_config_version: u64,
        pub project_spec_sha256: String,
        /// Whether admission made it (and not a person).
        pub automatic: bool,
        pub created_by_id: Option<Uuid>,
    }

    /// `execution.execute_started`: work on it was asked for.
    pub struct ExecuteStarted {
        pub job_id: Uuid,
        pub do_stage: bool,
        pub do_submit: bool,
        pub attempt: u32,
    }

    /// `execution.running`: a worker has begun.
    pub struct Running {
        /// `stage_and_manifest` or `submit`.
        pub phase: String,
    }

    /// Bytes in the artifact store that belong to an execution.
    pub struct Artifact {
        /// `manifest`, `source_graph`, `patched_graph`, `physical_graph`, `log`, …
        pub kind: String,
        pub sha256: String,
        pub size_bytes: u64,
        pub media_type: String,
    }

    /// `execution.manifest_built`
    pub struct ManifestBuilt {
        pub manifest_sha256: String,
        pub dataset_count: u64,
        pub artifact: Artifact,
    }

    /// One graph patch that was applied.
    pub struct AppliedPatch {
        pub node: String,
        pub field: String,
        pub value: serde_json::Value,
    }

    /// `execution.graph_prepared`: the source graph with manifest and patches in it.
    pub struct GraphPrepared {
        pub source_graph_sha256: String,
        pub patched_graph_sha256: String,
        pub patches: Vec<AppliedPatch>,
        pub artifacts: Vec<Artifact>,
    }

    /// `execution.translated`: the physical graph.
    pub struct Translated {
        pub physical_graph_sha256: String,
        pub drop_count: u64,
        pub translator: String,
        pub duration_ms: u64,
        pub artifact: Artifact,
    }

    /// `execution.submission_started`: durable before any request leaves for the backend.
    pub struct SubmissionStarted {
        pub attempt: u32,
        /// UUIDv5 of execution and attempt: the name that is taken on the backend.
        pub session_id: Uuid,
        pub backend: String,
        /// When the answer is overdue and settling begins.
        pub deadline_at: Option<DateTime<Utc>>,
        pub dim_rest_base: Option<String>,
        pub dim_session_status_url: Option<String>,
        pub dim_graph_status_url: Option<String>,
        pub slurm_session_dir: Option<String>,
        pub slurm_login_node: Option<String>,
        pub slurm_remote_user: Option<String>,
    }

    /// `execution.submission_recorded`: the backend has it.
    pub struct SubmissionRecorded {
        pub attempt: u32,
        pub session_id: Uuid,
        pub receipt: Receipt,
        /// Present when the answer had been lost: how it was found out.
        pub settled_by: Option<String>,
        pub source_identifiers: Vec<String>,
    }

    /// `execution.submission_refused`: the backend surely does not have it.
    pub struct SubmissionRefused {
        pub attempt: u32,
        pub session_id: Uuid,
        pub failure_class: String,
        pub error: String,
        pub evidence: Option<String>,
    }

    /// `execution.submission_uncertain`: the answer to a step of the hand-over was lost.
    pub struct SubmissionUncertain {
        pub attempt: u32,
        pub session_id: Uuid,
        pub step: String,
        pub reason: String,
    }

    /// `execution.submission_abandoned`, by a person.
    pub struct SubmissionAbandoned {
        pub attempt: u32,
        pub session_id: Uuid,
        pub reason: String,
        /// What the person had looked at.
        pub evidence: Option<String>,
    }

    /// `execution.awaiting_scheduler`: queued at the facility.
    pub struct AwaitingScheduler {
        pub reason: Option<String>,
    }

    /// The states that an execution is seen in from outside, one for each axis.
    pub struct Axes {
        pub scheduler_state: Option<String>,
        pub daliuge_state: Option<String>,
        pub output_state: Option<String>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub awaiting_scheduler: bool,
    }

    /// One look at the backend.
    pub struct Observation {
        /// `dim`, `squeue`, `sacct`, `simulated`.
        pub source: String,
        pub observed_at: DateTime<Utc>,
        pub raw_state: Option<String>,
        pub reason: Option<String>,
        /// How many polls saw the state before this one.
        pub previous_polls: u64,
        /// What Slurm said of the job.
        pub job: Option<Box<JobFacts>>,
    }

    /// What Slurm said of a job at one time.
    pub struct JobFacts {
        /// As Slurm spells it, without what it adds: `CANCELLED`, not `CANCELLED by 1002`.
        pub state: String,
        /// The code that the job's script ended with.
        pub exit_code: Option<i64>,
        /// The signal that ended it.
        pub signal: Option<i64>,
        /// The user that cancelled it, by name or number.
        pub cancelled_by: Option<String>,
        /// Slurm's own word, such as `Priority` or `NonZeroExitCode`.
        pub reason: Option<String>,
        pub cluster: Option<String>,
        pub partition: Option<String>,
        /// The nodes, as Slurm lists them: `n[01-03]`.
        pub node_list: Option<String>,
        pub submitted_at: Option<DateTime<Utc>>,
        /// When it is expected to start, if it has not, or did start.
        pub started_at: Option<DateTime<Utc>>,
        pub ended_at: Option<DateTime<Utc>>,
        pub elapsed_seconds: Option<u64>,
        /// The most memory that a task of any step was seen with, in bytes.
        pub max_rss_bytes: Option<u64>,
        /// Processor time of all steps, in seconds.
        pub cpu_seconds: Option<f64>,
        pub energy_joules: Option<u64>,
        pub allocated_cpus: Option<u64>,
        /// What the site bills: billing units (AllocTRES) times hours.
        pub service_unit_hours: Option<f64>,
        /// How often Slurm has queued it again.
        pub restarts: Option<u64>,
    }

    /// `execution.observed`: an axis changed.
    pub struct Observed {
        pub axes: Axes,
        pub observation: Observation,
    }

    /// `execution.outputs_verified`
    pub struct OutputsVerified {
        pub inventory_sha256: String,
    }

    /// The last look at a session, written once.
    pub struct Terminal {
        pub session_id: Uuid,
        pub session_state: String,
        pub observed_at: DateTime<Utc>,
        pub error: Option<String>,
        /// Drops in error, the culprits first.
        pub error_drops: Vec<ErrorDrop>,
        pub error_drops_count: Option<u64>,
        pub polls: u64,
        pub artifacts: Vec<Artifact>,
        /// What Slurm said of the job in the end.
        pub job: Option<Box<JobFacts>>,
    }

    /// A drop that failed by itself, and not because of one before it.
    pub struct ErrorDrop {
        pub oid: String,
        pub name: String,
        /// The first line of its log that says error.
        pub message: String,
    }

    /// `execution.completed`
    pub struct Completed {
        pub attempt: u32,
        pub terminal: Terminal,
        pub source_identifiers: Vec<String>,
    }

    /// `execution.failed`
    pub struct Failed {
        pub attempt: u32,
        pub failure_class: String,
        pub error: String,
        pub terminal: Option<Terminal>,
        pub source_identifiers: Vec<String>,
    }

    /// `execution.not_submitted`: staged as asked, and the end.
    pub struct NotSubmitted {
        pub attempt: u32,
        pub source_identifiers: Vec<String>,
    }

    /// `execution.cancel_requested`
    pub struct CancelRequested {
        pub reason: Option<String>,
    }

    /// `execution.cancelled`
    pub struct Cancelled {
        pub attempt: u32,
        pub terminal: Option<Terminal>,
        pub source_identifiers: Vec<String>,
    }

    /// `execution.retry_requested`: the next attempt is open.
    pub struct RetryRequested {
        pub attempt: u32,
        pub reason: String,
    }
}

/// What a backend answered to a hand-over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "snake_case")]
pub enum Receipt {
    Dim {
        deployed_at: DateTime<Utc>,
        dim_rest_base: String,
        verify_ssl: bool,
        session_status_url: String,
        graph_status_url: String,
    },
    Slurm {
        slurm_job_id: String,
        submitted_at: DateTime<Utc>,
        login_node: String,
        remote_user: String,
        session_dir: String,
        /// Named where a site has several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<String>,
        /// What the site told before that may keep the job from ending well.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
    },
    Simulated {
        deployed_at: DateTime<Utc>,
    },
    /// Of an event whose data were removed.
    #[default]
    Redacted,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Created(Box<Created>),
    ExecuteStarted(ExecuteStarted),
    Running(Running),
    ManifestBuilt(ManifestBuilt),
    GraphPrepared(GraphPrepared),
    Translated(Translated),
    SubmissionStarted(SubmissionStarted),
    SubmissionRecorded(SubmissionRecorded),
    SubmissionRefused(SubmissionRefused),
    SubmissionUncertain(SubmissionUncertain),
    SubmissionAbandoned(SubmissionAbandoned),
    AwaitingScheduler(AwaitingScheduler),
    Observed(Observed),
    OutputsVerified(OutputsVerified),
    Completed(Completed),
    Failed(Failed),
    NotSubmitted(NotSubmitted),
    CancelRequested(CancelRequested),
    Cancelled(Cancelled),
    RetryRequested(RetryRequested),
}
