//! The read model that lets people in: follows `account-*` and `session-*`, reads nothing but its own rows.
//!
//! It has the hashes that passwords, keys and tokens are compared with, and is the only read model with anything private.
//! What has expired is here as it is: expiry depends on the time, and a projection has no clock.

use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::account::Event as A;
use beampipe_domain::session::{Event as S, Pair};
use rusqlite::{Connection, OptionalExtension, Result, params};

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{blob, micros, micros_of, stream_id};
use crate::{AccountGauges, Envelope, Gauges};

mod read;
pub use read::*;

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "accounts";
    const VERSION: u32 = 1;
    const SCHEMA: &'static str = include_str!("../migrations/views/accounts.sql");
    const CATEGORIES: &'static [&'static str] = &["account", "session"];
    type Rows = ();
    type Gauges = AccountGauges;

    fn wants(event: &Event) -> bool {
        matches!(event, Event::Account(_) | Event::Session(_))
    }

    fn apply(db: &Connection, _rows: &mut (), counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        match &envelope.event {
            Event::Account(event) => account(db, counts, envelope, event),
            Event::Session(event) => session(db, counts, envelope, event),
            _ => Ok(()),
        }
    }

    fn gauges(_db: &Connection, counts: &Counts) -> Result<AccountGauges> {
        Ok(AccountGauges {
            accounts: counts.total("accounts"),
            api_keys: counts.total("api_keys"),
            open_sessions: counts.total("sessions"),
        })
    }

    fn publish(gauges: &mut Gauges, part: Arc<AccountGauges>) {
        gauges.accounts = part;
    }
}

fn account(db: &Connection, counts: &mut Counts, envelope: &Envelope, event: &A) -> Result<()> {
    let recorded = &envelope.recorded;
    let (id, now) = (stream_id(&recorded.stream), micros(recorded.occurred_at));
    let key = blob(&id);
    match event {
        A::Created(e) => {
            counts.add("accounts", "", "", 1);
            db.prepare_cached(
                "INSERT INTO accounts (created_position, id, username, name, email, role, password_hash, disabled, \
                 created_at, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9)",
            )?
            .execute(params![
                recorded.position,
                key,
                e.username,
                e.name,
                e.email,
                e.role.as_str(),
                e.password_hash,
                now,
                recorded.revision,
            ])?
        }
        A::PasswordChanged(e) => db
            .prepare_cached(
                "UPDATE accounts SET password_hash = ?2, updated_at = ?3, revision = ?4 WHERE id = ?1",
            )?
            .execute((key, &e.password_hash, now, recorded.revision))?,
        A::Disabled(e) => db
            .prepare_cached(
                "UPDATE accounts SET disabled = 1, disabled_reason = ?2, updated_at = ?3, revision = ?4 WHERE id = ?1",
            )?
            .execute((key, &e.reason, now, recorded.revision))?,
        A::KeyIssued(e) => {
            // Of two redacted issues the id is the same: neither key can be used any more.
            let issued = db
                .prepare_cached(
                    "INSERT INTO api_keys (issued_position, id, account_id, name, scope, secret_sha256, expires_at, \
                     issued_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (id) DO NOTHING",
                )?
                .execute(params![
                    recorded.position,
                    blob(&e.key_id),
                    key,
                    e.name,
                    e.scope.as_str(),
                    e.secret_sha256,
                    micros_of(e.expires_at),
                    now,
                ])?;
            counts.add("api_keys", "", "", i64::try_from(issued).unwrap_or(0));
            issued
        }
        A::KeyRevoked(e) => {
            let sql = "UPDATE api_keys SET revoked_at = ?3 WHERE id = ?1 AND account_id = ?2 AND revoked_at IS NULL";
            let revoked = db.prepare_cached(sql)?.execute((blob(&e.key_id), key, now))?;
            counts.add("api_keys", "", "", -i64::try_from(revoked).unwrap_or(0));
            revoked
        }
    };
    Ok(())
}

fn session(db: &Connection, counts: &mut Counts, envelope: &Envelope, event: &S) -> Result<()> {
    let recorded = &envelope.recorded;
    let (id, now) = (stream_id(&recorded.stream), micros(recorded.occurred_at));
    let key = blob(&id);
    match event {
        S::Opened(e) => {
            counts.add("sessions", "", "", 1);
            let Pair { access_sha256, refresh_sha256, access_expires_at, refresh_expires_at } = &e.pair;
            db.prepare_cached(
                "INSERT INTO sessions (opened_position, id, account_id, access_sha256, refresh_sha256, \
                 access_expires_at, refresh_expires_at, opened_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                recorded.position,
                key,
                blob(&e.account_id),
                access_sha256,
                refresh_sha256,
                micros(*access_expires_at),
                micros(*refresh_expires_at),
                now,
            ])?;
        }
        S::Rotated(e) => {
            let Pair { access_sha256, refresh_sha256, access_expires_at, refresh_expires_at } = &e.pair;
            db.prepare_cached(
                "UPDATE sessions SET access_sha256 = ?2, refresh_sha256 = ?3, access_expires_at = ?4, \
                 refresh_expires_at = ?5 WHERE id = ?1",
            )?
            .execute((
                key,
                access_sha256,
                refresh_sha256,
                micros(*access_expires_at),
                micros(*refresh_expires_at),
            ))?;
        }
        S::Closed(e) => {
            let open = "SELECT 1 FROM sessions WHERE id = ?1 AND closed_at IS NULL";
            if db.prepare_cached(open)?.query_row([key], |_| Ok(())).optional()?.is_some() {
                counts.add("sessions", "", "", -1);
                let sql = "UPDATE sessions SET closed_at = ?2, closed_reason = ?3 WHERE id = ?1";
                db.prepare_cached(sql)?.execute((key, now, &e.reason))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use beampipe_domain::account::{Created, KeyIssued, KeyRevoked, Role};
    use beampipe_domain::session::{Closed, Opened, Rotated};

    use super::*;
    use crate::testing::{History, id};

    fn pair(word: &str) -> Pair {
        Pair {
            access_sha256: format!("access-{word}"),
            refresh_sha256: format!("refresh-{word}"),
            ..Pair::default()
        }
    }

    fn given() -> History {
        let mut history = History::default();
        let ada = beampipe_domain::id::account("ada");
        let stream = format!("account-{ada}");
        let hash = "argon2-planted".to_owned();
        let created =
            Created { username: "Ada".into(), role: Role::Admin, password_hash: hash, ..Created::default() };
        history.tell(&stream, A::Created(created));
        for n in 1..=2 {
            let secret_sha256 = "secret-planted".to_owned();
            let key =
                KeyIssued { key_id: id(n), scope: Role::Operator, secret_sha256, ..KeyIssued::default() };
            history.tell(&stream, A::KeyIssued(key));
        }
        let session = format!("session-{}", id(9));
        history.tell(&session, S::Opened(Opened { account_id: ada, pair: pair("one") }));
        history.tell(&session, S::Rotated(Rotated { pair: pair("two") }));
        history
    }

    #[test]
    fn who_comes_in_is_found_by_name_key_or_session() {
        let folded = given().fold::<Projected>(&[2]);
        let accounts = Accounts(folded.reader.clone());
        let ada = accounts.by_username("ADA").unwrap().unwrap();
        assert_eq!((ada.username.as_str(), ada.role), ("Ada", Role::Admin));
        assert_eq!(accounts.api_key(id(1)).unwrap().unwrap().scope, Role::Operator);
        assert_eq!(accounts.session(id(9)).unwrap().unwrap().refresh_sha256, "refresh-two");
        assert_eq!((accounts.count().unwrap(), accounts.open_sessions(ada.id).unwrap().len()), (1, 1));
        assert_eq!((folded.gauges.accounts.api_keys, folded.gauges.accounts.open_sessions), (2, 1));
    }

    #[test]
    fn what_is_revoked_or_closed_is_counted_once() {
        let mut history = given();
        let stream = format!("account-{}", beampipe_domain::id::account("ada"));
        for _ in 0..2 {
            history.tell(&stream, A::KeyRevoked(KeyRevoked { key_id: id(1) }));
            history.tell(&format!("session-{}", id(9)), S::Closed(Closed { reason: "logged out".into() }));
        }
        let folded = history.fold::<Projected>(&[]);
        let accounts = Accounts(folded.reader.clone());
        assert!(accounts.api_key(id(1)).unwrap().unwrap().revoked_at.is_some());
        assert!(accounts.open_sessions(beampipe_domain::id::account("ada")).unwrap().is_empty());
        assert_eq!((folded.gauges.accounts.api_keys, folded.gauges.accounts.open_sessions), (1, 0));
    }

    #[test]
    fn no_row_shows_a_hash() {
        let folded = given().fold::<Projected>(&[]);
        let accounts = Accounts(folded.reader.clone());
        let ada = accounts.list().unwrap().remove(0);
        let shown = [
            serde_json::to_string(&ada).unwrap(),
            serde_json::to_string(&accounts.api_keys(ada.id).unwrap()).unwrap(),
            serde_json::to_string(&accounts.session(id(9)).unwrap()).unwrap(),
        ];
        for hash in ["argon2", "secret", "access-", "refresh-"] {
            assert!(shown.iter().all(|text| !text.contains(hash)), "{hash} is shown");
        }
    }
}
