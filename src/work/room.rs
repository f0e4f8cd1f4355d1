//! **Room** on a deployment profile: `max_concurrent_executions` binds every execution that is to be submitted, whether
//! admission started it or a person.
//!
//! Nothing is reserved. The log has put the executions of a profile into a line, by the position of their
//! `execution.execute_started`; the first of those that have not ended, as many as there is room for, go on. Whoever has
//! read up to an execution's own place has seen everyone before it, so all workers agree, and one that lags behind only
//! waits longer. A job without room is not claimed, so that waiting costs no event.

use beampipe_domain::admission::has_room;
use beampipe_domain::profile::Profile;
use uuid::Uuid;

use super::{JobError, Shop};

/// Whether an execution may go on, as far as its profile is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    Free,
    /// As many as may run at once were asked for before and have not ended.
    Full {
        profile: String,
        most: u32,
    },
    /// Somebody, or its login node's silence, has paused the profile.
    Paused {
        profile: String,
        reason: String,
    },
    /// This process has not read yet that the execution was asked for.
    Unread,
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Free => write!(f, "nothing"),
            Self::Full { profile, most } => write!(
                f,
                "room on deployment profile {profile}: at most {most} at once, and as many were asked for before"
            ),
            Self::Paused { profile, reason } => {
                write!(f, "deployment profile {profile} to be resumed, which is paused: {reason}")
            }
            Self::Unread => write!(f, "the read models of this process"),
        }
    }
}

/// Says whether there is room for an execution.
pub async fn of(shop: &Shop, execution: Uuid) -> Result<Room, JobError> {
    let unread = |error: beampipe_projections::ReadModelError| JobError::Retry(error.to_string());
    let executions = shop.models.executions();
    let Some(place) = executions.place_in_line(execution).map_err(unread)? else { return Ok(Room::Unread) };
    if !place.do_submit {
        return Ok(Room::Free);
    }
    // As the profile is now, and not as it was pinned: who raises a limit wants it to count.
    let profile = shop.handle.load::<Profile>(&place.profile_id.to_string()).await?.state;
    let Profile::Active(facts) = profile else { return Ok(Room::Free) };
    if let Some(reason) = facts.paused {
        return Ok(Room::Paused { profile: facts.spec.name, reason });
    }
    let Some(most) = facts.spec.max_concurrent_executions else { return Ok(Room::Free) };
    let ahead = executions
        .ahead_in_line(place.profile_id, place.executing_position, u64::from(most))
        .map_err(unread)?;
    if has_room(Some(most), ahead) {
        return Ok(Room::Free);
    }
    Ok(Room::Full { profile: facts.spec.name, most })
}
