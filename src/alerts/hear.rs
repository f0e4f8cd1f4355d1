//! Events of the log as alerting hears of them.

use std::ops::ControlFlow;

use beampipe_domain::alerting::Told;
use beampipe_domain::alerting::facts::Facts;
use beampipe_log::{Direction, Filter, Log, ReadError, Recorded};

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

/// How many events are read at once.
const CHUNK: usize = 5000;

/// Why a history could not be told.
#[derive(Debug, thiserror::Error)]
pub enum HearError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Unknown(#[from] DecodeError),
}

/// Tells the log from its beginning until `each` has heard enough; answers how many events were read.
pub async fn history(log: &dyn Log, mut each: impl FnMut(Told) -> ControlFlow<()>) -> Result<u64, HearError> {
    let (mut from, mut read) = (0, 0);
    loop {
        let page = log.read_all(from, Direction::Forward, CHUNK, &Filter::All).await?;
        for recorded in &page.events {
            read += 1;
            if let Some(told) = told(recorded)?
                && each(told).is_break()
            {
                return Ok(read);
            }
        }
        match page.next {
            Some(next) => from = next,
            None => return Ok(read),
        }
        tokio::task::yield_now().await;
    }
}
