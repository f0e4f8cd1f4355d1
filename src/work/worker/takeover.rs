//! How claims **change hands**: from a worker that has died, to this one; and the watches of this one, when it is drained,
//! to whoever can take them.

use std::time::Duration;

use beampipe_domain::job::Kind;
use beampipe_domain::worker::{Command, Worker};

use super::lane::WATCH;
use super::others::Others;
use super::{Crew, May};
use crate::handle::{Context, HandleError};

impl Crew {
    /// Sees who could take watches; a draining worker gives them as many of its own as they have room for.
    pub(super) fn give_watches_away(&self, others: &Others) {
        let workers = self.shop.models.workers().list(false, 10_000).unwrap_or_default();
        let lease = Duration::from_secs(self.shop.settings.lease_seconds);
        let mut takers = others.takers(&workers, &self.id, lease);
        *self.takers.lock() = takers.clone();
        if self.may_claim() != May::Watches {
            return;
        }
        // What was given away has to be taken first: the room that was told of may be gone.
        let (now, capabilities) = (self.shop.clock.now(), &self.shop.settings.capabilities);
        let waiting = self.shop.models.jobs().ready(now, capabilities, Some(WATCH), &[], 1);
        if !waiting.is_ok_and(|waiting| waiting.is_empty()) {
            return;
        }
        let held = self.held.lock();
        let watches = held.values().filter(|holding| WATCH.contains(&holding.kind));
        let (given, kept): (Vec<_>, Vec<_>) = watches.partition(|holding| holding.stop.is_cancelled());
        for holding in given {
            takers.take(holding.needs.as_deref());
        }
        for holding in kept {
            if takers.take(holding.needs.as_deref()) {
                holding.stop.cancel();
            }
        }
    }

    /// On a log that only one process can write, whoever worked before this one is gone.
    pub(super) async fn bury_predecessors(&self, context: &Context) -> Result<(), HandleError> {
        let workers = self.shop.models.workers().list(false, 10_000).unwrap_or_default();
        for worker in workers.iter().filter(|worker| *worker.id != *self.id) {
            self.shop
                .handle
                .handle::<Worker>(&worker.id, context, Command::Lose { silent_seconds: 0 })
                .await?;
        }
        let claimed = self.shop.models.jobs().claimed(100_000).unwrap_or_default();
        for row in claimed {
            self.replace(&row).await;
        }
        Ok(())
    }

    /// Takes over what belongs to workers whose heartbeat has stood still for longer than a lease.
    pub(super) async fn take_over(&self, context: &Context, others: &mut Others) -> Result<(), HandleError> {
        let lease = Duration::from_secs(self.shop.settings.lease_seconds);
        let beats = match self.shop.handle.log().beats().await {
            Ok(beats) => beats,
            Err(error) => {
                others.forget();
                tracing::debug!(%error, "the beats of other workers cannot be read");
                return Ok(());
            }
        };
        let claimed = self.shop.models.jobs().claimed(10_000).unwrap_or_default();
        let holders = claimed.iter().filter_map(|row| row.worker_id.clone());
        // Those without a claim, too: nobody else says that they are gone.
        let idle = self.shop.models.workers().list(false, 10_000).unwrap_or_default();
        let holders: std::collections::BTreeSet<String> =
            holders.chain(idle.into_iter().map(|worker| worker.id)).filter(|id| **id != *self.id).collect();
        others.hear(&beats, &holders);
        for holder in holders {
            let silent = others.silence(&holder);
            if silent < lease {
                continue;
            }
            let command = Command::Lose { silent_seconds: silent.as_secs() };
            match self.shop.handle.handle::<Worker>(&holder, context, command).await {
                Ok(_) | Err(HandleError::Rejected(_)) => {}
                Err(error) => return Err(error),
            }
            for row in claimed.iter().filter(|row| row.worker_id.as_deref() == Some(&holder)) {
                self.replace(row).await;
            }
        }
        Ok(())
    }

    /// Claims a job from a claim that has died, if its lane has room.
    async fn replace(&self, row: &beampipe_projections::jobs::Job) {
        let Some(kind) = Kind::parse(&row.kind) else { return };
        let Some(lane) = self.lanes.iter().find(|lane| lane.kinds.contains(&kind)) else { return };
        let may = match self.may_claim() {
            May::Everything => true,
            May::Watches => {
                lane.is_for_watches() && !self.takers.lock().can(row.required_capability.as_deref())
            }
            May::Nothing => false,
        };
        if !may {
            return;
        }
        let Some(permit) = lane.permit(row.project_module.as_deref()) else { return };
        self.claim(row.id, row.claim_id, permit).await;
    }
}
