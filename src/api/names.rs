//! What actors are called. The log keeps ids, because names are personal data; answers show names.
//!
//! A user or key keeps its name for ever, so a name that was looked up once is kept. An actor that acted before it was
//! created cannot be: the read model is waited for until it contains the event, then asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use beampipe_log::Recorded;
use beampipe_projections::Models;
use parking_lot::RwLock;
use uuid::Uuid;

/// How long the read model of accounts is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The names that were looked up so far.
#[derive(Debug, Default)]
pub struct Names(RwLock<HashMap<Box<str>, Arc<str>>>);

fn has_a_name(actor: &str) -> bool {
    actor.starts_with("user:") || actor.starts_with("key:")
}

impl Names {
    /// The name of an actor that was looked up before; one of the system is its own name.
    pub fn known(&self, actor: &str) -> Option<Arc<str>> {
        if !has_a_name(actor) {
            return Some(actor.into());
        }
        self.0.read().get(actor).cloned()
    }

    /// What to show for an actor.
    pub fn of(&self, actor: &Arc<str>) -> Arc<str> {
        if !has_a_name(actor) {
            return Arc::clone(actor);
        }
        self.0.read().get(&**actor).cloned().unwrap_or_else(|| Arc::clone(actor))
    }

    /// Looks up every actor of `events` that is not known yet.
    pub async fn learn(&self, models: &Models, events: &[Arc<Recorded>]) {
        let mut last: Option<&Arc<str>> = None;
        for event in events {
            // Most batches have one actor.
            if last.is_some_and(|last| Arc::ptr_eq(last, &event.actor) || **last == *event.actor) {
                continue;
            }
            last = Some(&event.actor);
            if has_a_name(&event.actor) && !self.0.read().contains_key(&*event.actor) {
                self.look_up(models, event).await;
            }
        }
    }

    async fn look_up(&self, models: &Models, event: &Recorded) {
        let caught_up = models.wait_for(event.position, PATIENCE).await;
        match name(models, &event.actor) {
            Some(name) => {
                self.0.write().insert((*event.actor).into(), name.into());
            }
            // Nobody of that id was ever created: its id is all there is to show.
            None if caught_up => {
                self.0.write().insert((*event.actor).into(), Arc::clone(&event.actor));
            }
            None => {}
        }
    }

    /// The name of an actor, looked up now if need be.
    pub fn resolve(&self, models: &Models, actor: &str) -> Arc<str> {
        if let Some(known) = self.known(actor) {
            return known;
        }
        match name(models, actor) {
            Some(name) => {
                let name: Arc<str> = name.into();
                self.0.write().insert(actor.into(), Arc::clone(&name));
                name
            }
            None => actor.into(),
        }
    }
}

fn name(models: &Models, actor: &str) -> Option<String> {
    let (kind, id) = actor.split_once(':')?;
    let id = Uuid::try_parse(id).ok()?;
    let found = match kind {
        "user" => models.accounts().get(id).map(|account| account.map(|account| account.username)),
        "key" => models.accounts().api_key(id).map(|key| key.map(|key| key.name)),
        _ => return None,
    };
    match found {
        Ok(name) => name.map(|name| format!("{kind}:{name}")),
        Err(error) => {
            tracing::warn!(%error, "the name of an actor could not be looked up");
            None
        }
    }
}
