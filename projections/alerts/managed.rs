//! What people keep: channels, rules and silences.

use beampipe_domain::channel::{Created, Event as C, Updated};
use beampipe_domain::id;
use beampipe_domain::rule::{self, Event as R};
use beampipe_domain::silence::Event as S;
use rusqlite::{Connection, Result, params};
use uuid::Uuid;

use crate::Envelope;
use crate::sql::{blob, column, json, micros, stream_id};

pub fn channel(db: &Connection, envelope: &Envelope, event: &C) -> Result<()> {
    let recorded = &envelope.recorded;
    let (id, now) = (stream_id(&recorded.stream), micros(recorded.occurred_at));
    let key = blob(&id);
    match event {
        C::Created(Created { revision, spec }) => db
            .prepare_cached(
                "INSERT INTO channels (created_position, id, name, kind, spec, enabled, channel_revision, removed, \
                 created_at, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9)",
            )?
            .execute(params![
                recorded.position,
                key,
                spec.name,
                spec.config.kind(),
                json(spec),
                spec.enabled,
                revision,
                now,
                recorded.revision,
            ])?,
        C::Updated(Updated { revision, spec }) => db
            .prepare_cached(
                "UPDATE channels SET name = ?2, kind = ?3, spec = ?4, enabled = ?5, \
                 disabled_reason = CASE WHEN ?5 THEN NULL ELSE disabled_reason END, channel_revision = ?6, \
                 failing_since = NULL, failing_attempts = 0, failing_deliveries = 0, \
                 updated_at = ?7, revision = ?8 WHERE id = ?1",
            )?
            .execute(params![
                key,
                spec.name,
                spec.config.kind(),
                json(spec),
                spec.enabled,
                revision,
                now,
                recorded.revision,
            ])?,
        C::Removed(_) => db
            .prepare_cached("UPDATE channels SET removed = 1, updated_at = ?2, revision = ?3 WHERE id = ?1")?
            .execute((key, now, recorded.revision))?,
        C::Tested(e) => db
            .prepare_cached(
                "UPDATE channels SET last_test_at = ?2, last_test_status = ?3, last_test_code = ?4, revision = ?5 \
                 WHERE id = ?1",
            )?
            .execute((key, now, if e.taken { "sent" } else { "failed" }, e.code, recorded.revision))?,
        C::Disabled(e) => {
            owe_notices(db, envelope, &id, &e.reason)?;
            db.prepare_cached(
                "UPDATE channels SET enabled = 0, disabled_reason = ?2, channel_revision = ?3, updated_at = ?4, \
                 revision = ?5 WHERE id = ?1",
            )?
            .execute((key, &e.reason, e.revision, now, recorded.revision))?
        }
    };
    Ok(())
}

/// Others are told that a channel was disabled: those that the same rules name; if there are none, all that are enabled.
fn owe_notices(db: &Connection, envelope: &Envelope, disabled: &Uuid, reason: &str) -> Result<()> {
    let recorded = &envelope.recorded;
    let mut named = db.prepare_cached(
        "SELECT DISTINCT named.value FROM rules, json_each(rules.spec, '$.channel_ids') AS named \
         WHERE rules.removed = 0 AND rules.enabled = 1 \
         AND EXISTS (SELECT 1 FROM json_each(rules.spec, '$.channel_ids') WHERE value = ?1)",
    )?;
    let named: Vec<String> =
        named.query_map([disabled.to_string()], |row| row.get(0))?.collect::<Result<_>>()?;
    let mut others = db.prepare_cached(
        "SELECT id FROM channels WHERE removed = 0 AND enabled = 1 AND id <> ?1 ORDER BY created_position",
    )?;
    let others: Vec<Uuid> =
        others.query_map([blob(disabled)], |row| column(row, 0))?.collect::<Result<_>>()?;
    let mut told: Vec<Uuid> =
        others.iter().filter(|channel| named.contains(&channel.to_string())).copied().collect();
    if told.is_empty() {
        told = others;
    }
    for channel in told {
        db.prepare_cached(
            "INSERT OR IGNORE INTO notices (delivery_id, cause, channel_id, disabled_id, name, kind, reason, disabled_at, \
             position) SELECT ?1, ?2, ?3, ?4, name, kind, ?5, ?6, ?7 FROM channels WHERE id = ?4 \
             AND NOT EXISTS (SELECT 1 FROM deliveries WHERE id = ?1)",
        )?
        .execute(params![
            blob(&id::delivery(recorded.id, channel)),
            blob(&recorded.id),
            blob(&channel),
            blob(disabled),
            reason,
            micros(recorded.occurred_at),
            recorded.position,
        ])?;
    }
    Ok(())
}

pub fn rule(db: &Connection, envelope: &Envelope, event: &R) -> Result<()> {
    let recorded = &envelope.recorded;
    let (id, now) = (stream_id(&recorded.stream), micros(recorded.occurred_at));
    let key = blob(&id);
    match event {
        R::Created(rule::Created { version, spec }) => db
            .prepare_cached(
                "INSERT INTO rules (created_position, id, name, project_module, spec, rule_version, enabled, removed, \
                 created_at, revision, trigger_kind) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9, ?10)",
            )?
            .execute(params![
                recorded.position,
                key,
                spec.name,
                spec.project_module,
                json(spec),
                version,
                spec.enabled,
                now,
                recorded.revision,
                spec.trigger.kind(),
            ])?,
        R::Updated(rule::Updated { version, spec }) => db
            .prepare_cached(
                "UPDATE rules SET name = ?2, project_module = ?3, spec = ?4, rule_version = ?5, enabled = ?6, \
                 updated_at = ?7, revision = ?8, trigger_kind = ?9 WHERE id = ?1",
            )?
            .execute(params![
                key,
                spec.name,
                spec.project_module,
                json(spec),
                version,
                spec.enabled,
                now,
                recorded.revision,
                spec.trigger.kind(),
            ])?,
        R::Removed(_) => db
            .prepare_cached("UPDATE rules SET removed = 1, updated_at = ?2, revision = ?3 WHERE id = ?1")?
            .execute((key, now, recorded.revision))?,
    };
    Ok(())
}

pub fn silence(db: &Connection, envelope: &Envelope, event: &S) -> Result<()> {
    let recorded = &envelope.recorded;
    let id = stream_id(&recorded.stream);
    match event {
        S::Created(e) => db
            .prepare_cached(
                "INSERT INTO silences (created_position, id, matchers, comment, created_by, starts_at, ends_at, created_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                recorded.position,
                blob(&id),
                json(&e.matchers),
                e.comment,
                recorded.actor,
                micros(e.starts_at),
                micros(e.ends_at),
                micros(recorded.occurred_at),
            ])?,
        S::Expired(e) => db
            .prepare_cached("UPDATE silences SET expired_at = ?2 WHERE id = ?1")?
            .execute((blob(&id), micros(e.at)))?,
    };
    Ok(())
}
