//! Whether a login node **answers**: it is a dependency of the profiles that name it, and pauses them when it does not.
//!
//! After some failures in a row nothing more is admitted to those profiles; what runs there is left alone. The node is asked
//! less and less often, and the first answer resumes what was paused here. A pause that a person asked for is not touched.

use std::time::Duration;

use beampipe_domain::dependency::{Command as Seen, Dependency};
use beampipe_domain::profile::{Command, Deployment, Profile};
use beampipe_projections::projects::Profile as Row;

use crate::handle::{Context, HandleError};
use crate::work::cluster::Site;
use crate::work::{JobError, Shop};

/// The longest wait between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How it went lately.
#[derive(Default)]
pub(super) struct Reach {
    failures: u32,
    /// What was last told to the log.
    told: Option<bool>,
}

impl Reach {
    /// Takes in how a round went; answers how many have failed in a row.
    pub(super) async fn note(
        &mut self,
        shop: &Shop,
        context: &Context,
        site: &Site,
        outcome: Result<(), String>,
    ) -> Result<u32, JobError> {
        self.failures = if outcome.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let profiles = profiles(shop, site)?;
        if self.told != Some(outcome.is_ok()) {
            for row in &profiles {
                see(shop, context, row, &outcome).await?;
            }
            self.told = Some(outcome.is_ok());
        }
        match outcome {
            Ok(()) => change(shop, context, &profiles, Command::Resume { automatic: true }).await?,
            Err(reason) if self.failures >= shop.settings.slurm_pause_after_failures => {
                let reason = format!(
                    "the login node {}, or the Slurm behind it, does not answer: {reason}",
                    site.login_node
                );
                change(shop, context, &profiles, Command::Pause { reason, automatic: true }).await?;
            }
            Err(_) => {}
        }
        Ok(self.failures)
    }

    /// How long to wait before the next round.
    pub(super) fn pause(&self, pace: Duration, failures: u32) -> Duration {
        let doubled = pace.saturating_mul(2_u32.saturating_pow(failures.min(16)));
        if failures == 0 { pace } else { doubled.min(LONGEST_PAUSE.max(pace)) }
    }
}

/// Asks a login node for a sign of life.
pub(super) async fn probe(shop: &Shop, site: &Site) -> Result<(), String> {
    let profiles = profiles(shop, site).map_err(|error| error.to_string())?;
    let remote = profiles.iter().find_map(|row| match &row.spec.deployment {
        Deployment::SlurmRemote(remote) => Some(remote),
        _ => None,
    });
    // Nothing is known of the way in any more, so nothing can be asked.
    let Some(remote) = remote else { return Ok(()) };
    let said = shop.cluster(remote)?.run("true").await.map_err(|error| error.to_string())?;
    if said.success() { Ok(()) } else { Err(format!("its shell ended with {:?}", said.code)) }
}

/// Whether a profile of this login node is paused because it did not answer.
pub(super) async fn has_paused(shop: &Shop, site: &Site) -> Result<bool, JobError> {
    for row in profiles(shop, site)?.iter().filter(|row| row.paused_reason.is_some()) {
        if let Profile::Active(facts) = shop.handle.load::<Profile>(&row.id.to_string()).await?.state
            && facts.paused_by_itself
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn profiles(shop: &Shop, site: &Site) -> Result<Vec<Row>, JobError> {
    let all = shop.models.projects().profiles().map_err(|error| JobError::Retry(error.to_string()))?;
    let here = |row: &Row| match &row.spec.deployment {
        Deployment::SlurmRemote(remote) => Site::of(remote).as_ref() == Ok(site),
        _ => false,
    };
    Ok(all.into_iter().filter(here).collect())
}

async fn see(
    shop: &Shop,
    context: &Context,
    row: &Row,
    outcome: &Result<(), String>,
) -> Result<(), JobError> {
    let dependency = format!("slurm_{}", row.spec.name);
    let command = match outcome {
        Ok(()) => Seen::SeeUp { dependency: dependency.clone(), latency_ms: 0 },
        Err(reason) => Seen::SeeDown { dependency: dependency.clone(), reason: reason.clone() },
    };
    shop.handle.handle::<Dependency>(&dependency, context, command).await?;
    Ok(())
}

async fn change(shop: &Shop, context: &Context, profiles: &[Row], command: Command) -> Result<(), JobError> {
    let resumes = matches!(command, Command::Resume { .. });
    // A read model that lags asks for what is done already, which changes nothing.
    for row in profiles.iter().filter(|row| row.paused_reason.is_some() == resumes) {
        match shop.handle.handle::<Profile>(&row.id.to_string(), context, command.clone()).await {
            Ok(_) | Err(HandleError::Rejected(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_answer_is_asked_less_and_less_often() {
        let (reach, pace) = (Reach::default(), Duration::from_secs(10));
        let pauses: Vec<u64> = (0..8).map(|failures| reach.pause(pace, failures).as_secs()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(
            reach.pause(Duration::from_secs(600), 3).as_secs(),
            600,
            "never more often than the floor"
        );
    }
}
