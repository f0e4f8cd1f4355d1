//! The connections that are open: one for each way in, shared by all who use it.
//!
//! A broken connection is replaced when somebody next needs it. What had left over it is not repeated; what surely had not
//! is, once. Those who wait for the same attempt to connect share its failure, so that a dead node costs each of them one
//! time-out and not one after the other.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::command::{self, Command, Output};
use super::credentials::Credentials;
use super::files::{Content, Files, Part};
use super::link::Link;
use super::{Class, Error, Settings, Target};

/// Connections by target. Clones share them.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    credentials: Credentials,
    settings: Settings,
    places: Mutex<HashMap<Target, Arc<Place>>>,
}

#[derive(Default)]
struct Place {
    state: AsyncMutex<State>,
    /// Attempts to connect that have ended.
    attempts: AtomicU64,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    failure: Option<Error>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("connections", &self.open_connections()).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool without connections yet.
    pub fn new(credentials: Credentials, settings: Settings) -> Self {
        Self { inner: Arc::new(Inner { credentials, settings, places: Mutex::default() }) }
    }

    pub fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The ways in whose connection is open.
    pub fn open_connections(&self) -> Vec<Target> {
        let places: Vec<_> = self.inner.places.lock().iter().map(|(t, p)| (t.clone(), p.clone())).collect();
        let open = |place: &Place| {
            // One that is just being opened is not yet open.
            place
                .state
                .try_lock()
                .is_ok_and(|state| state.link.as_ref().is_some_and(|link| !link.is_closed()))
        };
        places.into_iter().filter(|(_, place)| open(place)).map(|(target, _)| target).collect()
    }

    /// Sees that there is a connection.
    pub async fn connect(&self, target: &Target) -> Result<(), Error> {
        self.link(target).await.map(|_| ())
    }

    /// Gives up a connection: its profile has changed or is paused.
    pub fn forget(&self, target: &Target) {
        self.inner.places.lock().remove(target);
    }

    /// Runs a command and waits for its end.
    pub async fn run(&self, target: &Target, command: impl Into<Command>) -> Result<Output, Error> {
        let command = command.into();
        let link = self.link(target).await?;
        match command::run(&link, &command, &self.inner.settings).await {
            Err(error) if error.class() == Class::NotSent && link.is_closed() => {
                command::run(&*self.link(target).await?, &command, &self.inner.settings).await
            }
            done => done,
        }
    }

    /// A channel for files.
    pub async fn files(&self, target: &Target) -> Result<Files, Error> {
        let link = self.link(target).await?;
        match Files::open(link.clone(), &self.inner.settings).await {
            Err(error) if error.class() == Class::NotSent && link.is_closed() => {
                Files::open(self.link(target).await?, &self.inner.settings).await
            }
            done => done,
        }
    }

    /// Writes one file; see [`Files::upload`].
    pub async fn upload(&self, target: &Target, path: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
        self.files(target).await?.upload(path, bytes, mode).await
    }

    /// Reads one file; see [`Files::read`].
    pub async fn read(
        &self,
        target: &Target,
        path: &str,
        part: Part,
        limit: usize,
    ) -> Result<Content, Error> {
        self.files(target).await?.read(path, part, limit).await
    }

    /// Makes a directory and what leads to it.
    pub async fn make_dirs(&self, target: &Target, path: &str, mode: u32) -> Result<(), Error> {
        self.files(target).await?.make_dirs(path, mode).await
    }

    /// The connection to `target`, opened if it is not.
    fn link<'a>(
        &'a self,
        target: &'a Target,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Link>, Error>> + Send + 'a>> {
        Box::pin(async move {
            let place = self.inner.places.lock().entry(target.clone()).or_default().clone();
            let before = place.attempts.load(Ordering::Acquire);
            let mut state = place.state.lock().await;
            if let Some(link) = state.link.as_ref().filter(|link| !link.is_closed()) {
                return Ok(link.clone());
            }
            state.link = None;
            if place.attempts.load(Ordering::Acquire) > before
                && let Some(failure) = &state.failure
            {
                return Err(failure.clone());
            }
            let opened = self.open(target).await.map(Arc::new);
            place.attempts.fetch_add(1, Ordering::Release);
            state.failure = opened.as_ref().err().cloned();
            state.link = opened.as_ref().ok().cloned();
            opened
        })
    }

    async fn open(&self, target: &Target) -> Result<Link, Error> {
        let through = match &target.jump {
            None => None,
            Some(jump) => Some(self.link(jump).await?),
        };
        let (credentials, name) = (self.inner.credentials.clone(), target.slot.clone());
        // Opening an encrypted key takes a while on purpose.
        let slot = tokio::task::spawn_blocking(move || credentials.load(&name))
            .await
            .map_err(|error| Error::not_sent(target, "the credential slot was not read").because(error))??;
        Link::open(target, slot, &self.inner.settings, through).await
    }
}
