//! **Redaction**: what every engine asks of the event that records one, and what is left of the event it names.

use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use crate::event::{NewEvent, Recorded};
use crate::{AppendError, Appended, StreamHead};

/// The stream that records redactions.
pub const STREAM: &str = "log";
/// The type of the event that records one.
pub const EVENT_TYPE: &str = "log.redacted";

/// Refuses a record that is not a `log.redacted` whose data names `event`: the log does not look into data but here,
/// where a wrong record would take a proof away from the wrong event.
pub fn check(event: Uuid, record: &NewEvent) -> Result<(), AppendError> {
    let refuse = |reason: String| Err(AppendError::Unacceptable { stream: STREAM.into(), reason });
    if record.event_type != EVENT_TYPE {
        return refuse(format!("a redaction is recorded by {EVENT_TYPE}, not {}", record.event_type));
    }
    let id = event.hyphenated().to_string();
    if !record.data.windows(id.len()).any(|window| window.eq_ignore_ascii_case(id.as_bytes())) {
        return refuse(format!("its data does not name event {id}"));
    }
    Ok(())
}

/// Refuses to take the data of a record of a redaction: it says why other data is gone.
pub fn check_target(event: &Recorded) -> Result<(), AppendError> {
    if &*event.stream == STREAM {
        let reason = format!("event {} is in stream {STREAM}, whose events are not redacted", event.id);
        return Err(AppendError::Unacceptable { stream: STREAM.into(), reason });
    }
    Ok(())
}

/// The ids in the data of a record of a redaction. Among them is the one that was redacted.
pub fn named_by(event: &Recorded) -> Vec<Uuid> {
    if &*event.stream != STREAM || &*event.event_type != EVENT_TYPE {
        return Vec::new();
    }
    let data = event.data.as_deref().unwrap_or_default();
    data.windows(36).filter_map(|window| Uuid::try_parse_ascii(window).ok()).collect()
}

/// `event` without salt and data.
pub fn without_data(event: &Recorded) -> Recorded {
    Recorded {
        position: event.position,
        stream: Arc::clone(&event.stream),
        revision: event.revision,
        id: event.id,
        event_type: Arc::clone(&event.event_type),
        schema_version: event.schema_version,
        occurred_at: event.occurred_at,
        recorded_at: event.recorded_at,
        actor: Arc::clone(&event.actor),
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
        tags: event.tags.clone(),
        data: None,
        salt: None,
        commitment: event.commitment,
        prev_hash: event.prev_hash,
        hash: event.hash,
        rendered: OnceLock::new(),
    }
}

/// The answer to a redaction that happened before: where it is recorded.
pub fn repeated(record: &Recorded) -> Appended {
    Appended {
        first_revision: record.revision,
        head: StreamHead { revision: record.revision, hash: record.hash },
        position: record.position,
        repeated: true,
    }
}
