//! **Hand-overs** whose answer was lost, settled beside the watch: what hangs there, such as an `sbatch` that does not come
//! back, keeps neither a poll nor a cancellation waiting.

use std::time::Duration;

use beampipe_domain::execution::Execution;
use futures::StreamExt;
use futures::channel::mpsc;
use uuid::Uuid;

use super::Claimed;
use crate::work::submit::{self, HandedOver};
use crate::work::{JobError, Shop, stage};

/// Hand-overs that are settled at once.
const AT_ONCE: usize = 4;

/// What came of one: why it is still open, if so.
pub(super) type Settled = (Uuid, Result<Option<String>, JobError>);

/// Settles what comes until nothing more can come. When the worker stops, what was begun is ended and nothing else is begun.
pub(super) async fn settle_all(
    shop: &Shop,
    job: &Claimed,
    open: mpsc::UnboundedReceiver<Uuid>,
    say: mpsc::UnboundedSender<Settled>,
) {
    let settling = open.for_each_concurrent(AT_ONCE, async |id| {
        if job.stop.is_cancelled() {
            return;
        }
        // A watch that has ended does not want to know.
        let _ = say.unbounded_send((id, settle(shop, job, id).await));
    });
    settling.await;
}

async fn settle(shop: &Shop, job: &Claimed, id: Uuid) -> Result<Option<String>, JobError> {
    let bound = bound(shop);
    let settling = async {
        // It may have waited for its turn, and have been given up and tried again meanwhile.
        let state = shop.handle.load::<Execution>(&id.to_string()).await?.state;
        let (Execution::Submitting { .. } | Execution::Uncertain { .. }) = state else { return Ok(None) };
        let over = stage::hand_over(shop, id, &state).await?;
        Ok(match submit::settle(shop, &job.context, &over).await? {
            HandedOver::Open { reason } => Some(reason),
            HandedOver::Recorded | HandedOver::Refused | HandedOver::Cancelled | HandedOver::Overtaken => {
                None
            }
        })
    };
    // What is late is dropped where it stands, as a killed process would drop it: the mark that gives the right to submit is
    // taken in the same command as sbatch, which is left to run, so that whoever settles next finds the mark, or the job by
    // its name, and never submits a second time. It gives its place up to another one meanwhile.
    match tokio::time::timeout(bound, settling).await {
        Ok(settled) => settled,
        Err(_) => Ok(Some(format!("the hand-over could not be settled within {} s", bound.as_secs()))),
    }
}

/// Long enough for a large graph to arrive, which a shorter bound would send again and again, and for the commands around it.
fn bound(shop: &Shop) -> Duration {
    let settings = shop.ssh.settings();
    settings.transfer + settings.command
}
