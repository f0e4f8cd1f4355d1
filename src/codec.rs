//! Turns events into JSON and back: type names, schema versions, upcasts, and which fields are private.
//!
//! The only place that knows how an event is spelled. Stored bytes never change: when a payload changes its meaning, its
//! version is raised here and an upcast reads the old one. A type or version that is not in the table is
//! [`DecodeError::Unknown`], and whoever follows the log stops there. An event whose data were redacted is read as its
//! type with blank fields.

use std::borrow::Cow;

use beampipe_domain::{self as domain, Event, LogRedacted};
use beampipe_log::Recorded;
use bytes::Bytes;
use serde::de::DeserializeOwned;

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer release: readers ship before writers.
    #[error("event type {event_type} version {version} is not known to this release")]
    Unknown { event_type: String, version: u16 },
    #[error("event {id} of type {event_type} cannot be read")]
    Malformed {
        id: uuid::Uuid,
        event_type: String,
        #[source]
        source: serde_json::Error,
    },
}

/// An event's spelling: its type, its schema version and its JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    pub event_type: &'static str,
    pub schema_version: u16,
    pub data: Bytes,
}

fn read<T: DeserializeOwned + Default>(recorded: &Recorded) -> Result<T, DecodeError> {
    let Some(data) = &recorded.data else { return Ok(T::default()) };
    serde_json::from_slice(data).map_err(|source| DecodeError::Malformed {
        id: recorded.id,
        event_type: recorded.event_type.to_string(),
        source,
    })
}

fn write(payload: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(payload).expect("payloads have string keys and no failing serializer").into()
}

macro_rules! table {
    ($($module:ident::$Variant:ident($Category:ident) = $name:literal v $version:literal),* $(,)?) => {
        /// Every event type with its present schema version.
        pub const TYPES: &[(&str, u16)] = &[$(($name, $version),)* ("log.redacted", 1)];

        /// Whether this release can read a type of event.
        pub fn is_known(event_type: &str, version: u16) -> bool {
            matches!((event_type, version), $(($name, $version))|* | ("log.redacted", 1))
        }

        /// Spells an event.
        pub fn encode(event: &Event) -> Encoded {
            let (event_type, schema_version, data) = match event {
                $(Event::$Category(domain::$module::Event::$Variant(payload)) => ($name, $version, write(payload)),)*
                Event::LogRedacted(payload) => ("log.redacted", 1, write(payload)),
            };
            Encoded { event_type, schema_version, data }
        }

        /// Reads an event.
        pub fn decode(recorded: &Recorded) -> Result<Event, DecodeError> {
            Ok(match (&*recorded.event_type, recorded.schema_version) {
                $(($name, $version) => {
                    Event::$Category(domain::$module::Event::$Variant(read(recorded)?))
                })*
                ("log.redacted", 1) => Event::LogRedacted(read::<LogRedacted>(recorded)?),
                (event_type, version) => {
                    return Err(DecodeError::Unknown { event_type: event_type.to_owned(), version });
                }
            })
        }

        #[cfg(test)]
        fn blank(event_type: &str) -> Option<Event> {
            Some(match event_type {
                $($name => Event::$Category(domain::$module::Event::$Variant(Default::default())),)*
                "log.redacted" => Event::LogRedacted(LogRedacted::default()),
                _ => return None,
            })
        }
    };
}

table! {
    source::Registered(Source) = "source.registered" v 1,
    source::Updated(Source) = "source.updated" v 1,
    source::Removed(Source) = "source.removed" v 1,
    source::DiscoveryRequested(Source) = "discovery.requested" v 1,
    source::DiscoveryChanged(Source) = "discovery.changed" v 1,
    source::DiscoveryUnchanged(Source) = "discovery.unchanged" v 1,
    source::DiscoveryNoDatasets(Source) = "discovery.no_datasets" v 1,
    source::DiscoveryTapSkipped(Source) = "discovery.tap_skipped" v 1,
    source::DiscoveryError(Source) = "discovery.error" v 1,
    source::DiscoveryTimeout(Source) = "discovery.timeout" v 1,
    source::Admitted(Source) = "source.admitted" v 1,
    execution::Created(Execution) = "execution.created" v 1,
    execution::ExecuteStarted(Execution) = "execution.execute_started" v 1,
    execution::Running(Execution) = "execution.running" v 1,
    execution::ManifestBuilt(Execution) = "execution.manifest_built" v 1,
    execution::GraphPrepared(Execution) = "execution.graph_prepared" v 1,
    execution::Translated(Execution) = "execution.translated" v 1,
    execution::SubmissionStarted(Execution) = "execution.submission_started" v 1,
    execution::SubmissionRecorded(Execution) = "execution.submission_recorded" v 1,
    execution::SubmissionRefused(Execution) = "execution.submission_refused" v 1,
    execution::SubmissionUncertain(Execution) = "execution.submission_uncertain" v 1,
    execution::SubmissionAbandoned(Execution) = "execution.submission_abandoned" v 1,
    execution::AwaitingScheduler(Execution) = "execution.awaiting_scheduler" v 1,
    execution::Observed(Execution) = "execution.observed" v 1,
    execution::OutputsVerified(Execution) = "execution.outputs_verified" v 1,
    execution::Completed(Execution) = "execution.completed" v 1,
    execution::Failed(Execution) = "execution.failed" v 1,
    execution::NotSubmitted(Execution) = "execution.not_submitted" v 1,
    execution::CancelRequested(Execution) = "execution.cancel_requested" v 1,
    execution::Cancelled(Execution) = "execution.cancelled" v 1,
    execution::RetryRequested(Execution) = "execution.retry_requested" v 1,
    project::ConfigUploaded(Project) = "config.uploaded" v 1,
    project::ConfigActivated(Project) = "config.activated" v 1,
    project::DefaultProfileSet(Project) = "project.default_profile_set" v 1,
    project::Paused(Project) = "project.paused" v 1,
    project::Resumed(Project) = "project.resumed" v 1,
    profile::Created(Profile) = "profile.created" v 1,
    profile::Updated(Profile) = "profile.updated" v 1,
    profile::Removed(Profile) = "profile.removed" v 1,
    profile::Paused(Profile) = "profile.paused" v 1,
    profile::Resumed(Profile) = "profile.resumed" v 1,
    job::Enqueued(Job) = "job.enqueued" v 1,
    job::Claimed(Job) = "job.claimed" v 1,
    job::HandedBack(Job) = "job.handed_back" v 1,
    job::Completed(Job) = "job.completed" v 1,
    job::Failed(Job) = "job.failed" v 1,
    job::RetryScheduled(Job) = "job.retry_scheduled" v 1,
    job::DeadLettered(Job) = "job.dead_lettered" v 1,
    job::Requeued(Job) = "job.requeued" v 1,
    worker::Started(Worker) = "worker.started" v 1,
    worker::Drained(Worker) = "worker.drained" v 1,
    worker::Resumed(Worker) = "worker.resumed" v 1,
    worker::Stopped(Worker) = "worker.stopped" v 1,
    worker::Lost(Worker) = "worker.lost" v 1,
    lease::Taken(Lease) = "lease.taken" v 1,
    lease::Released(Lease) = "lease.released" v 1,
    dependency::Up(Dependency) = "dependency.up" v 1,
    dependency::Down(Dependency) = "dependency.down" v 1,
    account::Created(Account) = "account.created" v 1,
    account::PasswordChanged(Account) = "account.password_changed" v 1,
    account::Disabled(Account) = "account.disabled" v 1,
    account::KeyIssued(Account) = "api_key.issued" v 1,
    account::KeyRevoked(Account) = "api_key.revoked" v 1,
    session::Opened(Session) = "session.opened" v 1,
    session::Rotated(Session) = "session.rotated" v 1,
    session::Closed(Session) = "session.closed" v 1,
    channel::Created(Channel) = "channel.created" v 1,
    channel::Updated(Channel) = "channel.updated" v 1,
    channel::Removed(Channel) = "channel.removed" v 1,
    channel::Tested(Channel) = "channel.tested" v 1,
    channel::Disabled(Channel) = "channel.disabled" v 1,
    rule::Created(Rule) = "rule.created" v 1,
    rule::Updated(Rule) = "rule.updated" v 1,
    rule::Removed(Rule) = "rule.removed" v 1,
    silence::Created(Silence) = "silence.created" v 1,
    silence::Expired(Silence) = "silence.expired" v 1,
    alert::Pending(Alert) = "alert.pending" v 1,
    alert::Fired(Alert) = "alert.fired" v 1,
    alert::Acknowledged(Alert) = "alert.acknowledged" v 1,
    alert::Cleared(Alert) = "alert.cleared" v 1,
    alert::Reactivated(Alert) = "alert.reactivated" v 1,
    alert::Resolved(Alert) = "alert.resolved" v 1,
    alert::Escalated(Alert) = "alert.escalated" v 1,
    alert::Suppressed(Alert) = "alert.suppressed" v 1,
    follower::FellBehind(Follower) = "projection.fell_behind" v 1,
    follower::CaughtUp(Follower) = "projection.caught_up" v 1,
    delivery::Enqueued(Delivery) = "delivery.enqueued" v 1,
    delivery::Attempted(Delivery) = "delivery.attempted" v 1,
    delivery::Sent(Delivery) = "delivery.sent" v 1,
    delivery::Failed(Delivery) = "alert.delivery_failed" v 1,
    delivery::Requeued(Delivery) = "delivery.requeued" v 1,
}

/// The private fields of an event type: shown in no stream, page or export for others.
pub fn private_fields(event_type: &str) -> &'static [&'static str] {
    match event_type {
        "account.created" | "account.password_changed" => &["password_hash"],
        "api_key.issued" => &["secret_sha256"],
        "session.opened" | "session.rotated" => &["pair"],
        _ => &[],
    }
}

/// An event's data for others: as stored, but for the private fields. `None` after a redaction.
pub fn public_data(recorded: &Recorded) -> Option<Cow<'_, [u8]>> {
    let data = recorded.data.as_ref()?;
    let private = private_fields(&recorded.event_type);
    if private.is_empty() {
        return Some(Cow::Borrowed(data));
    }
    // Data that are no JSON object cannot be shown in part, so they are not shown at all.
    let mut object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(data).unwrap_or_default();
    object.retain(|field, _| !private.contains(&field.as_str()));
    Some(Cow::Owned(write(&object).into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn recorded(event_type: &str, schema_version: u16, data: Option<Bytes>) -> Recorded {
        Recorded {
            position: 1,
            stream: "s-1".into(),
            revision: 0,
            id: uuid::Uuid::nil(),
            event_type: event_type.into(),
            schema_version,
            occurred_at: chrono::DateTime::UNIX_EPOCH,
            recorded_at: chrono::DateTime::UNIX_EPOCH,
            actor: "system:test/1".into(),
            correlation_id: uuid::Uuid::nil(),
            causation_id: None,
            tags: vec![],
            data,
            salt: None,
            commitment: Default::default(),
            prev_hash: None,
            hash: Default::default(),
            rendered: Default::default(),
        }
    }

    fn golden(event_type: &str, version: u16) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/golden/events/{event_type}.v{version}.json"))
    }

    #[test]
    fn every_event_type_has_a_golden_sample_that_reads_and_writes_the_same() {
        for (event_type, version) in TYPES {
            let path = golden(event_type, *version);
            let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{} is missing: {e}", path.display()));
            let sample: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let event = decode(&recorded(event_type, *version, Some(text.into())))
                .unwrap_or_else(|e| panic!("{event_type}: {e:?}"));
            assert_ne!(
                Some(&event),
                blank(event_type).as_ref().filter(|_| sample != serde_json::json!({})),
                "{event_type} says something"
            );
            let encoded = encode(&event);
            assert_eq!(encoded.event_type, *event_type);
            let written: serde_json::Value = serde_json::from_slice(&encoded.data).unwrap();
            assert_eq!(written, sample, "{event_type}");
        }
    }

    #[test]
    fn every_golden_sample_is_of_a_known_type() {
        let known: BTreeSet<String> =
            TYPES.iter().map(|(name, version)| format!("{name}.v{version}.json")).collect();
        for file in std::fs::read_dir(golden("x", 1).parent().unwrap()).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(known.contains(&name), "{name} is the sample of no event");
        }
    }

    #[test]
    fn a_redacted_event_is_read_as_its_type_with_blank_fields() {
        for (event_type, version) in TYPES {
            assert_eq!(Some(decode(&recorded(event_type, *version, None)).unwrap()), blank(event_type));
        }
    }

    #[test]
    fn an_unknown_type_or_version_is_refused() {
        let unknown = |t, v| decode(&recorded(t, v, Some(Bytes::from_static(b"{}"))));
        assert!(matches!(unknown("source.eaten", 1), Err(DecodeError::Unknown { .. })));
        assert!(matches!(unknown("source.removed", 2), Err(DecodeError::Unknown { version: 2, .. })));
    }

    #[test]
    fn private_fields_are_shown_to_nobody() {
        for (event_type, version) in TYPES {
            let text = std::fs::read(golden(event_type, *version)).unwrap();
            let recorded = recorded(event_type, *version, Some(text.into()));
            let shown = public_data(&recorded).unwrap();
            let shown = String::from_utf8(shown.to_vec()).unwrap();
            for word in ["sha256\":\"secret", "argon2", "refresh_sha256"] {
                assert!(!shown.contains(word), "{event_type} shows {word}");
            }
        }
    }
}
