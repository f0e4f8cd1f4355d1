//! Alerts.

use beampipe_domain::alert::{Event as A, Fired, Pending, Subject};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Result, params};
use uuid::Uuid;

use crate::Envelope;
use crate::counts::Counts;
use crate::sql::{blob, json, micros, stream_rest};

pub fn apply(db: &Connection, counts: &mut Counts, envelope: &Envelope, event: &A) -> Result<()> {
    let recorded = &envelope.recorded;
    let alert = stream_rest(&recorded.stream);
    let before = firing(db, alert)?;
    match event {
        A::Pending(e) => pending(db, envelope, e)?,
        A::Fired(e) => {
            fired(db, envelope, e)?;
        }
        A::Acknowledged(e) => {
            let sql = "UPDATE alerts SET acknowledged_by = ?2, acknowledged_at = ?3, acknowledgement = ?4 WHERE id = ?1";
            let now = micros(recorded.occurred_at);
            db.prepare_cached(sql)?.execute((alert, &*recorded.actor, now, &e.comment))?;
        }
        A::Cleared(e) => {
            let sql = "UPDATE alerts SET cleared_at = ?2 WHERE id = ?1";
            db.prepare_cached(sql)?.execute((alert, micros(e.at)))?;
        }
        A::Reactivated(_) => {
            db.prepare_cached("UPDATE alerts SET cleared_at = NULL WHERE id = ?1")?.execute([alert])?;
        }
        A::Resolved(e) => {
            let sql = "UPDATE alerts SET state = 'resolved', resolved_at = ?2, resolved_reason = ?3, held_by = NULL, \
                       held_id = NULL WHERE id = ?1";
            db.prepare_cached(sql)?.execute((alert, micros(e.at), e.reason.as_str()))?;
        }
        A::Escalated(e) => {
            db.prepare_cached("UPDATE alerts SET escalated_at = ?2 WHERE id = ?1")?
                .execute((alert, micros(e.at)))?;
        }
        A::Suppressed(e) => {
            let sql = "UPDATE alerts SET held_by = ?2, held_id = ?3 WHERE id = ?1";
            db.prepare_cached(sql)?.execute((alert, e.held_back.by.as_str(), &e.held_back.id))?;
        }
    }
    db.prepare_cached(
        "UPDATE alerts SET last_event_id = ?2, last_event_at = ?3, revision = ?4 WHERE id = ?1",
    )?
    .execute((alert, blob(&recorded.id), micros(recorded.occurred_at), recorded.revision))?;
    let after = firing(db, alert)?;
    counts.move_one(
        "firing",
        before.as_deref().map(|severity| (severity, "")),
        after.as_deref().map(|severity| (severity, "")),
    );
    Ok(())
}

/// The severity of an alert if it fires.
fn firing(db: &Connection, alert: &str) -> Result<Option<String>> {
    db.prepare_cached("SELECT severity FROM alerts WHERE id = ?1 AND state = 'firing'")?
        .query_row([alert], |row| row.get(0))
        .optional()
}

/// The row of an alert, as its subject is now.
fn row(db: &Connection, envelope: &Envelope, subject: &Subject, since: DateTime<Utc>) -> Result<()> {
    let recorded = &envelope.recorded;
    let id = stream_rest(&recorded.stream);
    let rule = rule_of(id);
    let about = serde_json::json!({
        "annotations": subject.annotations,
        "execution_id": subject.execution_id,
        "source_identifiers": subject.source_identifiers,
        "changed_count": subject.changed_count,
    });
    db.prepare_cached(
        "INSERT INTO alerts (created_position, id, rule_id, rule_version, rule_name, project_module, severity, labels, \
         state, since, number, said, summary, causes, last_event_id, last_event_at, revision, about) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'pending', ?9, 0, 0, '', '[]', ?10, ?11, ?12, ?13) \
         ON CONFLICT (id) DO UPDATE SET rule_version = ?4, rule_name = ?5, project_module = ?6, severity = ?7, labels = ?8, \
         since = ?9, about = ?13",
    )?
    .execute(params![
        recorded.position,
        id,
        blob(&rule),
        subject.rule_version,
        subject.rule_name,
        subject.project_module,
        subject.severity.as_str(),
        json(&subject.labels),
        micros(since),
        blob(&recorded.id),
        micros(recorded.occurred_at),
        recorded.revision,
        json(&about),
    ])?;
    Ok(())
}

/// The rule is in the stream's name, also of an event whose data were removed.
fn rule_of(alert: &str) -> Uuid {
    alert.get(..36).and_then(|rule| rule.parse().ok()).unwrap_or_default()
}

fn pending(db: &Connection, envelope: &Envelope, e: &Pending) -> Result<()> {
    row(db, envelope, &e.subject, e.at)?;
    let sql = "UPDATE alerts SET state = 'pending', value = ?2, causes = ?3, fired_at = NULL, cleared_at = NULL, escalated_at = NULL, \
               acknowledged_by = NULL, acknowledged_at = NULL, acknowledgement = NULL, resolved_at = NULL, \
               resolved_reason = NULL WHERE id = ?1";
    let alert = stream_rest(&envelope.recorded.stream);
    db.prepare_cached(sql)?.execute((alert, e.value, json(&e.causes)))?;
    Ok(())
}

fn fired(db: &Connection, envelope: &Envelope, e: &Fired) -> Result<()> {
    row(db, envelope, &e.subject, e.since)?;
    let alert = stream_rest(&envelope.recorded.stream);
    let state = if e.occurrence { "told" } else { "firing" };
    let said_at = (e.said > 0).then(|| micros(e.at));
    // What was said of an earlier firing is not of this one.
    db.prepare_cached(
        "UPDATE alerts SET state = ?2, said = ?3, said_at = coalesce(?4, said_at), summary = ?5, value = ?6, causes = ?7, \
         held_by = NULL, held_id = NULL, resolved_at = NULL, resolved_reason = NULL, \
         fired_at = CASE WHEN number = ?8 THEN fired_at ELSE ?9 END, \
         cleared_at = CASE WHEN number = ?8 THEN cleared_at END, \
         escalated_at = CASE WHEN number = ?8 THEN escalated_at END, \
         acknowledged_by = CASE WHEN number = ?8 THEN acknowledged_by END, \
         acknowledged_at = CASE WHEN number = ?8 THEN acknowledged_at END, \
         acknowledgement = CASE WHEN number = ?8 THEN acknowledgement END, number = ?8 WHERE id = ?1",
    )?
    .execute(params![
        alert,
        state,
        e.said,
        said_at,
        e.summary,
        e.value,
        json(&e.causes),
        e.number,
        micros(e.at),
    ])?;
    db.prepare_cached(
        "UPDATE rules SET last_fired_at = ?2 WHERE id = (SELECT rule_id FROM alerts WHERE id = ?1)",
    )?
    .execute((alert, micros(e.at)))?;
    Ok(())
}
