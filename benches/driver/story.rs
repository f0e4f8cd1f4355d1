//! A survey that never was: the events that sources, executions and their jobs would have left behind.
//!
//! Deterministic: the same number gives the same bytes. Events go through the domain's own types, tags and codec and the
//! log's own hashing, so what comes out is what the service would have written, and every read model folds it.

use std::sync::Arc;

use anyhow::Context;
use beampipe::codec;
use beampipe_domain::execution::{self as x, Execution};
use beampipe_domain::job::{self, Job};
use beampipe_domain::source::{self as s, Source};
use beampipe_domain::{Aggregate, id};
use beampipe_log::prepare::Prepared;
use beampipe_log::{Expected, NewEvent, Position, Recorded, StreamHead};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

pub const PROJECT: &str = "bench_survey";

/// A stream while it is being written.
struct Stream<A> {
    id: Uuid,
    state: A,
    head: Option<StreamHead>,
}

impl<A: Aggregate> Stream<A> {
    fn new(id: Uuid) -> Self {
        Self { id, state: A::default(), head: None }
    }
}

/// Writes stories one after the other into one history.
pub struct Teller {
    random: u64,
    now: DateTime<Utc>,
    position: Position,
    correlation: Uuid,
    out: Vec<Recorded>,
}

impl Teller {
    /// `start` is when the first event happens.
    pub fn new(seed: u64, start: DateTime<Utc>) -> Self {
        Self { random: seed | 1, now: start, position: 0, correlation: Uuid::nil(), out: vec![] }
    }

    /// What was told since the last call.
    pub fn take(&mut self) -> Vec<Recorded> {
        std::mem::take(&mut self.out)
    }

    /// How many were told since the last [`Teller::take`].
    pub fn waiting(&self) -> usize {
        self.out.len()
    }

    pub fn told(&self) -> Position {
        self.position
    }

    /// xorshift64*: enough for ids that differ.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            let random = self.random().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
        bytes
    }

    fn uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.bytes()).into_uuid()
    }

    fn sha(&mut self) -> String {
        self.bytes::<32>().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn wait(&mut self, ms: i64) {
        self.now += TimeDelta::milliseconds(ms);
    }

    fn say<A: Aggregate>(&mut self, stream: &mut Stream<A>, event: A::Event) -> anyhow::Result<()> {
        stream.state = std::mem::take(&mut stream.state).evolve(&event);
        let name = stream.id.to_string();
        let tags = stream.state.tags(&name, &event);
        let encoded = codec::encode(&event.into());
        let new = NewEvent {
            id: self.uuid(),
            event_type: encoded.event_type.to_owned(),
            schema_version: encoded.schema_version,
            occurred_at: self.now,
            actor: "system:worker/bench".into(),
            correlation_id: self.correlation,
            causation_id: None,
            tags,
            data: encoded.data,
            salt: self.bytes(),
        };
        let prepared =
            Prepared::new(&format!("{}-{name}", A::CATEGORY), Expected::from(stream.head), vec![new])?;
        stream.head = Some(prepared.head());
        let mut event = prepared.events.into_iter().next().context("one event")?.event;
        self.position += 1;
        event.position = self.position;
        event.recorded_at = event.occurred_at;
        self.out.push(event);
        self.wait(7);
        Ok(())
    }

    fn created(&mut self, identifier: &str, source: Uuid, automatic: bool) -> x::Event {
        let signature = self.sha();
        x::Event::Created(Box::new(x::Created {
            project_module: PROJECT.into(),
            archive_name: "casda".into(),
            sources: vec![x::RequestedSource {
                source_id: source,
                source_identifier: identifier.into(),
                sbids: None,
                signature: Some(signature.clone()),
                metadata_sha256: Some(self.sha()),
            }],
            source_identifiers: vec![identifier.into()],
            discovery_signature: Some(signature),
            profile: x::PinnedProfile { profile_id: id::profile("bench"), revision: 0, ..Default::default() },
            project_config_id: id::config(PROJECT, 1),
            project_config_version: 1,
            project_spec_sha256: self.sha(),
            automatic,
            created_by_id: None,
        }))
    }

    fn artifact(&mut self, kind: &str) -> x::Artifact {
        let media_type = "application/json".into();
        x::Artifact { kind: kind.into(), sha256: self.sha(), size_bytes: 40_000, media_type }
    }

    fn job(
        &mut self,
        kind: job::Kind,
        execution: Option<Uuid>,
        payload: serde_json::Value,
    ) -> anyhow::Result<Stream<Job>> {
        let mut stream = Stream::<Job>::new(self.uuid());
        let enqueued = job::Enqueued {
            kind,
            payload,
            project_module: Some(PROJECT.into()),
            execution_id: execution,
            required_capability: Some(if execution.is_some() { "dim" } else { "tap" }.into()),
            max_attempts: 5,
            next_run_at: self.now,
            ..Default::default()
        };
        self.say(&mut stream, job::Event::Enqueued(enqueued))?;
        Ok(stream)
    }

    fn claim(&mut self, stream: &mut Stream<Job>) -> anyhow::Result<Uuid> {
        let claim_id = self.uuid();
        let claimed = job::Claimed { worker_id: "bench-1".into(), claim_id, attempt: 1, taken_from: None };
        self.say(stream, job::Event::Claimed(claimed))?;
        Ok(claim_id)
    }

    fn complete(&mut self, stream: &mut Stream<Job>, claim_id: Uuid) -> anyhow::Result<()> {
        let result = Some(json!({"sources": 1, "failed": 0}));
        self.say(stream, job::Event::Completed(job::Completed { claim_id, duration_ms: 812, result }))
    }

    /// The whole story of source `number`: registered, discovered, admitted, executed and completed. 22 events.
    pub fn source_executed(&mut self, number: u64) -> anyhow::Result<()> {
        self.correlation = self.uuid();
        let identifier = format!("HIPASSJ{number:07}-{:04}", self.random() % 9000);
        let mut source = Stream::<Source>::new(id::source(PROJECT, &identifier));
        let registered = s::Registered {
            project_module: PROJECT.into(),
            source_identifier: identifier.clone(),
            enabled: true,
            stale_after_hours: None,
        };
        self.say(&mut source, s::Event::Registered(registered))?;
        let mut discover = self.job(job::Kind::DiscoverBatch, None, json!({"sources": [source.id]}))?;
        let claim = self.claim(&mut discover)?;
        self.wait(700);
        let signature = self.sha();
        let changed = s::DiscoveryChanged {
            source_identifier: identifier.clone(),
            signature: signature.clone(),
            previous_signature: None,
            workflow_run_pending: true,
            dataset_count: 3,
            sbids: vec!["ASKAP-30000".into(), "ASKAP-30001".into()],
            metadata_sha256: self.sha(),
            check: s::Check {
                job_id: discover.id,
                project_config_id: id::config(PROJECT, 1),
                project_config_version: 1,
                duration_ms: 640,
            },
        };
        self.say(&mut source, s::Event::DiscoveryChanged(changed))?;
        self.complete(&mut discover, claim)?;

        let mut execution = Stream::<Execution>::new(self.uuid());
        let admitted =
            s::Admitted { source_identifier: identifier.clone(), execution_id: execution.id, signature };
        self.say(&mut source, s::Event::Admitted(admitted))?;
        let created = self.created(&identifier, source.id, true);
        self.say(&mut execution, created)?;
        let mut execute =
            self.job(job::Kind::Execute, Some(execution.id), json!({"do_stage": true, "do_submit": true}))?;
        let started = x::ExecuteStarted { job_id: execute.id, do_stage: true, do_submit: true, attempt: 1 };
        self.say(&mut execution, x::Event::ExecuteStarted(started))?;
        let claim = self.claim(&mut execute)?;
        self.say(&mut execution, x::Event::Running(x::Running { phase: "stage_and_manifest".into() }))?;
        let built = x::ManifestBuilt {
            manifest_sha256: self.sha(),
            dataset_count: 3,
            artifact: self.artifact("manifest"),
        };
        self.say(&mut execution, x::Event::ManifestBuilt(built))?;
        let prepared = x::GraphPrepared {
            source_graph_sha256: self.sha(),
            patched_graph_sha256: self.sha(),
            patches: vec![x::AppliedPatch {
                node: "scatter".into(),
                field: "num_of_copies".into(),
                value: json!(3),
            }],
            artifacts: vec![self.artifact("patched_graph")],
        };
        self.say(&mut execution, x::Event::GraphPrepared(prepared))?;
        let translated = x::Translated {
            physical_graph_sha256: self.sha(),
            drop_count: 27,
            translator: "http://127.0.0.1:8084".into(),
            duration_ms: 410,
            artifact: self.artifact("physical_graph"),
        };
        self.say(&mut execution, x::Event::Translated(translated))?;
        self.submitted(&mut execution, &identifier)?;
        self.complete(&mut execute, claim)?;

        let mut watch = self.job(job::Kind::DimPoll, Some(execution.id), json!({"attempt": 1}))?;
        let claim = self.claim(&mut watch)?;
        self.wait(30_000);
        let observed = x::Observed {
            axes: x::Axes { daliuge_state: Some("running".into()), ..Default::default() },
            observation: x::Observation {
                source: "dim".into(),
                observed_at: self.now,
                raw_state: Some("RUNNING".into()),
                reason: None,
                previous_polls: 2,
                job: None,
            },
        };
        self.say(&mut execution, x::Event::Observed(observed))?;
        self.completed(&mut execution, &identifier)?;
        self.complete(&mut watch, claim)
    }

    fn submitted(&mut self, execution: &mut Stream<Execution>, identifier: &str) -> anyhow::Result<()> {
        let session_id = id::session(execution.id, 1);
        let base = "http://127.0.0.1:8001".to_owned();
        let session_status_url = format!("{base}/api/sessions/{session_id}/status");
        let graph_status_url = format!("{base}/api/sessions/{session_id}/graph/status");
        let started = x::SubmissionStarted {
            attempt: 1,
            session_id,
            backend: "dim".into(),
            deadline_at: Some(self.now + TimeDelta::seconds(60)),
            dim_rest_base: Some(base.clone()),
            dim_session_status_url: Some(session_status_url.clone()),
            dim_graph_status_url: Some(graph_status_url.clone()),
            ..x::SubmissionStarted::default()
        };
        self.say(execution, x::Event::SubmissionStarted(started))?;
        self.wait(300);
        let recorded = x::SubmissionRecorded {
            attempt: 1,
            session_id,
            receipt: x::Receipt::Dim {
                deployed_at: self.now,
                dim_rest_base: base,
                verify_ssl: true,
                session_status_url,
                graph_status_url,
            },
            settled_by: None,
            source_identifiers: vec![identifier.into()],
        };
        self.say(execution, x::Event::SubmissionRecorded(recorded))
    }

    fn completed(&mut self, execution: &mut Stream<Execution>, identifier: &str) -> anyhow::Result<()> {
        let terminal = x::Terminal {
            session_id: id::session(execution.id, 1),
            session_state: "finished".into(),
            observed_at: self.now,
            polls: 7,
            ..Default::default()
        };
        let completed = x::Completed { attempt: 1, terminal, source_identifiers: vec![identifier.into()] };
        self.say(execution, x::Event::Completed(completed))
    }

    /// An execution of four events, the last of which ends it; one in ten fails. Gives its id.
    pub fn short_execution(&mut self, number: u64) -> anyhow::Result<Uuid> {
        self.correlation = self.uuid();
        let identifier = format!("HIPASSJ{number:07}");
        let mut execution = Stream::<Execution>::new(self.uuid());
        let created = self.created(&identifier, id::source(PROJECT, &identifier), false);
        self.say(&mut execution, created)?;
        let started = x::ExecuteStarted { job_id: self.uuid(), do_stage: true, do_submit: true, attempt: 1 };
        self.say(&mut execution, x::Event::ExecuteStarted(started))?;
        self.say(&mut execution, x::Event::Running(x::Running { phase: "stage_and_manifest".into() }))?;
        if number % 10 == 9 {
            let failed = x::Failed {
                attempt: 1,
                failure_class: "staging".into(),
                error: "the archive has no calibration file for this source".into(),
                terminal: None,
                source_identifiers: vec![identifier],
            };
            self.say(&mut execution, x::Event::Failed(failed))?;
        } else {
            self.completed(&mut execution, &identifier)?;
        }
        Ok(execution.id)
    }
}

/// When every made history starts.
pub fn beginning() -> DateTime<Utc> {
    DateTime::from_timestamp(1_760_000_000, 0).unwrap_or(DateTime::UNIX_EPOCH)
}

/// The log's clock: the machine's.
pub fn clock() -> beampipe_log::Clock {
    let clock = beampipe::clock::Clock::system();
    Arc::new(move || clock.now())
}
