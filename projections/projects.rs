//! The read model behind projects, their configurations and deployment profiles: follows `project-*` and `profile-*`, reads
//! nothing but its own rows.
//!
//! The project named `*` stands for all; it has a row once all admission was paused.

use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::profile::{Event as F, Spec};
use beampipe_domain::project::{ALL, Event as P};
use rusqlite::{Connection, Result, params};

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{blob, blob_of, json, micros, stream_id, stream_rest};
use crate::{Envelope, Gauges, ProjectGauges};

mod read;
pub use read::*;

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "projects";
    const VERSION: u32 = 1;
    const SCHEMA: &'static str = include_str!("../migrations/views/projects.sql");
    const CATEGORIES: &'static [&'static str] = &["project", "profile"];
    type Rows = ();
    type Gauges = ProjectGauges;

    fn wants(event: &Event) -> bool {
        matches!(event, Event::Project(_) | Event::Profile(_))
    }

    fn apply(db: &Connection, _rows: &mut (), _counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        match &envelope.event {
            Event::Project(event) => project(db, envelope, event),
            Event::Profile(event) => profile(db, envelope, event),
            _ => Ok(()),
        }
    }

    fn gauges(db: &Connection, _counts: &Counts) -> Result<ProjectGauges> {
        let mut gauges = ProjectGauges::default();
        // As many rows as there are surveys: a handful.
        let mut statement = db.prepare_cached(
            "SELECT project_module, paused_reason IS NOT NULL, active_version IS NOT NULL FROM projects",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (project, paused, known): (String, bool, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if project == ALL {
                gauges.all_paused = paused;
            } else if known {
                gauges.paused.insert(project, paused);
            }
        }
        let mut profiles =
            db.prepare_cached("SELECT name, paused_reason IS NOT NULL FROM profiles WHERE removed = 0")?;
        let named = profiles.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        gauges.paused_profiles = named.collect::<Result<_>>()?;
        gauges.profiles = gauges.paused_profiles.len() as u64;
        Ok(gauges)
    }

    fn publish(gauges: &mut Gauges, part: Arc<ProjectGauges>) {
        gauges.projects = part;
    }
}

fn project(db: &Connection, envelope: &Envelope, event: &P) -> Result<()> {
    let recorded = &envelope.recorded;
    let (name, now) = (stream_rest(&recorded.stream), micros(recorded.occurred_at));
    // The first event of a project makes its row.
    db.prepare_cached(
        "INSERT INTO projects (project_module, created_at, revision, last_event_at) VALUES (?1, ?2, ?3, ?2) \
         ON CONFLICT (project_module) DO UPDATE SET revision = ?3, last_event_at = ?2",
    )?
    .execute((name, now, recorded.revision))?;
    match event {
        P::ConfigUploaded(e) => db
            .prepare_cached(
                "INSERT OR REPLACE INTO configs (project_module, version, id, spec_sha256, spec, uploaded_at, \
                 uploaded_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                name,
                e.version,
                blob(&e.config_id),
                e.spec_sha256,
                json(&e.spec),
                now,
                recorded.actor,
            ])?,
        P::ConfigActivated(e) => db
            .prepare_cached("UPDATE projects SET active_version = ?2 WHERE project_module = ?1")?
            .execute((name, e.version))?,
        P::DefaultProfileSet(e) => db
            .prepare_cached(
                "UPDATE projects SET default_profile_id = ?2, default_profile_name = ?3 WHERE project_module = ?1",
            )?
            .execute((name, blob_of(e.profile_id.as_ref()), &e.profile_name))?,
        P::Paused(e) => db
            .prepare_cached("UPDATE projects SET paused_reason = ?2, paused_at = ?3 WHERE project_module = ?1")?
            .execute((name, &e.reason, now))?,
        P::Resumed(_) => db
            .prepare_cached(
                "UPDATE projects SET paused_reason = NULL, paused_at = NULL WHERE project_module = ?1",
            )?
            .execute([name])?,
    };
    Ok(())
}

fn profile(db: &Connection, envelope: &Envelope, event: &F) -> Result<()> {
    let recorded = &envelope.recorded;
    let (id, now) = (stream_id(&recorded.stream), micros(recorded.occurred_at));
    let key = blob(&id);
    match event {
        F::Created(e) => {
            let Spec { name, project_module, .. } = &e.spec;
            db.prepare_cached(
                "INSERT INTO profiles (created_position, id, name, project_module, spec, spec_sha256, profile_revision, \
                 removed, created_at, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9) \
                 ON CONFLICT (id) DO UPDATE SET name = ?3, project_module = ?4, spec = ?5, spec_sha256 = ?6, \
                 profile_revision = ?7, removed = 0, paused_reason = NULL, paused_at = NULL, updated_at = ?8, revision = ?9",
            )?
            .execute(params![
                recorded.position,
                key,
                name,
                project_module,
                json(&e.spec),
                e.spec_sha256,
                e.revision,
                now,
                recorded.revision,
            ])?
        }
        F::Updated(e) => db
            .prepare_cached(
                "UPDATE profiles SET name = ?2, project_module = ?3, spec = ?4, spec_sha256 = ?5, profile_revision = ?6, \
                 updated_at = ?7, revision = ?8 WHERE id = ?1",
            )?
            .execute(params![
                key,
                e.spec.name,
                e.spec.project_module,
                json(&e.spec),
                e.spec_sha256,
                e.revision,
                now,
                recorded.revision,
            ])?,
        F::Removed(_) => db
            .prepare_cached("UPDATE profiles SET removed = 1, updated_at = ?2, revision = ?3 WHERE id = ?1")?
            .execute((key, now, recorded.revision))?,
        F::Paused(e) => db
            .prepare_cached(
                "UPDATE profiles SET paused_reason = ?2, paused_at = ?3, revision = ?4 WHERE id = ?1",
            )?
            .execute((key, &e.reason, now, recorded.revision))?,
        F::Resumed(_) => db
            .prepare_cached(
                "UPDATE profiles SET paused_reason = NULL, paused_at = NULL, revision = ?2 WHERE id = ?1",
            )?
            .execute((key, recorded.revision))?,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use beampipe_domain::profile::{Command as FC, Profile as FS};
    use beampipe_domain::project::{Command as C, Project as PS};

    use super::*;
    use crate::testing::{History, id};

    fn upload(sha: &str) -> C {
        let spec = serde_json::json!({ "sha": sha });
        C::UploadConfig { project_module: "p".into(), spec_sha256: sha.into(), spec }
    }

    #[test]
    fn every_version_is_kept_and_the_last_is_active() {
        let (mut history, mut state) = (History::default(), PS::default());
        for command in [upload("a"), upload("b")] {
            assert!(history.decide("project-p", &mut state, command));
        }
        let folded = history.fold::<Projected>(&[3]);
        let projects = Projects(folded.reader.clone());
        assert_eq!(projects.get("p").unwrap().unwrap().active_version, Some(2));
        let active = projects.active_config("p").unwrap().unwrap();
        assert_eq!((active.version, active.spec["sha"].as_str(), active.active), (2, Some("b"), true));
        let versions: Vec<_> = projects.configs("p").unwrap().iter().map(|c| (c.version, c.active)).collect();
        assert_eq!(versions, [(2, true), (1, false)]);
        let first = beampipe_domain::id::config("p", 1);
        assert_eq!(projects.config(first).unwrap().unwrap().spec_sha256, "a");
    }

    #[test]
    fn pausing_one_is_not_pausing_all() {
        let (mut history, mut state) = (History::default(), PS::default());
        history.decide("project-p", &mut state, upload("a"));
        let pause = |name: &str| C::Pause { project_module: name.into(), reason: "storm".into() };
        history.decide("project-p", &mut state, pause("p"));
        let folded = history.fold::<Projected>(&[]);
        assert_eq!(Projects(folded.reader.clone()).all_paused().unwrap(), None);
        assert!(folded.gauges.projects.paused["p"]);
        history.decide("project-*", &mut PS::default(), pause(ALL));
        history.decide("project-p", &mut state, C::Resume { project_module: "p".into() });
        let folded = history.fold::<Projected>(&[]);
        let projects = Projects(folded.reader.clone());
        assert_eq!(projects.all_paused().unwrap().as_deref(), Some("storm"));
        assert_eq!(projects.list().unwrap().len(), 1, "all is not a project");
        assert!(folded.gauges.projects.all_paused && !folded.gauges.projects.paused["p"]);
    }

    #[test]
    fn a_removed_profile_is_read_and_not_listed() {
        let (mut history, mut state) = (History::default(), FS::default());
        let key = beampipe_domain::id::profile("dim");
        let stream = format!("profile-{key}");
        let spec = Spec { name: "dim".into(), ..Spec::default() };
        let create = FC::Create { spec: spec.clone(), spec_sha256: "1".into() };
        assert!(history.decide(&stream, &mut state, create.clone()));
        assert!(history.decide(&stream, &mut state, FC::Update { spec, spec_sha256: "2".into() }));
        let default = C::SetDefaultProfile { profile: Some((key, "dim".into())) };
        history.decide("project-p", &mut PS::default(), default);
        let folded = history.fold::<Projected>(&[]);
        let profile = Projects(folded.reader.clone()).profile_by_name("dim").unwrap().unwrap();
        assert_eq!((profile.profile_revision, profile.is_default, profile.removed), (2, true, false));
        assert_eq!(folded.gauges.projects.profiles, 1);
        assert!(history.decide(&stream, &mut state, FC::Remove));
        let folded = history.fold::<Projected>(&[]);
        let projects = Projects(folded.reader.clone());
        assert!(projects.profiles().unwrap().is_empty());
        assert!(projects.profile(key).unwrap().unwrap().removed);
        assert_eq!(projects.profile(id(1)).unwrap(), None);
        assert!(history.decide(&stream, &mut state, create));
        let folded = history.fold::<Projected>(&[]);
        assert_eq!(Projects(folded.reader.clone()).profiles().unwrap()[0].profile_revision, 3);
    }
}
