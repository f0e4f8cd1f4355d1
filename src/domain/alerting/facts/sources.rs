//! Sources, and what was discovered of them.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Count, Facts, What};
use crate::alerting::Told;
use crate::source::{DiscoveryChanged, Event as E, Registered};

/// What is known of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub project: String,
    pub identifier: String,
    pub enabled: bool,
    pub removed: bool,
    /// Since when it waits for an execution, and the event that said so.
    pub pending: Option<(DateTime<Utc>, Uuid)>,
}

impl Source {
    fn counts(&self) -> bool {
        self.enabled && !self.removed
    }
}

impl Facts {
    pub(super) fn source(&mut self, told: &Told, event: &E) {
        match event {
            E::Registered(e) => self.registered(told, e),
            E::Updated(e) => self.change(told.uuid(), |source| source.enabled = e.enabled),
            E::Removed(_) => self.change(told.uuid(), |source| source.removed = true),
            E::Admitted(_) => self.change(told.uuid(), |source| source.pending = None),
            E::DiscoveryRequested(_) => {}
            E::DiscoveryChanged(e) => {
                self.discovered(told, Count::Changed);
                self.changed(told, e);
            }
            E::DiscoveryUnchanged(_) => self.discovered(told, Count::Unchanged),
            E::DiscoveryTapSkipped(_) => self.discovered(told, Count::TapSkipped),
            E::DiscoveryTimeout(_) => self.discovered(told, Count::DiscoveryTimeout),
            // Nothing is known of its data any more, so it does not wait.
            E::DiscoveryNoDatasets(_) => {
                self.discovered(told, Count::NoDatasets);
                self.change(told.uuid(), |source| source.pending = None);
            }
            E::DiscoveryError(_) => {
                self.discovered(told, Count::DiscoveryError);
                self.change(told.uuid(), |source| source.pending = None);
            }
        }
    }

    fn registered(&mut self, told: &Told, e: &Registered) {
        let id = told.uuid();
        // A redacted registration still belongs to its project.
        let project = Some(e.project_module.clone()).filter(|module| !module.is_empty());
        let project = project.or_else(|| told.project.clone()).unwrap_or_default();
        if self.sources.contains_key(&id) {
            self.change(id, |source| (source.removed, source.enabled) = (false, e.enabled));
            return;
        }
        let of = self.of_project(&project);
        of.sources += u64::from(e.enabled);
        of.discovered_at.get_or_insert(told.occurred_at);
        let identifier = e.source_identifier.clone();
        let source = Source { project, identifier, enabled: e.enabled, removed: false, pending: None };
        self.sources.insert(id, source);
    }

    /// Changes a source, and what is counted of it with it.
    fn change(&mut self, id: Uuid, change: impl FnOnce(&mut Source)) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        let before = (source.counts(), source.pending);
        change(source);
        let after = (source.counts(), source.pending);
        if before == after {
            return;
        }
        let Some(project) = self.projects.get_mut(&source.project) else { return };
        project.sources = project.sources + u64::from(after.0) - u64::from(before.0);
        if let (true, Some((since, _))) = before {
            project.pending.remove(&(since, id));
        }
        if let (true, Some((since, _))) = after {
            project.pending.insert((since, id));
        }
    }

    fn discovered(&mut self, told: &Told, count: Count) {
        let Some(source) = self.sources.get(&told.uuid()) else { return };
        let module = source.project.clone();
        let project = self.of_project(&module);
        project.minutes.add(told.occurred_at, count);
        project.discovered_at = project.discovered_at.max(Some(told.occurred_at));
    }

    fn changed(&mut self, told: &Told, e: &DiscoveryChanged) {
        let pending = e.workflow_run_pending.then_some((told.occurred_at, told.id));
        // Who waits already waits since then.
        self.change(told.uuid(), |source| source.pending = pending.and(source.pending.or(pending)));
        let source = self.sources.get(&told.uuid()).map(|source| source.identifier.clone());
        let source = source.unwrap_or_else(|| e.source_identifier.clone());
        self.happens(told, told.project.clone(), What::Changed { source });
    }
}
