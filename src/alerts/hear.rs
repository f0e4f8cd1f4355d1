//! Events of the log as alerting hears of them.

use beampipe_domain::alerting::Told;
use beampipe_domain::alerting::facts::Facts;
use beampipe_log::Recorded;

use crate::codec::{self, DecodeError};

/// The event, if it tells alerting anything. One that this release does not know is an error and never skipped.
pub fn told(recorded: &Recorded) -> Result<Option<Told>, DecodeError> {
    let known = codec::is_known(&recorded.event_type, recorded.schema_version);
    if known && !Facts::wants(&recorded.event_type) {
        return Ok(None);
    }
    let event = codec::decode(recorded)?;
    let stream = recorded.stream.split_once('-').map_or("", |(_, rest)| rest).to_owned();
    let project = recorded.tags.iter().find_map(|tag| tag.strip_prefix("project:")).map(str::to_owned);
    Ok(Some(Told {
        id: recorded.id,
        stream,
        occurred_at: recorded.occurred_at,
        recorded_at: recorded.recorded_at,
        project,
        event,
    }))
}
