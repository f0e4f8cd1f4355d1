//! Finds out who asks, and keeps it until something changes.
//!
//! A token is checked against the read model of accounts. What was found is kept in memory; any event that could take
//! access away (a key revoked, an account disabled, a session rotated or closed) empties that memory, and open event
//! streams look again. A stream that was opened with an access token lives as long as the session, not as the token.

use std::num::NonZeroUsize;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use beampipe_log::{Filter, Position};
use chrono::{DateTime, Utc};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use super::Api;
use super::idempotency::Key;
use super::problem::Problem;
use crate::auth::{Principal, Purpose, Shown};
use crate::handle::Context;

const KEPT: usize = 4096;

/// Whoever sent a request, and what it came from.
#[derive(Clone, Debug)]
pub struct Caller {
    pub principal: Principal,
    pub shown: Shown,
    pub correlation_id: Uuid,
    pub key: Option<Key>,
}

impl Caller {
    /// What the caller's commands are recorded with.
    pub fn context(&self) -> Context {
        Context { actor: self.principal.actor(), correlation_id: self.correlation_id, causation_id: None }
    }

    /// The id of what this request creates: made from the idempotency key if there is one, so that the same request
    /// creates it once, also after a restart and through another process.
    pub fn creates(&self, route: &str, api: &Api) -> Uuid {
        match &self.key {
            Some(key) => beampipe_domain::id::requested(route, &self.principal.actor(), &key.0),
            None => api.clock().id(),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Problem::internal("a route asks for its caller and lets anybody in"))
    }
}

/// Who was recognised lately, and whether that still holds.
pub struct Recognised {
    kept: Mutex<LruCache<Shown, (Position, Principal)>>,
    changes: watch::Sender<Position>,
}

impl Default for Recognised {
    fn default() -> Self {
        let kept = Mutex::new(LruCache::new(NonZeroUsize::new(KEPT).expect("it is not zero")));
        Self { kept, changes: watch::Sender::new(0) }
    }
}

impl Recognised {
    /// Told of the position of every event that may have taken access away.
    pub fn changes(&self) -> watch::Receiver<Position> {
        self.changes.subscribe()
    }

    /// Access may have been taken away by an event up to `position`.
    pub fn changed(&self, position: Position) {
        self.changes.send_if_modified(|at| {
            let later = position > *at;
            *at = (*at).max(position);
            later
        });
        self.kept.lock().clear();
    }

    fn get(&self, shown: &Shown, now: DateTime<Utc>) -> Option<Principal> {
        let present = *self.changes.borrow();
        let mut kept = self.kept.lock();
        let (at, principal) = kept.get(shown)?;
        let good = *at == present && principal.expires_at.is_none_or(|expiry| expiry > now);
        good.then(|| principal.clone())
    }

    /// Keeps what was found while the last change was `at`.
    fn keep(&self, shown: &Shown, at: Position, principal: &Principal) {
        self.kept.lock().put(shown.clone(), (at, principal.clone()));
    }
}

/// The token of a request.
fn token(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
    }
    headers.get("x-api-key")?.to_str().ok().map(str::trim)
}

fn unknown() -> Problem {
    Problem::new("invalid-token", "the token is unknown, has expired or was revoked")
}

impl Api {
    /// Who shows these headers.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<(Principal, Shown), Problem> {
        if !headers.contains_key(header::AUTHORIZATION) && !headers.contains_key("x-api-key") {
            return Err(Problem::new(
                "unauthenticated",
                "this route needs Authorization: Bearer <access token or API key>, or X-API-Key: <API key>",
            ));
        }
        let shown = token(headers)
            .and_then(Shown::read)
            .filter(|shown| shown.purpose != Purpose::Refresh)
            .ok_or_else(unknown);
        let shown = match shown {
            Ok(shown) => shown,
            Err(problem) => {
                self.metrics.refused("token");
                return Err(problem);
            }
        };
        if let Some(principal) = self.access.get(&shown, self.clock().now()) {
            return Ok((principal, shown));
        }
        let at = *self.access.changes().borrow();
        match self.recognise(&shown).await? {
            Some(principal) => {
                self.access.keep(&shown, at, &principal);
                Ok((principal, shown))
            }
            None => {
                self.metrics.refused("token");
                Err(unknown())
            }
        }
    }

    async fn recognise(&self, shown: &Shown) -> Result<Option<Principal>, Problem> {
        if let Some(principal) = self.look_up(shown)? {
            return Ok(Some(principal));
        }
        // It may have been issued a moment ago, by another process.
        let head = self.handle.log().head().position;
        if self.models.accounts().position() >= head {
            return Ok(None);
        }
        self.models.wait_for(head, Duration::from_secs(1)).await;
        self.look_up(shown)
    }

    /// Compares a token with the read model.
    fn look_up(&self, shown: &Shown) -> Result<Option<Principal>, Problem> {
        let now = self.clock().now();
        let accounts = self.models.accounts();
        let (account_id, scope, expires_at) = match shown.purpose {
            Purpose::Refresh => return Ok(None),
            Purpose::Access => match accounts.session(shown.id)? {
                Some(session)
                    if shown.is(&session.access_sha256)
                        && session.closed_at.is_none()
                        && session.access_expires_at > now =>
                {
                    (session.account_id, None, Some(session.access_expires_at))
                }
                _ => return Ok(None),
            },
            Purpose::Key => match accounts.api_key(shown.id)? {
                Some(key)
                    if shown.is(&key.secret_sha256)
                        && key.revoked_at.is_none()
                        && key.expires_at.is_none_or(|expiry| expiry > now) =>
                {
                    (key.account_id, Some(key.scope), key.expires_at)
                }
                _ => return Ok(None),
            },
        };
        let Some(account) = accounts.get(account_id)?.filter(|account| !account.disabled) else {
            return Ok(None);
        };
        Ok(Some(Principal {
            account_id,
            username: account.username,
            key_id: (shown.purpose == Purpose::Key).then_some(shown.id),
            session_id: (shown.purpose == Purpose::Access).then_some(shown.id),
            role: scope.map_or(account.role, |scope| scope.min(account.role)),
            expires_at,
        }))
    }

    /// Until when a stream that was opened by `caller` may go on without another look (`None`: no end is known), or why
    /// it must end now.
    pub fn may_go_on(&self, caller: &Caller) -> Result<Option<DateTime<Utc>>, String> {
        let now = self.clock().now();
        let accounts = self.models.accounts();
        let look = || -> Result<Option<Option<DateTime<Utc>>>, Problem> {
            if accounts.get(caller.principal.account_id)?.is_none_or(|account| account.disabled) {
                return Ok(None);
            }
            Ok(match caller.shown.purpose {
                Purpose::Key => self.look_up(&caller.shown)?.map(|principal| principal.expires_at),
                Purpose::Access | Purpose::Refresh => accounts
                    .session(caller.shown.id)?
                    .filter(|session| session.closed_at.is_none() && session.refresh_expires_at > now)
                    .map(|session| Some(session.refresh_expires_at)),
            })
        };
        match look() {
            Ok(Some(until)) => Ok(until),
            Ok(None) => Err("the token was revoked or has expired, or its account was disabled".to_owned()),
            Err(problem) => Err(problem.detail().to_owned()),
        }
    }

    /// Follows what may take access away, until the service stops.
    pub async fn watch_access(self) {
        let log = self.handle.log();
        let head = log.head().position;
        let mut accounts = log.subscribe(Filter::category("account"), head);
        let mut sessions = log.subscribe(Filter::category("session"), head);
        loop {
            let batch = tokio::select! {
                batch = accounts.next_batch(1000) => batch,
                batch = sessions.next_batch(1000) => batch,
                () = self.stopping.cancelled() => return,
            };
            match batch {
                Ok(batch) => {
                    let last = batch.events.iter().rev().find(|event| takes_away(&event.event_type));
                    if let Some(last) = last.map(|event| event.position) {
                        self.models.wait_for(last, Duration::from_secs(5)).await;
                        self.access.changed(last);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "changes of access cannot be followed; asking again");
                    // Until they can, nothing that was kept is believed.
                    self.access.changed(log.head().position);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

fn takes_away(event_type: &str) -> bool {
    matches!(
        event_type,
        "account.disabled"
            | "account.password_changed"
            | "api_key.revoked"
            | "session.rotated"
            | "session.closed"
            | "log.redacted"
    )
}
