//! An event as the API tells it, and as people read it: when, where, what, who, and the point of it in a few words.
//!
//! Reads what it needs and keeps the rest as it came. A type that this release does not know is shown by its payload: a
//! reader of stories, unlike a follower that keeps state, need not stop there.

use chrono::{DateTime, Duration, Utc};
use console::Color;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::out::plain;

#[derive(Debug, thiserror::Error)]
#[error("what the service sent is no event: {0}")]
pub struct NoEvent(String);

/// An event of the API.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    pub position: u64,
    pub stream: String,
    pub event_type: String,
    pub occurred_at: DateTime<Utc>,
    #[serde(default)]
    pub actor: Option<String>,
    #[serde(default)]
    pub execution_id: Option<Uuid>,
    #[serde(default)]
    pub source_identifier: Option<String>,
    #[serde(default)]
    pub source_identifiers: Option<Vec<String>>,
    #[serde(default)]
    pub payload: Value,
    #[serde(default)]
    pub hash: String,
    /// As it came, on one line.
    #[serde(skip)]
    pub raw: String,
}

/// What an event means at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    Doubtful,
    Going,
    Quiet,
}

impl Event {
    /// Reads the JSON of an event.
    pub fn parse(text: &str) -> Result<Self, NoEvent> {
        let event: Self = serde_json::from_str(text).map_err(|error| NoEvent(error.to_string()))?;
        Ok(Self { raw: text.to_owned(), ..event })
    }

    /// The id that resumes a stream after this event.
    pub fn resume_id(&self) -> String {
        format!("{}-{}", self.position, self.hash.get(..8).unwrap_or_default())
    }

    /// The sources it is about.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        let many = self.source_identifiers.iter().flatten().map(String::as_str);
        let one = self.source_identifier.as_deref();
        let have = self.source_identifiers.as_ref().is_some_and(|all| !all.is_empty());
        many.chain(one.filter(move |_| !have))
    }

    /// The stream's category and the end of its id. The beginning of a UUIDv7 is its time and the same for neighbours.
    pub fn short_stream(&self) -> String {
        match self.stream.split_once('-') {
            Some((category, id)) if Uuid::try_parse(id).is_ok() => {
                format!("{category} …{}", &id[id.len() - 8..])
            }
            Some((category, id)) => format!("{category} {}", shorten(id, 24)),
            None => self.stream.clone(),
        }
    }

    /// Whether nothing follows it until somebody asks for more: the end of an execution.
    pub fn ends_execution(&self) -> bool {
        matches!(
            self.event_type.as_str(),
            "execution.completed" | "execution.failed" | "execution.cancelled" | "execution.not_submitted"
        )
    }

    pub fn tone(&self) -> Tone {
        match self.event_type.as_str() {
            "execution.completed" | "discovery.changed" | "dependency.up" | "execution.outputs_verified" => {
                Tone::Good
            }
            "execution.failed"
            | "execution.submission_refused"
            | "discovery.error"
            | "discovery.timeout"
            | "job.failed"
            | "job.dead_lettered"
            | "dependency.down"
            | "worker.lost" => Tone::Bad,
            "execution.submission_uncertain"
            | "execution.submission_abandoned"
            | "execution.cancel_requested"
            | "execution.cancelled"
            | "execution.not_submitted"
            | "discovery.no_datasets"
            | "discovery.tap_skipped"
            | "job.retry_scheduled"
            | "job.handed_back"
            | "project.paused"
            | "profile.paused"
            | "worker.drained"
            | "execution.retry_requested"
            | "log.redacted" => Tone::Doubtful,
            name if name.starts_with("execution.") => Tone::Going,
            _ => Tone::Quiet,
        }
    }

    /// The point of the payload.
    pub fn point(&self) -> String {
        let said = point(&self.event_type, &self.payload);
        plain(&said)
    }
}

impl Tone {
    pub fn color(self) -> Color {
        match self {
            Self::Good => Color::Green,
            Self::Bad => Color::Red,
            Self::Doubtful => Color::Yellow,
            Self::Going => Color::Cyan,
            Self::Quiet => Color::White,
        }
    }
}

fn text<'a>(payload: &'a Value, name: &str) -> &'a str {
    payload[name].as_str().unwrap_or("?")
}

fn number(payload: &Value, name: &str) -> u64 {
    payload[name].as_u64().unwrap_or_default()
}

fn milliseconds(value: &Value) -> String {
    duration(Duration::milliseconds(value.as_i64().unwrap_or_default()))
}

/// How many of what.
fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn point(event_type: &str, payload: &Value) -> String {
    if payload.is_null() {
        return "(its data were redacted)".to_owned();
    }
    let checked = || milliseconds(&payload["check"]["duration_ms"]);
    let digest = |name: &str| text(payload, name).chars().take(12).collect::<String>();
    match event_type {
        "source.registered" | "source.updated" => {
            let enabled = if payload["enabled"] == false { ", disabled" } else { "" };
            format!("{}{enabled}", text(payload, "source_identifier"))
        }
        "discovery.changed" => {
            let sbids = payload["sbids"].as_array().map_or(0, Vec::len) as u64;
            let pending = if payload["workflow_run_pending"] == true { "" } else { ", was executed before" };
            let datasets = count(number(payload, "dataset_count"), "dataset");
            format!("{datasets} in {} in {}{pending}", count(sbids, "SBID"), checked())
        }
        "discovery.unchanged" => format!("as before, in {}", checked()),
        "discovery.no_datasets" => format!("the archive has nothing, in {}", checked()),
        "discovery.error" => format!("{}: {}", text(payload, "step"), text(payload, "error")),
        "discovery.tap_skipped" => format!("{}: {}", text(payload, "adapter"), text(payload, "reason")),
        "discovery.timeout" => {
            format!("{}: over {} s", text(payload, "step"), number(payload, "limit_seconds"))
        }
        "source.admitted" => format!("into execution {}", text(payload, "execution_id")),
        "execution.created" => {
            let sources = payload["source_identifiers"].as_array().map_or(0, Vec::len) as u64;
            let how = if payload["automatic"] == true { "admitted" } else { "asked for" };
            let profile = payload["profile"]["spec"]["name"].as_str().unwrap_or("?");
            format!(
                "{how}: {} of {} on profile {profile}",
                count(sources, "source"),
                text(payload, "project_module")
            )
        }
        "execution.execute_started" => format!("attempt {}", number(payload, "attempt")),
        "execution.running" => text(payload, "phase").to_owned(),
        "execution.manifest_built" => {
            format!(
                "{}, sha256 {}…",
                count(number(payload, "dataset_count"), "dataset"),
                digest("manifest_sha256")
            )
        }
        "execution.graph_prepared" => {
            let patches = payload["patches"].as_array().map_or(0, Vec::len) as u64;
            format!(
                "{}, sha256 {}…",
                count(patches, "patch").replace("patchs", "patches"),
                digest("patched_graph_sha256")
            )
        }
        "execution.translated" => {
            let drops = count(number(payload, "drop_count"), "drop");
            format!("{drops} by {} in {}", text(payload, "translator"), milliseconds(&payload["duration_ms"]))
        }
        "execution.submission_started" => {
            format!("session {} on {}", text(payload, "session_id"), text(payload, "backend"))
        }
        "execution.submission_recorded" => match payload["settled_by"].as_str() {
            Some(how) => format!("it is there, found out by {how}"),
            None => format!("{} has it", text(&payload["receipt"], "backend")),
        },
        "execution.submission_refused" => {
            format!("{}: {}", text(payload, "failure_class"), text(payload, "error"))
        }
        "execution.submission_uncertain" => format!("{}: {}", text(payload, "step"), text(payload, "reason")),
        "execution.observed" => observed(payload),
        "execution.completed" => {
            let terminal = &payload["terminal"];
            let polls = count(number(terminal, "polls"), "poll");
            format!("session {} after {polls}", terminal["session_state"].as_str().unwrap_or("ended"))
        }
        "execution.failed" => {
            let drops = payload["terminal"]["error_drops_count"].as_u64();
            let drops = drops.map(|n| format!(" ({} in error)", count(n, "drop"))).unwrap_or_default();
            format!("{}: {}{drops}", text(payload, "failure_class"), text(payload, "error"))
        }
        "execution.retry_requested" => {
            format!("attempt {}: {}", number(payload, "attempt"), text(payload, "reason"))
        }
        "config.uploaded" | "config.activated" => format!("version {}", number(payload, "version")),
        "profile.created" | "profile.updated" => {
            let name = payload["spec"]["name"].as_str().or_else(|| payload["name"].as_str());
            name.unwrap_or_default().to_owned()
        }
        "job.enqueued" => text(payload, "kind").to_owned(),
        "job.claimed" => format!("by {}, attempt {}", text(payload, "worker_id"), number(payload, "attempt")),
        "job.completed" => format!("in {}", milliseconds(&payload["duration_ms"])),
        "job.retry_scheduled" => format!("again at {}", text(payload, "next_run_at")),
        "worker.started" => format!("{} on {}", text(payload, "version"), text(payload, "host")),
        "dependency.up" => {
            format!("{} in {}", text(payload, "dependency"), milliseconds(&payload["latency_ms"]))
        }
        "dependency.down" => format!("{}: {}", text(payload, "dependency"), text(payload, "reason")),
        "account.created" => format!("{} ({})", text(payload, "username"), text(payload, "role")),
        "api_key.issued" => format!("{} ({})", text(payload, "name"), text(payload, "scope")),
        _ => other(payload),
    }
}

fn observed(payload: &Value) -> String {
    let axes = [("scheduler_state", "scheduler"), ("daliuge_state", "DALiuGE"), ("output_state", "outputs")];
    let states: Vec<String> = axes
        .iter()
        .filter_map(|(field, name)| Some(format!("{name} {}", payload["axes"][field].as_str()?)))
        .collect();
    match payload["observation"]["reason"].as_str() {
        Some(reason) => format!("{}: {reason}", states.join(", ")),
        None => states.join(", "),
    }
}

/// For a type without words of its own: the field that says why, or all of it.
fn other(payload: &Value) -> String {
    let why = ["error", "reason", "detail", "summary", "source_identifier", "name"];
    if let Some(said) = why.iter().find_map(|name| payload[name].as_str()) {
        return said.to_owned();
    }
    match payload {
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => shorten(&other.to_string(), 100),
    }
}

/// The first `most` characters, with a mark when there are more.
pub fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A duration in the two units that matter.
pub fn duration(length: Duration) -> String {
    let ms = length.num_milliseconds();
    if ms < 0 {
        return format!("-{}", duration(-length));
    }
    let (s, m, h) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0 => format!("{} µs", length.num_microseconds().unwrap_or_default()),
        1..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..3_600_000 => format!("{m} min {:02} s", s % 60),
        3_600_000..86_400_000 => format!("{h} h {:02} min", m % 60),
        _ => format!("{} d {:02} h", h / 24, h % 24),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_type_has_a_point_in_words() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events");
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let event_type = name.split(".v").next().unwrap();
            let payload: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let said = point(event_type, &payload);
            assert!(!said.contains('?'), "{name} reads a field that is not there: {said}");
            assert!(payload == json!({}) || !said.is_empty(), "{name} has no point");
        }
    }

    #[test]
    fn an_event_is_read_with_and_without_its_optional_fields() {
        let raw = json!({"position": 7, "stream": "execution-0195e3a0-0000-7000-8000-0000000000ab", "hash": "00ff11aa22",
            "event_type": "execution.failed", "occurred_at": "2026-03-01T12:00:00Z", "source_identifiers": ["A", "B"],
            "source_identifier": "A", "payload": {"failure_class": "internal", "error": "a\u{7}\nb"}});
        let event = Event::parse(&raw.to_string()).unwrap();
        assert_eq!(event.sources().collect::<Vec<_>>(), ["A", "B"]);
        assert_eq!(event.short_stream(), "execution …000000ab");
        assert_eq!(event.resume_id(), "7-00ff11aa");
        assert_eq!(event.point(), "internal: a·⏎b");
        assert!(Event::parse("{\"position\":1}").is_err());
        let bare = json!({"position": 1, "stream": "log", "event_type": "x.y", "occurred_at": "2026-03-01T12:00:00Z"});
        assert_eq!(Event::parse(&bare.to_string()).unwrap().point(), "(its data were redacted)");
    }

    #[test]
    fn durations_are_said_in_the_units_that_matter() {
        let said = |ms| duration(Duration::milliseconds(ms));
        assert_eq!(
            [said(7), said(1499), said(61_000), said(3_723_000), said(90_000_000), said(-5)],
            ["7 ms", "1.5 s", "1 min 01 s", "1 h 02 min", "1 d 01 h", "-5 ms"]
        );
        assert_eq!(duration(Duration::microseconds(120)), "120 µs");
    }
}
