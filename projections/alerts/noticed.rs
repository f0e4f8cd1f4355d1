//! What happened and a rule wants to be told of. A rule is told of what comes after it in the log.

use beampipe_domain::Event;
use beampipe_domain::execution::Event as X;
use beampipe_domain::source::Event as S;
use rusqlite::{Connection, Result, params};
use uuid::Uuid;

use crate::Envelope;
use crate::sql::{blob, blob_of, json, micros, stream_id};

/// Something that happened.
pub struct Happening<'e> {
    trigger: &'static str,
    /// How an execution ended, or `changed`.
    word: &'static str,
    sources: &'e [String],
    detail: Option<&'e str>,
}

/// What an event is to rules, if anything.
pub fn happening(event: &Event) -> Option<Happening<'_>> {
    let ended = |word, sources, detail| Happening { trigger: "execution_terminal", word, sources, detail };
    Some(match event {
        Event::Execution(X::Completed(e)) => ended("completed", &e.source_identifiers, None),
        Event::Execution(X::Failed(e)) => ended("failed", &e.source_identifiers, Some(e.error.as_str())),
        Event::Execution(X::Cancelled(e)) => ended("cancelled", &e.source_identifiers, None),
        Event::Execution(X::NotSubmitted(e)) => ended("not_submitted", &e.source_identifiers, None),
        Event::Source(S::DiscoveryChanged(e)) => Happening {
            trigger: "discovery_changed",
            word: "changed",
            sources: std::slice::from_ref(&e.source_identifier),
            detail: None,
        },
        _ => return None,
    })
}

/// Notes it for every enabled rule that watches for it.
pub fn notice(db: &Connection, envelope: &Envelope, happening: &Happening<'_>) -> Result<()> {
    let recorded = &envelope.recorded;
    let project = recorded.tags.iter().find_map(|tag| tag.strip_prefix("project:"));
    let execution: Option<Uuid> =
        (happening.trigger == "execution_terminal").then(|| stream_id(&recorded.stream));
    db.prepare_cached(
        "INSERT OR IGNORE INTO noticed (rule_id, event_id, position, occurred_at, project_module, word, execution_id, \
         source_identifiers, detail) SELECT id, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 FROM rules \
         WHERE removed = 0 AND enabled = 1 AND trigger_kind = ?9 AND (project_module IS NULL OR project_module = ?4) \
         AND (?9 <> 'execution_terminal' \
              OR EXISTS (SELECT 1 FROM json_each(spec, '$.trigger.statuses') WHERE value = ?5))",
    )?
    .execute(params![
        blob(&recorded.id),
        recorded.position,
        micros(recorded.occurred_at),
        project,
        happening.word,
        blob_of(execution.as_ref()),
        json(&happening.sources),
        happening.detail,
        happening.trigger,
    ])?;
    Ok(())
}

/// An alert of a rule has fired for these causes.
pub fn told(db: &Connection, rule: Uuid, causes: &[Uuid]) -> Result<()> {
    let mut statement = db.prepare_cached("DELETE FROM noticed WHERE rule_id = ?1 AND event_id = ?2")?;
    for cause in causes {
        statement.execute((blob(&rule), blob(cause)))?;
    }
    Ok(())
}

/// A rule watches no more, or for something else.
pub fn forget(db: &Connection, rule: Uuid) -> Result<()> {
    db.prepare_cached("DELETE FROM noticed WHERE rule_id = ?1")?.execute([blob(&rule)])?;
    Ok(())
}
