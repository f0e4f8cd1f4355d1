//! A **deployment profile**: where and how executions run. Stream `profile-{id}`, the id made from its name.
//!
//! Absent ─Create→ Active ─Update→ Active ─Remove→ Removed ─Create→ Active
//!                 Active ─Pause→ Active (paused: nothing is admitted to it) ─Resume→ Active
//!
//! Invariant: a profile keeps its name (`a_profile_keeps_its_name`), because the name is its stream. Executions pin a copy
//! of what they were created with, so later edits touch only later executions. Which profile is a project's default is a
//! fact of the project, not of the profile.

use serde::{Deserialize, Serialize};

use crate::{Aggregate, INSTALLATION, Rejection};

words! {
    /// The partitioning algorithms of the DALiuGE translator that are offered.
    #[derive(Default)]
    pub enum Algorithm { #[default] Metis = "metis", Mysarkar = "mysarkar" }
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// How a logical graph becomes a physical one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Translation {
    #[serde(default)]
    pub algo: Algorithm,
    /// Partitions, at least 1.
    #[serde(default = "one")]
    pub num_par: u32,
    /// Data islands; consoles send 0 for one DIM, which counts as 1.
    #[serde(default = "one")]
    pub num_islands: u32,
    /// The Translator Manager as a worker sees it; absent: the server's setting.
    #[serde(default)]
    pub tm_url: Option<String>,
}

/// A DIM that is reached over REST.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestRemote {
    /// The DIM as the translator sees it; absent: as a worker does.
    #[serde(default)]
    pub dim_host_for_tm: Option<String>,
    #[serde(default)]
    pub dim_port_for_tm: Option<u16>,
    /// The DIM as a worker sees it.
    pub deploy_host: String,
    pub deploy_port: u16,
    #[serde(default)]
    pub use_https: bool,
    #[serde(default = "yes")]
    pub verify_ssl: bool,
}

impl RestRemote {
    /// The base address of the DIM as a worker sees it, without a slash at its end.
    pub fn base_url(&self) -> String {
        let scheme = if self.use_https { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.deploy_host, self.deploy_port)
    }
}

/// A Slurm login node that is reached over SSH.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmRemote {
    pub login_node: String,
    pub ssh_port: Option<u16>,
    pub remote_user: Option<String>,
    pub ssh_credential: Option<String>,
    pub account: String,
    pub home_dir: String,
    pub log_dir: String,
    pub dlg_root: String,
    pub modules: Option<String>,
    pub venv: Option<String>,
    pub environment_setup: Option<String>,
    pub exec_prefix: String,
    pub facility: String,
    pub job_duration_minutes: u32,
    pub num_nodes: u32,
    pub num_islands: u32,
    pub verbose_level: u32,
    pub max_threads: u32,
    pub all_nics: bool,
    pub zerorun: bool,
    pub sleepncopy: bool,
    pub check_with_session: bool,
    pub verify_ssl: Option<bool>,
    pub slurm_template: Option<String>,
    pub container_runtime: Option<String>,
    pub resources: Option<SlurmResources>,
    pub manager_topology: Option<ManagerTopology>,
    /// The login node is asked for its jobs no more often than this, in seconds, by all workers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_floor_seconds: Option<u32>,
    /// The host that the login node is reached through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jump: Option<JumpHost>,
}

/// A host on the way to a login node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JumpHost {
    pub host: String,
    pub ssh_port: Option<u16>,
    /// Absent: the login node's.
    pub remote_user: Option<String>,
    /// Absent: the login node's.
    pub ssh_credential: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmResources {
    pub partition: Option<String>,
    pub nodes: Option<u32>,
    pub tasks: Option<u32>,
    pub cpus_per_task: Option<u32>,
    pub memory: Option<String>,
    pub wall_time_minutes: Option<u32>,
    pub constraint: Option<String>,
    pub quality_of_service: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerTopology {
    pub nodes: Option<u32>,
    pub islands: Option<u32>,
    pub co_host_dim: bool,
}

/// No facility at all: sessions that take some time, and fail or get lost with a probability. For load tests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Simulated {
    /// How long a session runs, in milliseconds.
    pub latency_ms: u64,
    /// From 0 to 1: the session fails.
    pub failure_probability: f64,
    /// From 0 to 1: the answer to a request is lost after it took effect.
    pub loss_probability: f64,
    pub seed: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Deployment {
    RestRemote(RestRemote),
    SlurmRemote(Box<SlurmRemote>),
    Simulated(Simulated),
}

impl Default for Deployment {
    fn default() -> Self {
        Self::Simulated(Simulated::default())
    }
}

impl Deployment {
    /// The kind, as in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RestRemote(_) => "rest_remote",
            Self::SlurmRemote(_) => "slurm_remote",
            Self::Simulated(_) => "simulated",
        }
    }

    /// What a worker has to be able to do to run executions on a profile of this name.
    pub fn capability(&self, profile: &str) -> String {
        match self {
            Self::SlurmRemote(_) => format!("slurm:{profile}"),
            Self::RestRemote(_) | Self::Simulated(_) => "dim".to_owned(),
        }
    }

    /// The name of the scheduler as executions show it.
    pub fn scheduler_name(&self) -> &'static str {
        match self {
            Self::RestRemote(_) => "daliuge",
            Self::SlurmRemote(_) => "slurm",
            Self::Simulated(_) => "simulated",
        }
    }
}

/// Everything about a profile that an execution pins.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    /// The project it belongs to; absent: any may use it.
    #[serde(default)]
    pub project_module: Option<String>,
    /// How many executions may be live on it at once; absent: no limit of its own.
    #[serde(default)]
    pub max_concurrent_executions: Option<u32>,
    pub translation: Translation,
    pub deployment: Deployment,
}

payload! {
    /// `profile.created`
    pub struct Created {
        pub revision: u64,
        pub spec_sha256: String,
        pub spec: Spec,
    }

    /// `profile.updated`
    pub struct Updated {
        pub revision: u64,
        pub spec_sha256: String,
        pub spec: Spec,
    }

    /// `profile.removed`
    pub struct Removed {
        pub name: String,
    }

    /// `profile.paused`: nothing is admitted to it; what runs there goes on.
    pub struct Paused {
        pub name: String,
        pub reason: String,
        /// Whether nobody asked for it: the place did not answer. It is resumed when it does.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub automatic: bool,
    }

    /// `profile.resumed`
    pub struct Resumed {
        pub name: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Created(Created),
    Updated(Updated),
    Removed(Removed),
    Paused(Paused),
    Resumed(Resumed),
}

#[derive(Clone, Debug)]
pub enum Command {
    Create {
        spec: Spec,
        spec_sha256: String,
    },
    Update {
        spec: Spec,
        spec_sha256: String,
    },
    Remove,
    Pause {
        reason: String,
        automatic: bool,
    },
    /// `automatic`: only of a pause that nobody asked for.
    Resume {
        automatic: bool,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub spec: Spec,
    pub spec_sha256: String,
    /// Counts from 1 and rises with every change.
    pub revision: u64,
    pub paused: Option<String>,
    /// Whether nobody asked for the pause.
    pub paused_by_itself: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Profile {
    #[default]
    Absent,
    Active(Facts),
    Removed(Facts),
}

impl Aggregate for Profile {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "profile";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Absent, Command::Create { spec, spec_sha256 }) => {
                Ok(vec![Event::Created(Created { revision: 1, spec_sha256, spec })])
            }
            (Self::Removed(facts), Command::Create { spec, spec_sha256 }) => {
                Ok(vec![Event::Created(Created { revision: facts.revision + 1, spec_sha256, spec })])
            }
            (Self::Active(_), Command::Create { spec, .. }) => Err(Rejection::new(
                "profile-exists",
                format!("a profile named {:?} exists; change it with PATCH", spec.name),
            )),
            (Self::Absent | Self::Removed(_), _) => {
                Err(Rejection::new("profile-unknown", "no such deployment profile"))
            }
            (Self::Active(facts), Command::Update { spec, spec_sha256 }) => {
                if spec.name != facts.spec.name {
                    return Err(Rejection::new(
                        "profile-name-fixed",
                        format!("a profile keeps its name {:?}; create another one instead", facts.spec.name),
                    ));
                }
                if spec_sha256 == facts.spec_sha256 {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Updated(Updated { revision: facts.revision + 1, spec_sha256, spec })])
            }
            (Self::Active(facts), Command::Remove) => {
                Ok(vec![Event::Removed(Removed { name: facts.spec.name.clone() })])
            }
            (Self::Active(facts), Command::Pause { reason, automatic }) => {
                // A person's pause stands; only another word of a person replaces it.
                if facts.paused.is_some() && (automatic || facts.paused.as_ref() == Some(&reason)) {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Paused(Paused { name: facts.spec.name.clone(), reason, automatic })])
            }
            (Self::Active(facts), Command::Resume { automatic }) => {
                if facts.paused.is_none() || automatic && !facts.paused_by_itself {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Resumed(Resumed { name: facts.spec.name.clone() })])
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        let facts = match &self {
            Self::Absent => Facts::default(),
            Self::Active(facts) | Self::Removed(facts) => facts.clone(),
        };
        match event {
            Event::Created(Created { revision, spec_sha256, spec }) => Self::Active(Facts {
                spec: spec.clone(),
                spec_sha256: spec_sha256.clone(),
                revision: *revision,
                paused: None,
                paused_by_itself: false,
            }),
            Event::Updated(Updated { revision, spec_sha256, spec }) => Self::Active(Facts {
                spec: spec.clone(),
                spec_sha256: spec_sha256.clone(),
                revision: *revision,
                ..facts
            }),
            Event::Removed(_) => Self::Removed(facts),
            Event::Paused(e) => {
                Self::Active(Facts { paused: Some(e.reason.clone()), paused_by_itself: e.automatic, ..facts })
            }
            Event::Resumed(_) => Self::Active(Facts { paused: None, paused_by_itself: false, ..facts }),
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        let project = match self {
            Self::Absent => None,
            Self::Active(facts) | Self::Removed(facts) => facts.spec.project_module.as_deref(),
        };
        vec![project.map_or_else(|| INSTALLATION.to_owned(), |project| format!("project:{project}"))]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Profile(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    fn spec(name: &str) -> Spec {
        Spec { name: name.into(), ..Spec::default() }
    }

    fn create() -> Command {
        Command::Create { spec: spec("dim"), spec_sha256: "1".into() }
    }

    #[test]
    fn a_profile_keeps_its_name() {
        let profile = given::<Profile>([create()]);
        let rename = Command::Update { spec: spec("other"), spec_sha256: "2".into() };
        assert_eq!(profile.decide(rename).unwrap_err().code, "profile-name-fixed");
    }

    #[test]
    fn every_change_raises_the_revision() {
        let change = Command::Update { spec: spec("dim"), spec_sha256: "2".into() };
        let profile = given::<Profile>([create(), change.clone()]);
        assert!(matches!(&profile, Profile::Active(facts) if facts.revision == 2));
        assert_eq!(profile.decide(change), Ok(vec![]), "the same again is no news");
        let again = given::<Profile>([create(), Command::Remove, create()]);
        assert!(matches!(again, Profile::Active(facts) if facts.revision == 2));
    }

    #[test]
    fn a_removed_profile_cannot_be_paused() {
        let profile = given::<Profile>([create(), Command::Remove]);
        assert_eq!(
            profile.decide(Command::Pause { reason: "x".into(), automatic: false }).unwrap_err().code,
            "profile-unknown"
        );
    }

    #[test]
    fn a_pause_by_a_person_is_ended_by_a_person_only() {
        let pause = |reason: &str, automatic| Command::Pause { reason: reason.into(), automatic };
        let by_itself = given::<Profile>([create(), pause("no answer", true)]);
        assert_eq!(by_itself.decide(pause("still none", true)), Ok(vec![]), "it is said once");
        assert_eq!(by_itself.decide(Command::Resume { automatic: true }).unwrap().len(), 1);
        let by_hand = given::<Profile>([create(), pause("no answer", true), pause("repairs", false)]);
        assert_eq!(by_hand.decide(Command::Resume { automatic: true }), Ok(vec![]));
        assert_eq!(by_hand.decide(pause("no answer", true)), Ok(vec![]));
        assert_eq!(by_hand.decide(Command::Resume { automatic: false }).unwrap().len(), 1);
    }

    #[test]
    fn the_deployment_kind_is_spelled_as_in_the_contract() {
        let json = serde_json::json!({"kind": "rest_remote", "deploy_host": "h", "deploy_port": 1});
        let deployment: Deployment = serde_json::from_value(json).unwrap();
        assert_eq!(deployment.kind(), "rest_remote");
        assert!(
            serde_json::from_value::<Deployment>(
                serde_json::json!({"kind": "rest_remote", "deploy_host": "h", "deploy_port": 1, "x": 1})
            )
            .is_err()
        );
    }
}
