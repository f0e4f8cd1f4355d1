//! What can go wrong with a TAP service, and what the caller may do next.

use std::time::Duration;

/// Why there is no table. [`TapError::may_be_retried`] says whether asking again can help.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("{host} did not answer within {} s", after.as_secs_f64())]
    Timeout { host: String, after: Duration },
    #[error("cannot reach {host}")]
    Unreachable {
        host: String,
        #[source]
        cause: reqwest::Error,
    },
    #[error("{host} answered {status}{}", colon(message))]
    Refused { host: String, status: u16, message: String, retry_after: Option<Duration> },
    #[error("{host} says it is not available{}", colon(message))]
    NotAvailable { host: String, message: String },
    #[error("the query was refused: {message}")]
    Query { message: String },
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the answer was cut after {rows} rows")]
    Overflow { rows: usize },
    #[error("the answer cannot be read: {message}")]
    Malformed { message: String },
    #[error("the job ended as {phase}{}", colon(message))]
    JobEnded { phase: String, message: String },
}

fn colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl TapError {
    /// Whether the same request may succeed later. Queries are reads, so sending one again harms nobody.
    pub fn may_be_retried(&self) -> bool {
        match self {
            Self::Timeout { .. }
            | Self::Unreachable { .. }
            | Self::NotAvailable { .. }
            | Self::JobEnded { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            Self::Query { .. } | Self::TooLarge { .. } | Self::Overflow { .. } | Self::Malformed { .. } => {
                false
            }
        }
    }

    /// The word operators see as `failure_class`.
    pub fn failure_class(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Unreachable { .. } => "connectivity",
            Self::Refused { status, .. } => match status {
                401 => "authentication",
                403 => "authorization",
                404 => "not_found",
                408 => "timeout",
                429 => "rate_limited",
                500.. => "dependency_unavailable",
                _ => "validation",
            },
            Self::NotAvailable { .. } | Self::JobEnded { .. } => "dependency_unavailable",
            Self::Query { .. } | Self::Overflow { .. } => "validation",
            Self::TooLarge { .. } | Self::Malformed { .. } => "unsupported",
        }
    }

    /// A malformed answer, with what is wrong about it.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::Malformed { message: message.into() }
    }
}
