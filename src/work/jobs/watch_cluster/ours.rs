//! Which executions **live** on a login node, and how often they want to be asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use beampipe_domain::execution::{Axes, Execution, Receipt, Submission};
use beampipe_domain::job::Kind;
use beampipe_domain::profile::{Deployment, SlurmRemote};
use beampipe_projections::executions::{self as rows, Live};
use uuid::Uuid;

use crate::work::cluster::Site;
use crate::work::{JobError, Shop};

/// Live executions that are looked at.
const MOST: u64 = 10_000;

/// An execution that lives on the login node.
pub(super) struct Ours {
    pub id: Uuid,
    pub attempt: u32,
    pub project: String,
    pub config: Uuid,
    pub remote: SlurmRemote,
    pub cancel: bool,
}

/// One whose job is known.
pub(super) struct Running {
    pub ours: Ours,
    pub job: u64,
    pub session: Uuid,
    pub directory: String,
    pub cancel: bool,
    pub axes: Axes,
    pub submission: Submission,
}

impl Ours {
    fn of(row: rows::Execution) -> Option<Self> {
        let spec = row.profile_spec?;
        let Deployment::SlurmRemote(remote) = spec.deployment else { return None };
        Some(Self {
            id: row.id,
            attempt: row.attempt,
            project: row.project_module,
            config: row.project_config_id,
            remote: *remote,
            cancel: row.cancel_requested,
        })
    }
}

/// The live executions of this login node that have been handed over, or may have been.
pub(super) fn of(shop: &Shop, site: &Site) -> Result<Vec<Ours>, JobError> {
    let unread = |error: beampipe_projections::ReadModelError| JobError::Retry(error.to_string());
    let mut ours = vec![];
    for row in shop.models.executions().live(Live::All, MOST).map_err(unread)? {
        if row.scheduler_name != "slurm" || row.submitted_at.is_none() && row.submission_pending_at.is_none()
        {
            continue;
        }
        if let Some(one) = Ours::of(row)
            && Site::of(&one.remote).as_ref() == Ok(site)
        {
            ours.push(one);
        }
    }
    Ok(ours)
}

/// How often to poll: as the projects wish, and never more often than the login node's floor.
pub(super) async fn pace(shop: &Shop, ours: &[Ours]) -> Duration {
    let floor = ours
        .iter()
        .map(|one| one.remote.poll_floor_seconds.unwrap_or(shop.settings.slurm_poll_floor_seconds))
        .max()
        .unwrap_or(shop.settings.slurm_poll_floor_seconds);
    let mut wish: Option<f64> = None;
    let configs: BTreeMap<Uuid, &str> = ours.iter().map(|one| (one.config, one.project.as_str())).collect();
    for (config, project) in configs {
        if let Ok(config) = shop.config(project, config).await {
            let seconds = config.automation.execution.execution_slurm_remote_poll_interval_seconds;
            wish = Some(wish.map_or(seconds, |known| known.min(seconds)));
        }
    }
    let wish = Duration::from_secs_f64(wish.unwrap_or(0.0).clamp(0.0, 86_400.0));
    wish.max(Duration::from_secs(u64::from(floor.max(1))))
}

/// Which executions have a job, and which have a hand-over that is open and that nobody else works on.
pub(super) async fn sort(shop: &Shop, ours: Vec<Ours>) -> Result<(Vec<Running>, Vec<Uuid>), JobError> {
    let (mut running, mut open) = (vec![], vec![]);
    for one in ours {
        match shop.handle.load::<Execution>(&one.id.to_string()).await?.state {
            Execution::Submitted { facts, submission, receipt, axes, .. } => {
                let Receipt::Slurm { slurm_job_id, session_dir, .. } = *receipt else { continue };
                let Ok(job) = slurm_job_id.parse() else { continue };
                let (session, directory, cancel) =
                    (submission.session_id, session_dir, facts.cancel_requested);
                running.push(Running { ours: one, job, session, directory, cancel, axes, submission });
            }
            Execution::Submitting { .. } | Execution::Uncertain { .. } => {
                let jobs = shop.models.jobs();
                let handing_over = jobs.unfinished_for_execution(one.id, Kind::Execute);
                if handing_over.map_err(|error| JobError::Retry(error.to_string()))?.is_none() {
                    open.push(one.id);
                }
            }
            _ => {}
        }
    }
    Ok((running, open))
}
