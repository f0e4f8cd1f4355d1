//! A **source**: one identifier of one survey, whose data are looked for in archives. Stream `source-{id}`.
//!
//! Absent ─Register→ Registered ─RecordDiscovery→ Registered (its data known by a signature; *pending* when that is new)
//!                       │  ▲ ─────Admit──────→ Registered (reserved for one execution, no longer pending)
//!                       └──┴── Remove → Removed ─Register→ Registered (the same stream goes on)
//!
//! Invariants: a signature is admitted at most once without being discovered anew (`a_signature_is_admitted_once`);
//! nothing is admitted from a disabled or removed source (`a_disabled_source_is_not_admitted`); what did not change does
//! not become pending again (`an_unchanged_signature_does_not_become_pending_again`).

use uuid::Uuid;

use crate::{Aggregate, Rejection};

payload! {
    /// `source.registered`; also what a removed source continues with.
    pub struct Registered {
        pub project_module: String,
        pub source_identifier: String,
        pub enabled: bool,
        /// Hours after which a discovery is stale; absent: as the project's configuration says.
        pub stale_after_hours: Option<f64>,
    }

    /// `source.updated`: its settings as they are now.
    pub struct Updated {
        pub source_identifier: String,
        pub enabled: bool,
        pub stale_after_hours: Option<f64>,
    }

    /// `source.removed`
    pub struct Removed {
        pub source_identifier: String,
    }

    /// `discovery.requested`, by a person.
    pub struct DiscoveryRequested {
        pub source_identifier: String,
    }

    /// What a discovery was made with and how long it took.
    pub struct Check {
        pub job_id: Uuid,
        pub project_config_id: Uuid,
        pub project_config_version: u64,
        pub duration_ms: u64,
    }

    /// `discovery.changed`: data under a signature that was not there at the last look.
    pub struct DiscoveryChanged {
        pub source_identifier: String,
        /// SHA-256 of the prepared metadata, 64 hexadecimal digits.
        pub signature: String,
        pub previous_signature: Option<String>,
        /// Whether this calls for an execution: false when this very signature was executed last.
        pub workflow_run_pending: bool,
        pub dataset_count: u64,
        pub sbids: Vec<String>,
        /// The prepared metadata, an artifact.
        pub metadata_sha256: String,
        pub check: Check,
    }

    /// `discovery.unchanged`
    pub struct DiscoveryUnchanged {
        pub source_identifier: String,
        pub signature: String,
        pub check: Check,
    }

    /// `discovery.no_datasets`: the archive answered, and has nothing.
    pub struct DiscoveryNoDatasets {
        pub source_identifier: String,
        pub check: Check,
    }

    /// `discovery.tap_skipped`: an archive is down, so nothing was asked.
    pub struct DiscoveryTapSkipped {
        pub source_identifier: String,
        pub adapter: String,
        pub reason: String,
        pub check: Check,
    }

    /// `discovery.error`: what the archive answered cannot be used, or the source may not be run.
    pub struct DiscoveryError {
        pub source_identifier: String,
        /// Which query or step, such as `query:visibilities` or `prepare`.
        pub step: String,
        pub error: String,
        pub check: Check,
    }

    /// `discovery.timeout`
    pub struct DiscoveryTimeout {
        pub source_identifier: String,
        pub step: String,
        pub limit_seconds: u64,
        pub check: Check,
    }

    /// `source.admitted`: reserved for an execution.
    pub struct Admitted {
        pub source_identifier: String,
        pub execution_id: Uuid,
        pub signature: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Registered(Registered),
    Updated(Updated),
    Removed(Removed),
    DiscoveryRequested(DiscoveryRequested),
    DiscoveryChanged(DiscoveryChanged),
    DiscoveryUnchanged(DiscoveryUnchanged),
    DiscoveryNoDatasets(DiscoveryNoDatasets),
    DiscoveryTapSkipped(DiscoveryTapSkipped),
    DiscoveryError(DiscoveryError),
    DiscoveryTimeout(DiscoveryTimeout),
    Admitted(Admitted),
}

/// How a look into the archives ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Found { signature: String, dataset_count: u64, sbids: Vec<String>, metadata_sha256: String },
    NoDatasets,
    TapSkipped { adapter: String, reason: String },
    Error { step: String, error: String },
    Timeout { step: String, limit_seconds: u64 },
}

#[derive(Clone, Debug)]
pub enum Command {
    Register { project_module: String, source_identifier: String, enabled: bool },
    Update { enabled: Option<bool>, stale_after_hours: Option<Option<f64>> },
    Remove,
    RequestDiscovery,
    RecordDiscovery { outcome: Outcome, check: Check },
    Admit { execution_id: Uuid, signature: String },
}

/// What is known of a registered (or once registered) source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub project_module: String,
    pub source_identifier: String,
    pub enabled: bool,
    pub stale_after_hours: Option<f64>,
    pub signature: Option<String>,
    pub metadata_sha256: Option<String>,
    pub pending: bool,
    /// The last admission: execution and signature.
    pub admitted: Option<(Uuid, String)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Source {
    #[default]
    Absent,
    Registered(Facts),
    Removed(Facts),
}

impl Source {
    /// What is known, whether or not it was removed.
    pub fn facts(&self) -> Option<&Facts> {
        match self {
            Self::Absent => None,
            Self::Registered(facts) | Self::Removed(facts) => Some(facts),
        }
    }
}

fn not_registered() -> Rejection {
    Rejection::new("source-not-registered", "no such source is registered; register it with POST /sources")
}

impl Aggregate for Source {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "source";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (
                Self::Absent | Self::Removed(_),
                Command::Register { project_module, source_identifier, enabled },
            ) => Ok(vec![Event::Registered(Registered {
                project_module,
                source_identifier,
                enabled,
                stale_after_hours: None,
            })]),
            (Self::Registered(facts), Command::Register { enabled, .. }) => {
                if facts.enabled == enabled {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Updated(Updated {
                    source_identifier: facts.source_identifier.clone(),
                    enabled,
                    stale_after_hours: facts.stale_after_hours,
                })])
            }
            (Self::Absent | Self::Removed(_), _) => Err(not_registered()),
            (Self::Registered(facts), Command::Update { enabled, stale_after_hours }) => {
                let enabled = enabled.unwrap_or(facts.enabled);
                let stale_after_hours = stale_after_hours.unwrap_or(facts.stale_after_hours);
                if enabled == facts.enabled && stale_after_hours == facts.stale_after_hours {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Updated(Updated {
                    source_identifier: facts.source_identifier.clone(),
                    enabled,
                    stale_after_hours,
                })])
            }
            (Self::Registered(facts), Command::Remove) => {
                Ok(vec![Event::Removed(Removed { source_identifier: facts.source_identifier.clone() })])
            }
            (Self::Registered(facts), Command::RequestDiscovery) => {
                Ok(vec![Event::DiscoveryRequested(DiscoveryRequested {
                    source_identifier: facts.source_identifier.clone(),
                })])
            }
            (Self::Registered(facts), Command::RecordDiscovery { outcome, check }) => {
                Ok(vec![discovered(facts, outcome, check)])
            }
            (Self::Registered(facts), Command::Admit { execution_id, signature }) => {
                admit(facts, execution_id, signature)
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        match event {
            Event::Registered(e) => {
                let known = match self {
                    Self::Absent => Facts::default(),
                    Self::Registered(facts) | Self::Removed(facts) => facts,
                };
                Self::Registered(Facts {
                    project_module: e.project_module.clone(),
                    source_identifier: e.source_identifier.clone(),
                    enabled: e.enabled,
                    stale_after_hours: e.stale_after_hours,
                    ..known
                })
            }
            Event::Updated(e) => self.with(|facts| {
                facts.enabled = e.enabled;
                facts.stale_after_hours = e.stale_after_hours;
            }),
            Event::Removed(_) => match self {
                Self::Registered(facts) => Self::Removed(facts),
                other => other,
            },
            Event::DiscoveryChanged(e) => self.with(|facts| {
                facts.signature = Some(e.signature.clone());
                facts.metadata_sha256 = Some(e.metadata_sha256.clone());
                facts.pending = e.workflow_run_pending;
            }),
            Event::DiscoveryNoDatasets(_) => self.with(|facts| {
                facts.signature = None;
                facts.metadata_sha256 = None;
                facts.pending = false;
            }),
            // What cannot be run is not left waiting to be: the next good discovery makes it pending again.
            Event::DiscoveryError(_) => self.with(|facts| {
                facts.signature = None;
                facts.metadata_sha256 = None;
                facts.pending = false;
            }),
            Event::DiscoveryRequested(_)
            | Event::DiscoveryUnchanged(_)
            | Event::DiscoveryTapSkipped(_)
            | Event::DiscoveryTimeout(_) => self,
            Event::Admitted(e) => self.with(|facts| {
                facts.pending = false;
                facts.admitted = Some((e.execution_id, e.signature.clone()));
            }),
        }
    }

    fn tags(&self, id: &str, event: &Event) -> Vec<String> {
        let project = self.facts().map(|facts| facts.project_module.as_str()).unwrap_or_default();
        let mut tags = vec![format!("project:{project}"), format!("source:{id}")];
        if let Event::Admitted(e) = event {
            tags.push(format!("execution:{}", e.execution_id));
        }
        tags
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Source(event) => Some(event),
            _ => None,
        }
    }
}

impl Source {
    fn with(self, change: impl FnOnce(&mut Facts)) -> Self {
        match self {
            // A history that starts with a redacted registration still folds.
            Self::Absent => {
                let mut facts = Facts::default();
                change(&mut facts);
                Self::Registered(facts)
            }
            Self::Registered(mut facts) => {
                change(&mut facts);
                Self::Registered(facts)
            }
            Self::Removed(mut facts) => {
                change(&mut facts);
                Self::Removed(facts)
            }
        }
    }
}

fn discovered(facts: &Facts, outcome: Outcome, check: Check) -> Event {
    let source_identifier = facts.source_identifier.clone();
    match outcome {
        Outcome::Found { signature, .. } if facts.signature.as_ref() == Some(&signature) => {
            Event::DiscoveryUnchanged(DiscoveryUnchanged { source_identifier, signature, check })
        }
        Outcome::Found { signature, dataset_count, sbids, metadata_sha256 } => {
            let executed = facts.admitted.as_ref().is_some_and(|(_, admitted)| *admitted == signature);
            Event::DiscoveryChanged(DiscoveryChanged {
                source_identifier,
                previous_signature: facts.signature.clone(),
                workflow_run_pending: !executed,
                signature,
                dataset_count,
                sbids,
                metadata_sha256,
                check,
            })
        }
        Outcome::NoDatasets => Event::DiscoveryNoDatasets(DiscoveryNoDatasets { source_identifier, check }),
        Outcome::TapSkipped { adapter, reason } => {
            Event::DiscoveryTapSkipped(DiscoveryTapSkipped { source_identifier, adapter, reason, check })
        }
        Outcome::Error { step, error } => {
            Event::DiscoveryError(DiscoveryError { source_identifier, step, error, check })
        }
        Outcome::Timeout { step, limit_seconds } => {
            Event::DiscoveryTimeout(DiscoveryTimeout { source_identifier, step, limit_seconds, check })
        }
    }
}

fn admit(facts: &Facts, execution_id: Uuid, signature: String) -> Result<Vec<Event>, Rejection> {
    if facts.admitted.as_ref() == Some(&(execution_id, signature.clone())) {
        return Ok(vec![]);
    }
    if !facts.enabled {
        return Err(Rejection::new(
            "source-disabled",
            "the source is disabled; enable it with PATCH /sources/{id}",
        ));
    }
    if !facts.pending {
        return Err(Rejection::new(
            "source-not-pending",
            "nothing new was discovered since its last execution",
        ));
    }
    if facts.signature.as_ref() != Some(&signature) {
        return Err(Rejection::new(
            "signature-outdated",
            "the source has been discovered anew in the meantime",
        ));
    }
    Ok(vec![Event::Admitted(Admitted {
        source_identifier: facts.source_identifier.clone(),
        execution_id,
        signature,
    })])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::given;

    fn register() -> Command {
        Command::Register {
            project_module: "wallaby".into(),
            source_identifier: "HIPASSJ1318-21".into(),
            enabled: true,
        }
    }

    fn found(signature: &str) -> Command {
        Command::RecordDiscovery {
            outcome: Outcome::Found {
                signature: signature.into(),
                dataset_count: 3,
                sbids: vec!["34275".into()],
                metadata_sha256: "m".into(),
            },
            check: Check::default(),
        }
    }

    fn admit_as(n: u128, signature: &str) -> Command {
        Command::Admit { execution_id: Uuid::from_u128(n), signature: signature.into() }
    }

    #[test]
    fn a_signature_is_admitted_once() {
        let source = given::<Source>([register(), found("a"), admit_as(1, "a")]);
        assert_eq!(source.decide(admit_as(2, "a")).unwrap_err().code, "source-not-pending");
        assert_eq!(source.decide(admit_as(1, "a")), Ok(vec![]), "the same admission again is no news");
    }

    #[test]
    fn an_unchanged_signature_does_not_become_pending_again() {
        let source = given::<Source>([register(), found("a"), admit_as(1, "a")]);
        let events = source.decide(found("a")).unwrap();
        assert!(matches!(events[..], [Event::DiscoveryUnchanged(_)]));
    }

    #[test]
    fn a_signature_that_returns_to_the_executed_one_is_not_pending() {
        let source = given::<Source>([register(), found("a"), admit_as(1, "a"), found("b"), found("a")]);
        assert!(!source.facts().unwrap().pending);
    }

    #[test]
    fn a_disabled_source_is_not_admitted() {
        let off = Command::Update { enabled: Some(false), stale_after_hours: None };
        let source = given::<Source>([register(), found("a"), off]);
        assert_eq!(source.decide(admit_as(1, "a")).unwrap_err().code, "source-disabled");
    }

    #[test]
    fn a_removed_source_continues_its_stream_when_registered_again() {
        let source = given::<Source>([register(), found("a"), Command::Remove]);
        assert_eq!(source.decide(found("b")).unwrap_err().code, "source-not-registered");
        let events = source.decide(register()).unwrap();
        assert!(matches!(events[..], [Event::Registered(_)]));
    }

    #[test]
    fn a_source_without_datasets_is_never_pending() {
        let none = Command::RecordDiscovery { outcome: Outcome::NoDatasets, check: Check::default() };
        let source = given::<Source>([register(), found("a"), none]);
        assert!(!source.facts().unwrap().pending);
    }

    fn commands() -> impl Strategy<Value = Vec<Command>> {
        let signature = prop_oneof![Just("a"), Just("b")];
        let one = prop_oneof![
            Just(register()),
            Just(Command::Remove),
            Just(Command::RequestDiscovery),
            signature.clone().prop_map(found),
            (1u128..4, signature).prop_map(|(n, s)| admit_as(n, s)),
            any::<bool>().prop_map(|on| Command::Update { enabled: Some(on), stale_after_hours: None }),
            Just(Command::RecordDiscovery { outcome: Outcome::NoDatasets, check: Check::default() }),
        ];
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn no_signature_is_admitted_twice_in_a_row(commands in commands()) {
            let mut source = Source::default();
            let mut last: Option<String> = None;
            for command in commands {
                let Ok(events) = source.decide(command) else { continue };
                for event in events {
                    if let Event::Admitted(e) = &event {
                        prop_assert_ne!(last.as_ref(), Some(&e.signature));
                        last = Some(e.signature.clone());
                    }
                    source = source.evolve(&event);
                }
            }
        }
    }
}
