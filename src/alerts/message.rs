//! What a message says, whoever it is said to. Pure: an alert or an event in, a payload out, which is kept in the log; and a payload
//! in, what a receiver is told of it out. How a kind of receiver is told is in [`channels`](super::channels).

use std::collections::BTreeMap;

use beampipe_domain::delivery::Message;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::template::shortened;

/// How many alerts, and how many sources of one, a text for people names.
const NAMED: usize = 20;
/// The longest title, in characters.
const LONGEST_TITLE: usize = 200;

/// What a test says.
pub fn of_test(channel: &str, now: DateTime<Utc>) -> Value {
    json!({
        "alert": "test",
        "status": Message::Test.as_str(),
        "severity": "info",
        "project_module": null,
        "summary": format!("A test of the notification channel {channel:?}: messages arrive."),
        "execution_id": null,
        "source_identifiers": [],
        "labels": {},
        "links": {},
        "fired_at": now,
    })
}

/// What is said when a channel was disabled by the service itself.
pub fn of_disabled(channel: &str, kind: &str, reason: &str, at: DateTime<Utc>) -> Value {
    json!({
        "alert": "channel_disabled",
        "status": Message::Notice.as_str(),
        "severity": "critical",
        "project_module": null,
        "summary": format!("the notification channel {channel:?} was disabled: {reason}"),
        "execution_id": null,
        "labels": {"alert": "channel_disabled", "channel": channel, "channel_kind": kind},
        "links": {},
        "fired_at": at,
    })
}

/// What a message looks like: one that something fires, and one that it is resolved. Templates are tried on these.
pub fn samples() -> [Value; 2] {
    let of = |status: &str, resolved_at: Value| {
        let labels = json!({
            "rule": "pending_backlog", "severity": "critical", "project_module": "survey", "dependency": "tap_casda",
            "status": "failed",
        });
        let annotations = json!({"runbook_url": "https://runbooks.example.org/pending_backlog"});
        let links = json!({
            "execution": "https://beampipe.example.org/executions/01900000-0000-7000-8000-000000000001",
            "runbook": "https://runbooks.example.org/pending_backlog",
            "silence": "https://beampipe.example.org/silences/new",
            "alert": "https://beampipe.example.org/alerts/sample",
        });
        let summary = "61 sources of survey wait to be executed, 50 are too many";
        json!({
            "alert": "pending_backlog", "status": status, "severity": "critical", "project_module": "survey",
            "summary": summary, "execution_id": "01900000-0000-7000-8000-000000000001",
            "source_identifiers": ["HIPASSJ1318-21", "HIPASSJ0039-14"], "changed_count": 2, "labels": labels,
            "annotations": annotations, "links": links, "fired_at": "2026-01-01T03:00:00Z", "resolved_at": resolved_at,
            "rule_id": "01900000-0000-7000-8000-000000000002", "late": false,
            "group_labels": {"project_module": "survey"},
            "alerts": [{
                "id": "sample", "status": status, "labels": labels, "annotations": annotations, "summary": summary,
                "starts_at": "2026-01-01T03:00:00Z", "ends_at": resolved_at, "links": links,
                "execution_id": "01900000-0000-7000-8000-000000000001", "occurrence": false,
            }],
        })
    };
    [of("firing", Value::Null), of("resolved", json!("2026-01-01T03:20:00Z"))]
}

/// One alert of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct One {
    /// What its receiver tells a repetition, and its resolution, by.
    pub id: String,
    pub status: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub summary: String,
    pub starts_at: Option<DateTime<Utc>>,
    pub ends_at: Option<DateTime<Utc>>,
    pub links: BTreeMap<String, String>,
    pub execution_id: Option<String>,
    /// It happened, and is never resolved.
    pub occurrence: bool,
}

impl One {
    pub fn is_resolved(&self) -> bool {
        self.status == Message::Resolved.as_str()
    }
}

/// A payload as it is understood.
#[derive(Clone, Debug)]
pub struct Said<'a> {
    pub payload: &'a Value,
    pub dedup_key: &'a str,
    /// At least one: a payload that names none is about one.
    pub alerts: Vec<One>,
}

/// The entries of an object, as texts.
pub fn texts(of: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let entries = of.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

fn time(of: &Value) -> Option<DateTime<Utc>> {
    Some(DateTime::parse_from_rfc3339(of.as_str()?).ok()?.to_utc())
}

impl<'a> Said<'a> {
    pub fn of(payload: &'a Value, dedup_key: &'a str) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let one = |alert: &Value| One {
            id: alert["id"].as_str().unwrap_or(dedup_key).to_owned(),
            status: text(&alert["status"]),
            labels: texts(&alert["labels"]),
            annotations: texts(&alert["annotations"]),
            summary: text(&alert["summary"]),
            starts_at: time(&alert["starts_at"]),
            ends_at: time(&alert["ends_at"]),
            links: texts(&alert["links"]),
            execution_id: alert["execution_id"].as_str().map(str::to_owned),
            occurrence: alert["occurrence"].as_bool() == Some(true),
        };
        let mut alerts: Vec<One> = payload["alerts"].as_array().into_iter().flatten().map(one).collect();
        if alerts.is_empty() {
            let (starts_at, ends_at) = (time(&payload["fired_at"]), time(&payload["resolved_at"]));
            alerts.push(One { id: dedup_key.to_owned(), starts_at, ends_at, ..one(payload) });
        }
        Self { payload, dedup_key, alerts }
    }

    pub fn text(&self, field: &str) -> &str {
        self.payload[field].as_str().unwrap_or_default()
    }

    pub fn is(&self, message: Message) -> bool {
        self.text("status") == message.as_str()
    }

    /// Where more is to be seen, most useful first: what can be opened from anywhere.
    pub fn open_links(&self) -> Vec<(String, String)> {
        let links = texts(&self.payload["links"]);
        let rank = |name: &str| {
            ["alert", "execution", "runbook", "silence"].iter().position(|known| *known == name).unwrap_or(9)
        };
        let mut links: Vec<_> = links.into_iter().filter(|(_, to)| is_open(to)).collect();
        links.sort_by_key(|(name, _)| rank(name));
        links
    }

    /// One line that says the most important.
    pub fn title(&self) -> String {
        let status = self.text("status").to_uppercase();
        let (alert, severity, summary) = (self.text("alert"), self.text("severity"), self.text("summary"));
        let title = match self.alerts.len() {
            0 | 1 => format!("[{status}] {alert} ({severity}): {summary}"),
            many => format!("[{status}:{many}] {alert} ({severity}): {summary}"),
        };
        one_line(&title)
    }

    /// What a person is told below the title.
    pub fn body(&self) -> String {
        let mut lines = vec![self.text("summary").to_owned(), String::new()];
        let mut say = |name: &str, value: &str| {
            if !value.is_empty() {
                lines.push(format!("{name}: {value}"));
            }
        };
        say("project", self.text("project_module"));
        say("execution", self.text("execution_id"));
        say("sources", &self.sources());
        say("since", &self.since());
        say("until", self.text("resolved_at"));
        if self.payload["late"].as_bool() == Some(true) {
            say("late", "this is told later than it happened, because nobody judged the rule meanwhile");
        }
        for (name, value) in texts(&self.payload["annotations"]) {
            if name != "runbook_url" {
                say(&name, &value);
            }
        }
        if self.alerts.len() > 1 {
            lines.push(String::new());
            for one in self.alerts.iter().take(NAMED) {
                lines.push(format!("- [{}] {}", one.status.to_uppercase(), one.summary));
            }
            if let Some(more) = self.alerts.len().checked_sub(NAMED).filter(|more| *more > 0) {
                lines.push(format!("- and {more} more"));
            }
        }
        let links = texts(&self.payload["links"]);
        if !links.is_empty() {
            lines.push(String::new());
        }
        for (name, to) in links {
            lines.push(format!("{name}: {to}"));
        }
        lines.join("\n").trim().to_owned()
    }

    /// Since when it fires; of what is over, since when it had fired, of several the first of them.
    fn since(&self) -> String {
        let first = self.alerts.iter().filter_map(|one| one.starts_at).min();
        match first.filter(|_| self.is(Message::Resolved)) {
            Some(first) => first.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            None => self.text("fired_at").to_owned(),
        }
    }

    fn sources(&self) -> String {
        let named = self.payload["source_identifiers"].as_array();
        let named: Vec<&str> = named.into_iter().flatten().filter_map(Value::as_str).collect();
        let all = self.payload["changed_count"].as_u64().map_or(named.len(), |all| all as usize);
        let shown = &named[..named.len().min(NAMED)];
        match all.checked_sub(shown.len()).filter(|more| *more > 0) {
            Some(more) if !shown.is_empty() => format!("{} and {more} more", shown.join(", ")),
            _ => shown.join(", "),
        }
    }

    /// What a template may read: the payload, whatever it lacks as null or empty, and what would be said without a template.
    pub fn context(&self) -> Value {
        let mut context = self.payload.as_object().cloned().unwrap_or_default();
        let absent = [
            ("alert", Value::Null),
            ("status", Value::Null),
            ("severity", Value::Null),
            ("project_module", Value::Null),
            ("summary", Value::Null),
            ("execution_id", Value::Null),
            ("source_identifiers", json!([])),
            ("changed_count", Value::Null),
            ("labels", json!({})),
            ("annotations", json!({})),
            ("links", json!({})),
            ("group_labels", json!({})),
            ("fired_at", Value::Null),
            ("resolved_at", Value::Null),
            ("rule_id", Value::Null),
            ("late", json!(false)),
        ];
        for (name, blank) in absent {
            let place = context.entry(name).or_insert(Value::Null);
            if place.is_null() {
                *place = blank;
            }
        }
        let alerts = self.alerts.iter().map(|one| {
            json!({
                "id": one.id, "status": one.status, "labels": one.labels, "annotations": one.annotations,
                "summary": one.summary, "starts_at": one.starts_at, "ends_at": one.ends_at, "links": one.links,
                "execution_id": one.execution_id, "occurrence": one.occurrence,
            })
        });
        context.insert("alerts".into(), alerts.collect());
        context.insert("title".into(), self.title().into());
        context.insert("body".into(), self.body().into());
        Value::Object(context)
    }
}

/// Whether an address can be opened from outside of this service.
pub fn is_open(address: &str) -> bool {
    address.parse::<url::Url>().is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

/// A text of one line that is not too long for a title.
pub fn one_line(text: &str) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shortened(flat.trim(), LONGEST_TITLE)
}

#[cfg(test)]
mod tests;
