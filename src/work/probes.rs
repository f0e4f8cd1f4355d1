//! **Probes**: whether what work depends on is there. Each dependency is really asked, by a task of its own with a bound of
//! its own, so that one that hangs delays no other.
//!
//! A change is an event (`dependency.up`, `dependency.down`); latency and the time of the last look stay here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::dependency::{Command, Dependency};
use beampipe_domain::profile::Deployment;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::Shop;
use super::lease::Acting;
use crate::archives::tap::TapClient;
use crate::backends::dim::Dim;
use crate::backends::translator::Translator;
use crate::handle::Context;
use crate::project::ProjectConfig;

/// The last look at a dependency.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Look {
    pub up: bool,
    pub checked_at: DateTime<Utc>,
    pub latency_ms: u64,
    pub error: Option<String>,
}

/// An archive as projects name it: the adapter and its address.
type Archive = (String, String);

/// The last look at each dependency, by name.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    looks: Arc<Mutex<BTreeMap<String, Look>>>,
    /// Which dependency stands for which archive.
    archives: Arc<Mutex<BTreeMap<Archive, String>>>,
}

impl Seen {
    pub fn all(&self) -> BTreeMap<String, Look> {
        self.looks.lock().clone()
    }

    fn note(&self, name: &str, look: Look) {
        self.looks.lock().insert(name.to_owned(), look);
    }

    fn keep(&self, names: &BTreeSet<String>) {
        self.looks.lock().retain(|name, _| names.contains(name));
    }

    /// Puts what was seen into the beat of the process that probes.
    pub fn tell(&self, facts: &mut Value) {
        let archives: Vec<(Archive, String)> =
            self.archives.lock().iter().map(|(archive, name)| (archive.clone(), name.clone())).collect();
        facts["looks"] = serde_json::to_value(self.all()).unwrap_or_default();
        facts["archives"] = serde_json::to_value(archives).unwrap_or_default();
    }

    /// Takes over what the process that probes says it has seen; a beat that says nothing of it changes nothing.
    pub fn learn(&self, facts: &Value) {
        let part = |name: &str| facts.get(name).cloned().unwrap_or_default();
        if let Ok(looks) = serde_json::from_value(part("looks")) {
            *self.looks.lock() = looks;
        }
        if let Ok(archives) = serde_json::from_value::<Vec<(Archive, String)>>(part("archives")) {
            *self.archives.lock() = archives.into_iter().collect();
        }
    }

    /// The dependency that stands for an archive.
    pub fn archive(&self, adapter: &str, address: &str) -> String {
        let known = self.archives.lock().get(&(adapter.to_owned(), address.to_owned())).cloned();
        known.unwrap_or_else(|| format!("tap_{adapter}@{address}"))
    }
}

/// Names the dependency that stands for each archive. Two projects may mean different archives by one name: the second is
/// told apart by its host. An archive that has a name keeps it, so that its events go on.
fn named(wanted: &[Archive], before: &BTreeMap<Archive, String>) -> BTreeMap<Archive, String> {
    let mut names: BTreeMap<Archive, String> = before.clone();
    names.retain(|archive, _| wanted.contains(archive));
    for archive in wanted {
        if names.contains_key(archive) {
            continue;
        }
        let (adapter, address) = archive;
        let host = address.parse::<Url>().map(|url| url.authority().to_owned()).unwrap_or_default();
        let plain = format!("tap_{adapter}");
        let choices = [plain.clone(), format!("{plain}@{host}"), format!("{plain}@{address}")];
        let free = choices.into_iter().find(|name| !names.values().any(|taken| taken == name));
        names.insert(archive.clone(), free.unwrap_or(plain));
    }
    names
}

/// The archives of a project that are known to be away, by adapter, with the dependency that says so.
pub fn archives_away(shop: &Shop, config: &ProjectConfig) -> BTreeMap<String, String> {
    let down = down(shop);
    let endpoints = config.endpoints().into_iter();
    let named = endpoints.map(|(adapter, address)| {
        let name = shop.seen.archive(&adapter, &address);
        (adapter, name)
    });
    named.filter(|(_, name)| down.contains(name)).collect()
}

/// The dependencies that are known to be away.
fn down(shop: &Shop) -> BTreeSet<String> {
    let gauges = shop.models.gauges();
    gauges.dependencies.up.iter().filter(|(_, up)| !**up).map(|(name, _)| name.clone()).collect()
}

/// What is asked to see whether a dependency is there.
#[derive(Clone, Debug, PartialEq)]
enum Target {
    Tap(Url),
    Dim { base: String, verify_tls: bool },
    Translator(String),
}

/// Learns what the acting scheduler sees, for a process that probes nothing itself.
pub async fn listen(shop: Arc<Shop>, stop: CancellationToken) {
    let pause = Duration::from_secs(shop.settings.heartbeat_seconds);
    loop {
        for beat in shop.handle.log().beats().await.unwrap_or_default() {
            if beat.facts.get("acting") == Some(&Value::Bool(true)) {
                shop.seen.learn(&beat.facts);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Probes, while this process acts as scheduler, until it is stopped.
pub async fn run(shop: Arc<Shop>, mut acting: Acting, stop: CancellationToken) {
    let mut tasks: HashMap<String, (Target, CancellationToken)> = HashMap::new();
    loop {
        let acts = acting.borrow_and_update().is_some();
        let wanted = if acts { targets(&shop).await } else { Ok(None) };
        if !acts {
            tasks.drain().for_each(|(_, (_, stop))| stop.cancel());
        }
        match wanted {
            Ok(None) => {}
            Ok(Some(wanted)) => {
                shop.seen.keep(&wanted.keys().cloned().collect());
                tasks.retain(|name, (target, stop)| {
                    let stays = wanted.get(name) == Some(target);
                    if !stays {
                        stop.cancel();
                    }
                    stays
                });
                for (name, target) in wanted {
                    tasks.entry(name.clone()).or_insert_with(|| {
                        let stop = stop.child_token();
                        tokio::spawn(probe_on(shop.clone(), name, target.clone(), stop.clone()));
                        (target, stop)
                    });
                }
            }
            Err(error) => tracing::warn!(error, "cannot tell what to probe"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            changed = acting.changed() => if changed.is_err() { stop.cancelled().await },
        }
    }
}

/// What the active configurations and profiles need.
async fn targets(shop: &Shop) -> Result<Option<BTreeMap<String, Target>>, String> {
    let (mut wanted, mut archives) = (BTreeMap::new(), Vec::new());
    let projects = shop.models.projects();
    for project in projects.list().map_err(|error| error.to_string())? {
        let active = projects.active_config(&project.project_module).map_err(|error| error.to_string())?;
        let Some(config) = active else { continue };
        let config = ProjectConfig::from_spec(&config.spec).map_err(|error| error.to_string())?;
        archives.extend(config.endpoints());
    }
    let names = named(&archives, &shop.seen.archives.lock());
    for ((adapter, address), name) in &names {
        let url: Url = address.parse().map_err(|error| format!("adapter {adapter}: {error}"))?;
        wanted.insert(name.clone(), Target::Tap(url));
    }
    *shop.seen.archives.lock() = names;
    let profiles = projects.profiles().map_err(|error| error.to_string())?;
    for profile in profiles {
        let Deployment::RestRemote(remote) = &profile.spec.deployment else { continue };
        let name = &profile.spec.name;
        let target = Target::Dim { base: remote.base_url(), verify_tls: remote.verify_ssl };
        wanted.insert(format!("dim_{name}"), target);
        let tm_url = profile.spec.translation.tm_url.as_ref().or(shop.settings.tm_url.as_ref());
        if let Some(tm_url) = tm_url {
            wanted.insert(format!("translator_{name}"), Target::Translator(tm_url.clone()));
        }
    }
    Ok(Some(wanted))
}

async fn probe_on(shop: Arc<Shop>, name: String, target: Target, stop: CancellationToken) {
    let bound = Duration::from_secs(shop.dependencies.probe_timeout_seconds.max(1));
    let context = Context::system(&shop.clock, "scheduler/probe");
    loop {
        let started = std::time::Instant::now();
        let seen = tokio::select! {
            () = stop.cancelled() => return,
            seen = tokio::time::timeout(bound, ask(&shop, &target)) => seen,
        };
        let error = match seen {
            Ok(answer) => answer.err(),
            Err(_) => Some(format!("no answer within {} s", bound.as_secs())),
        };
        let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let checked_at = shop.clock.now();
        shop.seen.note(&name, Look { up: error.is_none(), checked_at, latency_ms, error: error.clone() });
        let dependency = name.clone();
        let command = match error {
            None => Command::SeeUp { dependency, latency_ms },
            Some(reason) => Command::SeeDown { dependency, reason },
        };
        if let Err(error) = shop.handle.handle::<Dependency>(&name, &context, command).await {
            tracing::warn!(name, %error, "what a probe saw could not be recorded");
        }
        // Spread, so that the probes of one minute do not fall together.
        let pause = Duration::from_secs(shop.dependencies.probe_seconds.max(1)).mul_f64(shop.clock.jitter());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn ask(shop: &Shop, target: &Target) -> Result<(), String> {
    match target {
        Target::Tap(base) => {
            let limits = crate::archives::tap::Limits { retries: 0, ..Default::default() };
            let client = TapClient::new(shop.http.clone(), base.clone(), limits);
            client.probe().await.map(|_| ()).map_err(|error| error.to_string())
        }
        Target::Dim { base, verify_tls } => {
            let http = if *verify_tls { &shop.http } else { &shop.http_unverified };
            Dim::new(http.clone(), base).probe().await.map(|_| ()).map_err(|error| error.to_string())
        }
        Target::Translator(base) => Translator::new(shop.http.clone(), base)
            .version()
            .await
            .map(|_| ())
            .map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_that_share_a_name_are_told_apart_and_keep_what_they_are_called() {
        let archive = |adapter: &str, address: &str| (adapter.to_owned(), address.to_owned());
        let one = archive("casda", "https://one.example/tap");
        let two = archive("casda", "https://two.example/tap");
        let other = archive("casda", "https://two.example/other");
        let first = named(&[one.clone(), two.clone(), one.clone()], &BTreeMap::new());
        assert_eq!((first[&one].as_str(), first[&two].as_str()), ("tap_casda", "tap_casda@two.example"));
        // The order of projects changes; the names do not.
        let second = named(&[other.clone(), two.clone(), one.clone()], &first);
        assert_eq!((&second[&one], &second[&two]), (&first[&one], &first[&two]));
        assert_eq!(second[&other], "tap_casda@https://two.example/other");
        // A name that nobody has any more is free.
        assert_eq!(named(&[two.clone(), other.clone()], &BTreeMap::new())[&two], "tap_casda");
        assert_eq!(
            named(std::slice::from_ref(&other), &second)[&other],
            "tap_casda@https://two.example/other"
        );
    }
}
