//! What a message says, whoever it is said to: JSON that each kind of channel lays out in its own way.

use beampipe_domain::alerting::groups::{self, Batch, Owed};
use beampipe_domain::delivery::Message;
use beampipe_domain::rule::Spec;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

/// How many alerts of a group a message lays out; how many there are it says in any case.
const LAID_OUT: usize = 50;
/// The event that has the message is bounded, and names its causes too.
const LAID_OUT_BYTES: usize = 100_000;

/// Where people find what a message tells of.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Scheme, host and port under which people reach the API; absent: links are paths.
    pub base: Option<String>,
}

impl Links {
    fn to(&self, path: &str) -> Value {
        format!("{}/api/v2{path}", self.base.as_deref().unwrap_or_default().trim_end_matches('/')).into()
    }

    fn of(&self, owed: &Owed) -> Map<String, Value> {
        let mut links = Map::new();
        links.insert("alert".into(), self.to(&format!("/alerts/{}", owed.alert)));
        links.insert("silence".into(), self.to(&format!("/alerts/{}/silence", owed.alert)));
        if let Some(execution) = owed.subject.execution_id {
            links.insert("execution".into(), self.to(&format!("/executions/{execution}")));
        }
        if let Some(runbook) = owed.subject.annotations.get("runbook_url") {
            links.insert("runbook".into(), runbook.clone().into());
        }
        links
    }
}

fn alert(links: &Links, owed: &Owed, ended: Option<DateTime<Utc>>) -> Value {
    let subject = &owed.subject;
    json!({
        "id": owed.alert,
        "status": if ended.is_some() { Message::Resolved } else { Message::Firing },
        "labels": subject.labels,
        "annotations": subject.annotations,
        "summary": owed.summary,
        "execution_id": subject.execution_id,
        "source_identifiers": subject.source_identifiers,
        "starts_at": owed.since,
        "ends_at": ended,
        "occurrence": owed.occurrence,
        "links": links.of(owed),
    })
}

/// What the message says in one line: of one alert what that says, of several how many there are and what the first says.
fn summary(batch: &Batch) -> String {
    let alerts = batch.alerts();
    let Some((first, _)) = alerts.first() else { return String::new() };
    let said = if first.summary.is_empty() { first.subject.rule_name.clone() } else { first.summary.clone() };
    let ended = alerts.iter().filter(|(_, ended)| ended.is_some()).count();
    match (alerts.len(), ended) {
        (1, 0) => said,
        (1, _) => format!("over: {said}"),
        (many, 0) => format!("{many} alerts; the first: {said}"),
        (many, ended) if many == ended => format!("{many} alerts are over; the first: {said}"),
        (many, ended) => format!("{many} alerts, of which {ended} are over; the first: {said}"),
    }
}

/// What a message says of a group.
pub fn of(batch: &Batch, spec: Option<&Spec>, links: &Links) -> Value {
    let alerts = batch.alerts();
    let Some((first, ended)) = alerts.first() else { return Value::Null };
    let subject = &first.subject;
    let mut size = 0;
    let fits = move |laid: &Value| {
        size += laid.to_string().len();
        size <= LAID_OUT_BYTES
    };
    let laid_out = alerts.iter().take(LAID_OUT).map(|(owed, ended)| alert(links, owed, *ended));
    let laid_out: Vec<Value> = laid_out.take_while(fits).collect();
    json!({
        "alert": subject.rule_name,
        "status": batch.message,
        "severity": subject.severity,
        "project_module": subject.project_module,
        "summary": summary(batch),
        "execution_id": subject.execution_id,
        "source_identifiers": subject.source_identifiers,
        "changed_count": subject.changed_count,
        "labels": subject.labels,
        "annotations": subject.annotations,
        "links": links.of(first),
        "fired_at": first.at,
        "resolved_at": ended,
        "late": batch.owed.iter().any(|owed| owed.late),
        "rule_id": batch.rule,
        "group_labels": groups::labels(subject, spec),
        "alerts_total": alerts.len(),
        "alerts": laid_out,
    })
}
