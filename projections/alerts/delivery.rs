//! Deliveries and their attempts.

use beampipe_domain::delivery::{Attempted, Event as D};
use rusqlite::{Connection, OptionalExtension, Result, params};
use uuid::Uuid;

use crate::Envelope;
use crate::counts::Counts;
use crate::sql::{blob, blob_of, json, micros, micros_of, stream_id};

pub fn apply(db: &Connection, counts: &mut Counts, envelope: &Envelope, event: &D) -> Result<()> {
    let recorded = &envelope.recorded;
    let (id, now) = (stream_id(&recorded.stream), micros(recorded.occurred_at));
    let key = blob(&id);
    match event {
        D::Enqueued(e) => {
            db.prepare_cached("DELETE FROM notices WHERE delivery_id = ?1")?.execute([key])?;
            db.prepare_cached(
                "INSERT INTO deliveries (created_position, id, message, channel_id, channel_kind, rule_id, alert, \
                 group_key, project_module, payload, status, attempts, next_attempt_at, created_at, revision) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 'pending', 0, ?11, ?12, ?13)",
            )?
            .execute(params![
                recorded.position,
                key,
                e.message.as_str(),
                blob(&e.channel_id),
                e.channel_kind,
                blob_of(e.rule_id.as_ref()),
                e.alert,
                e.group.as_ref().or(e.alert.as_ref()),
                e.project_module,
                json(&e.payload),
                micros(e.next_attempt_at),
                now,
                recorded.revision,
            ])?;
            let sql = "INSERT OR IGNORE INTO delivery_causes (cause, delivery_id) VALUES (?1, ?2)";
            let mut statement = db.prepare_cached(sql)?;
            for cause in &e.causes {
                statement.execute((blob(cause), key))?;
            }
        }
        D::Attempted(e) => attempted(db, envelope, &id, e)?,
        D::Sent(_) => {
            end(db, counts, &id, "sent", now, None)?;
        }
        D::Failed(e) => {
            end(db, counts, &id, "failed", now, Some(&e.error))?;
        }
        D::Requeued(e) => {
            db.prepare_cached(
                "UPDATE deliveries SET status = 'retrying', next_attempt_at = ?2, ended_at = NULL WHERE id = ?1",
            )?
            .execute((key, micros(e.next_attempt_at)))?;
        }
    }
    db.prepare_cached("UPDATE deliveries SET revision = ?2 WHERE id = ?1")?
        .execute((key, recorded.revision))?;
    Ok(())
}

/// Counts what fails on a channel without a break. That a test fails, somebody has seen; that one succeeds ends it.
fn count_failing(db: &Connection, id: &Uuid, e: &Attempted) -> Result<()> {
    let of = "id = (SELECT channel_id FROM deliveries WHERE id = ?1)";
    if e.error.is_none() {
        let sql = format!(
            "UPDATE channels SET failing_since = NULL, failing_attempts = 0, failing_deliveries = 0 WHERE {of}"
        );
        db.prepare_cached(&sql)?.execute([blob(id)])?;
        return Ok(());
    }
    let sql = format!(
        "UPDATE channels SET failing_attempts = failing_attempts + 1, \
         failing_deliveries = failing_deliveries + NOT EXISTS (SELECT 1 FROM attempts WHERE delivery_id = ?1 \
         AND attempt <> ?2 AND error IS NOT NULL AND started_at >= channels.failing_since), \
         failing_since = coalesce(failing_since, ?3) \
         WHERE {of} AND EXISTS (SELECT 1 FROM deliveries WHERE id = ?1 AND message <> 'test')"
    );
    db.prepare_cached(&sql)?.execute((blob(id), e.attempt, micros(e.started_at)))?;
    Ok(())
}

fn attempted(db: &Connection, envelope: &Envelope, id: &Uuid, e: &Attempted) -> Result<()> {
    count_failing(db, id, e)?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO attempts (delivery_id, attempt, attempt_id, started_at, latency_ms, code, error, answer, \
         retry_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        blob(id),
        e.attempt,
        blob(&e.attempt_id),
        micros(e.started_at),
        e.latency_ms,
        e.code,
        e.error,
        e.answer,
        micros_of(e.retry_at),
    ])?;
    db.prepare_cached(
        "UPDATE deliveries SET status = 'retrying', attempts = ?2, next_attempt_at = ?3, code = ?4, error = ?5, \
         revision = ?6 WHERE id = ?1",
    )?
    .execute((
        blob(id),
        e.attempt,
        micros_of(e.retry_at),
        e.code,
        &e.error,
        envelope.recorded.revision,
    ))?;
    Ok(())
}

fn end(
    db: &Connection,
    counts: &mut Counts,
    id: &Uuid,
    status: &str,
    now: i64,
    error: Option<&str>,
) -> Result<()> {
    let kind: Option<String> = db
        .prepare_cached(
            "UPDATE deliveries SET status = ?2, ended_at = ?3, error = ?4, next_attempt_at = NULL WHERE id = ?1 \
             RETURNING channel_kind",
        )?
        .query_row((blob(id), status, now, error), |row| row.get(0))
        .optional()?;
    counts.add("deliveries", kind.as_deref().unwrap_or_default(), status, 1);
    Ok(())
}
