//! Names that make uniqueness a property of the stream: UUIDv5 of what must be unique.
//!
//! Two requests for the same thing arrive at the same stream, where `NoStream` lets one of them win. Event ids are never
//! made this way.

use std::collections::BTreeMap;

use uuid::Uuid;

/// The namespace of every derived id of this product.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d1f_2a3c_58b4_5e0f_9c77_1b0d_4e92_a8c5);

/// UUIDv5 of `kind` and `parts`, each part length-prefixed so that `("a", "bc")` and `("ab", "c")` differ.
fn derive(kind: &str, parts: &[&[u8]]) -> Uuid {
    let mut name = Vec::with_capacity(64);
    for part in std::iter::once(kind.as_bytes()).chain(parts.iter().copied()) {
        name.extend_from_slice(&(part.len() as u64).to_be_bytes());
        name.extend_from_slice(part);
    }
    Uuid::new_v5(&NAMESPACE, &name)
}

/// A source is one identifier in one project.
pub fn source(project_module: &str, identifier: &str) -> Uuid {
    derive("source", &[project_module.as_bytes(), identifier.as_bytes()])
}

/// An account is one user name, whatever its case.
pub fn account(username: &str) -> Uuid {
    derive("account", &[username.to_lowercase().as_bytes()])
}

/// A deployment profile is one name.
pub fn profile(name: &str) -> Uuid {
    derive("profile", &[name.as_bytes()])
}

/// A project's configuration of one version.
pub fn config(project_module: &str, version: u64) -> Uuid {
    derive("config", &[project_module.as_bytes(), &version.to_be_bytes()])
}

/// What a caller asked for under an idempotency key is one thing.
pub fn requested(route: &str, caller: &str, key: &str) -> Uuid {
    derive("request", &[route.as_bytes(), caller.as_bytes(), key.as_bytes()])
}

/// An execution that admission makes of a source, where the last leaf of its stream is `leaf`.
///
/// Leaves are salted, so two installations that run the same survey on one manager never name their sessions alike: the one
/// would find the other's, ended, and take it for its own.
pub fn admitted(source: Uuid, leaf: &[u8]) -> Uuid {
    derive("admission", &[source.as_bytes(), leaf])
}

/// The session that an attempt of an execution runs in, on whatever backend: the name that fences it.
pub fn session(execution: Uuid, attempt: u32) -> Uuid {
    derive("session", &[execution.as_bytes(), &attempt.to_be_bytes()])
}

/// The one job of a kind for an attempt of an execution.
pub fn execution_job(kind: &str, execution: Uuid, attempt: u32) -> Uuid {
    derive("job", &[kind.as_bytes(), execution.as_bytes(), &attempt.to_be_bytes()])
}

/// A job that a cause (an event, or a set of streams at revisions) calls for once.
pub fn caused_job(kind: &str, cause: &[u8]) -> Uuid {
    derive("caused", &[kind.as_bytes(), cause])
}

/// One prepared dataset record of a source.
pub fn metadata(source: Uuid, sbid: &str, index: u64) -> Uuid {
    derive("metadata", &[source.as_bytes(), sbid.as_bytes(), &index.to_be_bytes()])
}

/// An artifact as seen from one execution.
pub fn artifact(execution: Uuid, kind: &str, sha256: &str) -> Uuid {
    derive("artifact", &[execution.as_bytes(), kind.as_bytes(), sha256.as_bytes()])
}

/// What sets an alert apart from others of its rule: its labels, and the event that it tells of if it tells of one.
pub fn fingerprint(labels: &BTreeMap<String, String>, occurrence: Option<Uuid>) -> String {
    let mut parts: Vec<&[u8]> = vec![];
    for (name, value) in labels {
        parts.extend([name.as_bytes(), value.as_bytes()]);
    }
    parts.extend(occurrence.as_ref().map(|event| &event.as_bytes()[..]));
    derive("fingerprint", &parts).simple().to_string()
}

/// The one message that an event of an alert calls for on a channel.
pub fn delivery(cause: Uuid, channel: Uuid) -> Uuid {
    derive("delivery", &[cause.as_bytes(), channel.as_bytes()])
}

/// A rule's summary of the time up to `until`, in seconds since 1970.
pub fn summary(rule: Uuid, until: i64) -> Uuid {
    derive("summary", &[rule.as_bytes(), &until.to_be_bytes()])
}

/// A foreign request id that is no UUID.
pub fn correlation(foreign: &str) -> Uuid {
    derive("correlation", &[foreign.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted_between_fields() {
        assert_ne!(source("ab", "c"), source("a", "bc"));
    }

    #[test]
    fn every_attempt_has_a_session_of_its_own() {
        let execution = source("p", "x");
        assert_ne!(session(execution, 1), session(execution, 2));
        assert_eq!(session(execution, 1), session(execution, 1));
    }

    #[test]
    fn every_occurrence_is_an_alert_of_its_own_and_a_condition_is_one() {
        let labels = BTreeMap::from([("project_module".to_owned(), "p".to_owned())]);
        let of = |n| fingerprint(&labels, Some(Uuid::from_u128(n)));
        assert_ne!(of(1), of(2));
        assert_eq!(fingerprint(&labels, None), fingerprint(&labels, None));
    }

    #[test]
    fn user_names_differ_by_more_than_case() {
        assert_eq!(account("Ada"), account("ada"));
    }
}
