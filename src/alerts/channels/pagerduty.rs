//! PagerDuty's Events API version 2 (developer.pagerduty.com, "Send an event to PagerDuty"): an event for each alert of a message, whose
//! `dedup_key` is the alert's, so that a resolution finds its incident.

use beampipe_domain::delivery::Message;
use serde_json::{Value, json};

use super::{Opened, Outbound, Post};
use crate::alerts::message::{One, Said, is_open};
use crate::alerts::template::shortened;

/// The longest summary that PagerDuty takes, in characters.
const LONGEST: usize = 1024;

pub fn posts(opened: &Opened, message: &Outbound<'_>) -> Result<Vec<Post>, String> {
    let (url, key) = (opened.url()?, opened.must("routing_key")?);
    let mut events = events(&message.said, key);
    if message.said.is(Message::Test) || message.said.is(Message::Notice) {
        // What a test or a notice opens nobody resolves, and it is not left for somebody to close.
        let mut close = events[0].clone();
        close["event_action"] = "resolve".into();
        events.push(close);
    }
    Ok(events.iter().map(|event| Post::json(url.clone(), vec![], event)).collect())
}

/// The events of a message.
pub fn events(said: &Said<'_>, routing_key: &str) -> Vec<Value> {
    let single = said.alerts.len() == 1;
    said.alerts.iter().map(|one| event(said, one, routing_key, single)).collect()
}

fn event(said: &Said<'_>, one: &One, routing_key: &str, single: bool) -> Value {
    let details = json!({
        "labels": one.labels, "annotations": one.annotations, "summary": one.summary, "links": one.links,
        "starts_at": one.starts_at, "ends_at": one.ends_at,
    });
    let links = one.links.iter().filter(|(_, to)| is_open(to));
    let links: Vec<Value> = links.map(|(name, to)| json!({"href": to, "text": name})).collect();
    let severity = match one.labels.get("severity") {
        // What the service says of itself is no trouble of a survey that somebody has to get up for.
        _ if said.is(Message::Notice) => "warning",
        Some(severity) => severity,
        None => said.text("severity"),
    };
    json!({
        "routing_key": routing_key,
        "event_action": if one.is_resolved() { "resolve" } else { "trigger" },
        "dedup_key": one.id,
        "client": "beampipe",
        "links": links,
        "payload": {
            "summary": shortened(&one.summary, LONGEST),
            "source": said.payload["project_module"].as_str().unwrap_or("beampipe"),
            "severity": if ["critical", "error", "warning", "info"].contains(&severity) { severity } else { "error" },
            "component": said.text("alert"),
            "timestamp": one.starts_at,
            "custom_details": if single { said.payload } else { &details },
        },
    })
}
