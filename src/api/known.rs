//! Whether a thing exists is asked of the log. While the log is away, reads go on from the read models of this process, and
//! every answer says of when it is ([`AS_OF`], and `Age` once that is not the present).
//!
//! Invariant: nothing is said not to exist on the word of a read model alone; what it does not have while the log is away
//! is 503, not 404.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use beampipe_domain::Aggregate;
use beampipe_log::ReadError;
use chrono::{DateTime, SecondsFormat, Utc};

use super::Api;
use super::problem::Problem;
use crate::handle::{HandleError, Loaded};

/// The time up to which everything in the log is in the answer, RFC 3339.
pub const AS_OF: HeaderName = HeaderName::from_static("beampipe-as-of");
/// How long a read waits for the log before it goes on without.
const PATIENCE: Duration = Duration::from_secs(1);
/// A log that was not heard of for so long is not waited for. An idle one is heard of every second.
const SILENT: Duration = Duration::from_secs(3);
/// An answer that is older is not the present any more.
const PRESENT: Duration = Duration::from_secs(3);

impl Api {
    /// What the log knows of `id`; `None` while it cannot be asked.
    pub async fn known<A: Aggregate>(&self, id: &str) -> Result<Option<Loaded<A>>, Problem> {
        if self.handle.log().health().silent_for > SILENT {
            return Ok(None);
        }
        match tokio::time::timeout(PATIENCE, self.handle.load::<A>(id)).await {
            Err(_) | Ok(Err(HandleError::Read(ReadError::Unavailable(_)))) => Ok(None),
            Ok(loaded) => Ok(Some(loaded?)),
        }
    }

    /// How old the read models of this process may be: for how long the log is silent, or how far behind they are.
    pub fn age(&self) -> Duration {
        let log = self.handle.log();
        let behind = if self.models.position() >= log.head().position {
            0.0
        } else {
            self.models.status().iter().map(|one| one.lag_seconds).fold(0.0, f64::max)
        };
        log.health().silent_for.max(Duration::try_from_secs_f64(behind).unwrap_or_default())
    }
}

/// The row of a thing that the log said is there, or that only a read model could be asked for.
pub fn row<T>(row: Option<T>, log_said_so: bool, what: &str) -> Result<T, Problem> {
    row.ok_or_else(|| {
        if log_said_so {
            let detail = format!("{what} is known, its read model is not there yet");
            return Problem::new("read-model-behind", detail).retry_after(1);
        }
        let detail = format!("the log cannot be asked now whether there is {what}; its read model has none");
        Problem::new("log-unavailable", detail).retry_after(5)
    })
}

/// Says of when an answer is that was begun at `now` with read models of that age.
pub fn say(headers: &mut HeaderMap, now: DateTime<Utc>, age: Duration) {
    let as_of = (now - age).to_rfc3339_opts(SecondsFormat::Millis, true);
    if let Ok(value) = HeaderValue::from_str(&as_of) {
        headers.entry(AS_OF).or_insert(value);
    }
    if age > PRESENT {
        headers.entry(header::AGE).or_insert(HeaderValue::from(age.as_secs()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_is_not_the_present_has_an_age() {
        let now = DateTime::from_timestamp(1_000_000_000, 0).unwrap_or_default();
        let said = |age| {
            let mut headers = HeaderMap::new();
            say(&mut headers, now, age);
            (headers[AS_OF].clone(), headers.get(header::AGE).cloned())
        };
        assert_eq!(said(Duration::from_millis(400)), ("2001-09-09T01:46:39.600Z".parse().unwrap(), None));
        let old = said(Duration::from_secs(31));
        assert_eq!(old, ("2001-09-09T01:46:09.000Z".parse().unwrap(), Some(HeaderValue::from(31))));
    }

    #[test]
    fn what_a_read_model_does_not_have_is_only_missing_if_the_log_could_be_asked() {
        assert_eq!(row::<()>(None, true, "job 1").unwrap_err().slug(), "read-model-behind");
        let away = row::<()>(None, false, "job 1").unwrap_err();
        assert_eq!((away.slug(), away.status().as_u16()), ("log-unavailable", 503));
    }
}
