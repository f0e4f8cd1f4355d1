//! What the service says about itself while it runs: `tracing` to standard error, as text or as JSON lines.
//!
//! Standard output belongs to answers, so that a verb's output can be piped. Initialised once, by `serve`; the other verbs
//! say what they do in their own words. Deliberately absent: the story of an execution, which is in the log.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config;

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("telemetry.filter {filter:?} cannot be read: {reason}")]
    Filter { filter: String, reason: String },
    #[error("another tracing subscriber was there first")]
    Taken,
}

/// Checks a filter such as `info` or `beampipe=debug,warn`.
fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(text)
        .map_err(|error| TelemetryError::Filter { filter: text.to_owned(), reason: error.to_string() })
}

/// Starts to write what is traced.
pub fn init(telemetry: &config::Telemetry) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&telemetry.filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let taken = |_| TelemetryError::Taken;
    match telemetry.format.as_str() {
        "json" => builder.json().flatten_event(true).try_init().map_err(taken),
        _ => builder.try_init().map_err(taken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        assert!(filter("beampipe=debug,warn").is_ok());
        let error = filter("beampipe=loud").unwrap_err();
        assert!(error.to_string().contains("beampipe=loud"), "{error}");
    }
}
