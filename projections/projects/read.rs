//! Reading projects, their configurations, and deployment profiles.

use beampipe_domain::profile::Spec;
use beampipe_domain::project::ALL;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::reader::{ReadModelError, handle};
use crate::sql::blob;

row! {
    /// A project.
    pub struct Project {
        pub project_module: String,
        /// The version of the configuration that is active; absent for a project that was only ever paused.
        pub active_version: Option<u64>,
        pub default_profile_id: Option<Uuid>,
        pub default_profile_name: Option<String>,
        /// Why nothing is admitted, if so.
        pub paused_reason: Option<String>,
        pub paused_at: Option<DateTime<Utc>>,
        pub created_at: DateTime<Utc>,
        pub revision: u64,
        pub last_event_at: DateTime<Utc>,
    }
}

row! {
    /// One version of a project's configuration.
    pub struct Config {
        pub project_module: String,
        pub version: u64,
        pub id: Uuid,
        pub spec_sha256: String,
        pub spec: serde_json::Value,
        pub uploaded_at: DateTime<Utc>,
        /// The actor.
        pub uploaded_by: String,
        pub active: bool,
    }
}

row! {
    /// A deployment profile.
    pub struct Profile {
        pub created_position: u64,
        pub id: Uuid,
        pub name: String,
        pub project_module: Option<String>,
        pub spec: Spec,
        pub spec_sha256: String,
        /// Counts from 1 and rises with every change; the contract's `revision`.
        pub profile_revision: u64,
        pub paused_reason: Option<String>,
        pub paused_at: Option<DateTime<Utc>>,
        pub removed: bool,
        pub created_at: DateTime<Utc>,
        pub updated_at: Option<DateTime<Utc>>,
        /// The revision of its stream.
        pub revision: u64,
        /// Whether it is the default of the project it belongs to, or of any.
        pub is_default: bool,
    }
}

handle! {
    /// Reads projects and profiles.
    Projects
}

fn configs(rest: &str) -> String {
    let columns = Config::columns();
    format!(
        "SELECT {columns} FROM (SELECT configs.*, version = active_version AS active \
         FROM configs JOIN projects USING (project_module)) {rest}"
    )
}

fn profiles(rest: &str) -> String {
    let columns = Profile::columns();
    format!(
        "SELECT {columns} FROM (SELECT profiles.*, EXISTS (SELECT 1 FROM projects WHERE \
         default_profile_id = profiles.id) AS is_default FROM profiles) {rest}"
    )
}

impl Projects {
    pub fn get(&self, project: &str) -> Result<Option<Project>, ReadModelError> {
        let sql = format!("SELECT {} FROM projects WHERE project_module = ?1", Project::columns());
        self.0.one(&sql, [project], Project::from_row)
    }

    /// Every project with a configuration, by name.
    pub fn list(&self) -> Result<Vec<Project>, ReadModelError> {
        let columns = Project::columns();
        let sql = format!(
            "SELECT {columns} FROM projects WHERE active_version IS NOT NULL ORDER BY project_module"
        );
        self.0.all(&sql, [], Project::from_row)
    }

    /// Why all admission is paused, if it is.
    pub fn all_paused(&self) -> Result<Option<String>, ReadModelError> {
        Ok(self.get(ALL)?.and_then(|all| all.paused_reason))
    }

    pub fn active_config(&self, project: &str) -> Result<Option<Config>, ReadModelError> {
        self.0.one(&configs("WHERE project_module = ?1 AND active"), [project], Config::from_row)
    }

    pub fn config(&self, id: Uuid) -> Result<Option<Config>, ReadModelError> {
        self.0.one(&configs("WHERE id = ?1"), [blob(&id)], Config::from_row)
    }

    /// Every version, newest first.
    pub fn configs(&self, project: &str) -> Result<Vec<Config>, ReadModelError> {
        self.0.all(&configs("WHERE project_module = ?1 ORDER BY version DESC"), [project], Config::from_row)
    }

    /// The profile, whether or not it was removed.
    pub fn profile(&self, id: Uuid) -> Result<Option<Profile>, ReadModelError> {
        self.0.one(&profiles("WHERE id = ?1"), [blob(&id)], Profile::from_row)
    }

    pub fn profile_by_name(&self, name: &str) -> Result<Option<Profile>, ReadModelError> {
        self.profile(beampipe_domain::id::profile(name))
    }

    /// Every profile that was not removed, newest first.
    pub fn profiles(&self) -> Result<Vec<Profile>, ReadModelError> {
        self.0.all(&profiles("WHERE removed = 0 ORDER BY created_position DESC"), [], Profile::from_row)
    }
}
