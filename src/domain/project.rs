//! A **project**: one survey's configuration through time, and whether it may be worked on. Stream `project-{module}`.
//!
//! Absent ─UploadConfig→ Known (the version is active) ─UploadConfig→ Known (the next version)
//!         Known ─Pause→ Known (paused) ─Resume→ Known
//!
//! The project named [`ALL`] stands for every project: pausing it pauses all admission.
//!
//! Invariants: a revision is never changed, only followed by another (`every_upload_is_a_version_of_its_own`); the same text
//! again is no news (`the_active_config_uploaded_again_is_no_news`).

use uuid::Uuid;

use crate::{Aggregate, INSTALLATION, Rejection, id};

/// The name that means every project. No project can have it: a module name starts with a letter.
pub const ALL: &str = "*";

payload! {
    /// `config.uploaded`
    pub struct ConfigUploaded {
        pub config_id: Uuid,
        /// Counts from 1.
        pub version: u64,
        pub spec_sha256: String,
        /// The configuration, as canonical JSON.
        pub spec: serde_json::Value,
    }

    /// `config.activated`
    pub struct ConfigActivated {
        pub config_id: Uuid,
        pub version: u64,
    }

    /// `project.default_profile_set`
    pub struct DefaultProfileSet {
        pub profile_id: Option<Uuid>,
        pub profile_name: Option<String>,
    }

    /// `project.paused`: nothing is admitted; what runs goes on.
    pub struct Paused {
        pub project_module: String,
        pub reason: String,
    }

    /// `project.resumed`
    pub struct Resumed {
        pub project_module: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    ConfigUploaded(ConfigUploaded),
    ConfigActivated(ConfigActivated),
    DefaultProfileSet(DefaultProfileSet),
    Paused(Paused),
    Resumed(Resumed),
}

#[derive(Clone, Debug)]
pub enum Command {
    UploadConfig { project_module: String, spec_sha256: String, spec: serde_json::Value },
    SetDefaultProfile { profile: Option<(Uuid, String)> },
    Pause { project_module: String, reason: String },
    Resume { project_module: String },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Project {
    /// The active configuration: version and digest.
    pub active: Option<(u64, String)>,
    pub versions: u64,
    pub default_profile: Option<Uuid>,
    pub paused: Option<String>,
}

impl Aggregate for Project {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "project";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::UploadConfig { project_module, spec_sha256, spec } => {
                if self.active.as_ref().is_some_and(|(_, active)| *active == spec_sha256) {
                    return Ok(vec![]);
                }
                let version = self.versions + 1;
                let config_id = id::config(&project_module, version);
                Ok(vec![
                    Event::ConfigUploaded(ConfigUploaded { config_id, version, spec_sha256, spec }),
                    Event::ConfigActivated(ConfigActivated { config_id, version }),
                ])
            }
            Command::SetDefaultProfile { profile } => {
                let (profile_id, profile_name) = profile.unzip();
                if self.default_profile == profile_id {
                    return Ok(vec![]);
                }
                Ok(vec![Event::DefaultProfileSet(DefaultProfileSet { profile_id, profile_name })])
            }
            Command::Pause { project_module, .. } if project_module != ALL && self.active.is_none() => Err(
                Rejection::new("project-unknown", format!("project {project_module:?} has no configuration")),
            ),
            Command::Pause { project_module, reason } => {
                if self.paused.as_ref() == Some(&reason) {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Paused(Paused { project_module, reason })])
            }
            Command::Resume { project_module } => {
                if self.paused.is_none() {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Resumed(Resumed { project_module })])
            }
        }
    }

    fn evolve(mut self, event: &Event) -> Self {
        match event {
            Event::ConfigUploaded(e) => {
                self.versions = e.version;
                self.active = Some((e.version, e.spec_sha256.clone()));
            }
            Event::ConfigActivated(e) => {
                if let Some((version, _)) = &mut self.active {
                    *version = e.version;
                }
            }
            Event::DefaultProfileSet(e) => self.default_profile = e.profile_id,
            Event::Paused(e) => self.paused = Some(e.reason.clone()),
            Event::Resumed(_) => self.paused = None,
        }
        self
    }

    fn tags(&self, id: &str, _event: &Event) -> Vec<String> {
        vec![if id == ALL { INSTALLATION.to_owned() } else { format!("project:{id}") }]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Project(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    fn upload(sha: &str) -> Command {
        Command::UploadConfig {
            project_module: "wallaby".into(),
            spec_sha256: sha.into(),
            spec: serde_json::Value::Null,
        }
    }

    #[test]
    fn every_upload_is_a_version_of_its_own() {
        let project = given::<Project>([upload("a"), upload("b")]);
        assert_eq!(project.active, Some((2, "b".into())));
        let events = project.decide(upload("a")).unwrap();
        assert!(
            matches!(&events[0], Event::ConfigUploaded(e) if e.version == 3),
            "going back is a new version"
        );
    }

    #[test]
    fn the_active_config_uploaded_again_is_no_news() {
        assert_eq!(given::<Project>([upload("a")]).decide(upload("a")), Ok(vec![]));
    }

    #[test]
    fn only_a_known_project_or_all_can_be_paused() {
        let pause = |name: &str| Command::Pause { project_module: name.into(), reason: "storm".into() };
        assert_eq!(Project::default().decide(pause("nope")).unwrap_err().code, "project-unknown");
        assert!(Project::default().decide(pause(ALL)).is_ok());
    }
}
