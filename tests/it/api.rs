//! The API over a real listener: paths below are those of the URLs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod access;
mod accounts;
mod alert_deliveries;
mod alert_rules;
mod bad_input;
mod channel_kinds;
mod events;
mod executions;
mod health;
mod idempotency;
mod jobs;
mod metrics;
mod notification_channels;
mod profiles;
mod projects;
mod silences;
mod sources;
