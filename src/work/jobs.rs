//! The jobs, one file a kind. Each is a function of the shop and the claimed job; it says what to do next by its error.

pub mod discover;
pub mod execute;
pub mod watch;
pub mod watch_cluster;

use beampipe_domain::job::{Enqueued, Kind};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{JobError, Shop};
use crate::handle::Context;

/// A job that this worker has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub id: Uuid,
    pub order: Enqueued,
    pub claim_id: Uuid,
    /// Counts from 1.
    pub attempt: u32,
    /// The story that the job belongs to.
    pub context: Context,
    /// Fires when the worker stops, has lost the claim, or gives the job to another one.
    pub stop: CancellationToken,
}

impl Claimed {
    /// Whether a failure now is the last one.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt >= self.order.max_attempts
    }

    /// The execution that the job is about.
    pub fn execution(&self) -> Result<Uuid, JobError> {
        self.order.execution_id.ok_or_else(|| JobError::Fail("the job names no execution".into()))
    }
}

/// Does a job; what it answers is kept with its completion.
pub async fn run(shop: &Shop, job: &Claimed) -> Result<Option<Value>, JobError> {
    match job.order.kind {
        Kind::DiscoverBatch => discover::run(shop, job).await,
        Kind::Execute => execute::run(shop, job).await,
        Kind::DimPoll => watch::run(shop, job).await,
        Kind::ExecutionSchedulerTick | Kind::SchedulerTick => {
            let project = job.order.payload.get("project_module").and_then(Value::as_str);
            super::scheduler::on_demand(shop, &job.context, project).await.map(Some)
        }
        Kind::DimPollTick => super::scheduler::reconcile(shop, &job.context).await.map(|()| None),
        Kind::SlurmPollTick => watch_cluster::run(shop, job).await,
        Kind::AlertEvaluatorTick => {
            Err(JobError::Fail(format!("this release does no {} jobs", job.order.kind)))
        }
    }
}
