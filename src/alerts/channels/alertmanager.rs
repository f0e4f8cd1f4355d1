//! An Alertmanager, told as Prometheus tells it (its API version 2), or whoever takes what Alertmanager sends (the body of its
//! webhook, version 4).
//!
//! To an Alertmanager an alert is its labels, so these are the same when it fires and when it is resolved. Prometheus tells
//! again and again that an alert fires and lets it end by itself; here it is told once, so it ends when that is told, or after
//! [`LONGEST`] at last.

use std::collections::{BTreeMap, BTreeSet};

use beampipe_domain::channel::{Alertmanager, AlertmanagerMode};
use beampipe_domain::delivery::Message;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{Opened, Outbound, Post};
use crate::alerts::message::{One, Said, is_open, texts};

/// So far the clock of an Alertmanager may be behind ours.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::seconds(30);
/// How long an alert fires that nobody says to be resolved.
pub const LONGEST: TimeDelta = TimeDelta::days(30);
/// How long fires what is over already: a test, and what happened. It counts from when it is sent, or what comes late would be
/// over before it is shown.
const SHORT: TimeDelta = TimeDelta::minutes(5);
/// How long a notice fires, which nobody resolves.
const NOTICE: TimeDelta = TimeDelta::hours(1);
/// What Go's JSON has for a time that is not there.
const NEVER: &str = "0001-01-01T00:00:00Z";

pub fn post(channel: &Alertmanager, opened: &Opened, message: &Outbound<'_>) -> Result<Post, String> {
    let mut url = opened.url()?;
    let body = match channel.mode {
        AlertmanagerMode::Api => {
            let path = url.path().trim_end_matches('/');
            if !path.ends_with("/api/v2/alerts") {
                url.set_path(&format!("{path}/api/v2/alerts"));
            }
            message.said.alerts.iter().map(|one| alert(&message.said, one, message.now)).collect()
        }
        AlertmanagerMode::Webhook => webhook(&message.said, message.now),
    };
    Ok(Post::json(url, opened.headers(), &body))
}

/// A label's name as Prometheus takes it: letters, digits and underscores, no digit first.
fn name_of(label: &str) -> String {
    let mut name: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() {
        name.insert(0, '_');
    }
    name
}

fn named(texts: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    // An empty label is none to Prometheus.
    let texts = texts.iter().filter(|(_, value)| !value.is_empty());
    texts.map(|(name, value)| (name_of(name), value.clone())).collect()
}

fn labels(said: &Said<'_>, one: &One) -> BTreeMap<String, String> {
    let mut labels = named(&one.labels);
    let project = said.text("project_module");
    for (name, value) in
        [("alertname", said.text("alert")), ("severity", said.text("severity")), ("project_module", project)]
    {
        if !value.is_empty() {
            labels.entry(name.into()).or_insert_with(|| value.to_owned());
        }
    }
    if one.occurrence {
        // What happened twice is two alerts, although all its other labels may be the same.
        let (name, value) = one.execution_id.as_ref().map_or(("alert_id", &one.id), |id| ("execution", id));
        labels.insert(name.into(), value.clone());
    }
    labels
}

fn annotations(one: &One) -> BTreeMap<String, String> {
    let mut annotations = named(&one.annotations);
    annotations.insert("summary".into(), one.summary.clone());
    for (name, to) in one.links.iter().filter(|(_, to)| is_open(to)) {
        annotations.entry(name_of(&format!("{name}_url"))).or_insert_with(|| to.clone());
    }
    annotations
}

fn starts_at(one: &One, now: DateTime<Utc>) -> DateTime<Utc> {
    one.starts_at.unwrap_or(now)
}

/// Where it came from, if that can be opened.
fn generator(one: &One) -> Option<&String> {
    ["alert", "execution"].iter().filter_map(|name| one.links.get(*name)).find(|to| is_open(to))
}

fn alert(said: &Said<'_>, one: &One, now: DateTime<Utc>) -> Value {
    let lasts = match one.status.as_str() {
        status if status == Message::Test.as_str() => SHORT,
        _ if one.occurrence => SHORT,
        status if status == Message::Notice.as_str() => NOTICE,
        _ => LONGEST,
    };
    let starts_at = starts_at(one, now);
    let ends_at = match one.ends_at {
        // An end that is yet to come does not replace a later one, so what is over has to be over by its clock too.
        ended if one.is_resolved() => {
            ended.unwrap_or(now).min(now - CLOCKS_DIFFER).max(starts_at + TimeDelta::milliseconds(1))
        }
        Some(ends_at) => ends_at.max(now + SHORT),
        None => now + lasts,
    };
    let mut alert = json!({
        "labels": labels(said, one),
        "annotations": annotations(one),
        "startsAt": starts_at,
        "endsAt": ends_at,
    });
    if let Some(generator) = generator(one) {
        alert["generatorURL"] = generator.as_str().into();
    }
    alert
}

/// What all of them have in common.
fn common<'a>(of: impl Iterator<Item = &'a BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut of = of.map(|texts| texts.iter().collect::<BTreeSet<_>>());
    let first = of.next().unwrap_or_default();
    let shared = of.fold(first, |shared, texts| shared.intersection(&texts).copied().collect());
    shared.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// As Prometheus' `model.LabelSet` has it: FNV-1a of 64 bits over names and values in their order, each with a byte 255 after it.
pub fn fingerprint(labels: &BTreeMap<String, String>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for (name, value) in labels {
        for text in [name, value] {
            for byte in text.bytes().chain([255]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    format!("{hash:016x}")
}

fn webhook(said: &Said<'_>, now: DateTime<Utc>) -> Value {
    let both: Vec<_> = said.alerts.iter().map(|one| (one, labels(said, one), annotations(one))).collect();
    let status = |resolved: bool| if resolved { "resolved" } else { "firing" };
    let alerts = both.iter().map(|(one, labels, annotations)| {
        json!({
            "status": status(one.is_resolved()),
            "labels": labels,
            "annotations": annotations,
            "startsAt": starts_at(one, now),
            "endsAt": if one.is_resolved() { json!(one.ends_at.unwrap_or(now)) } else { json!(NEVER) },
            "generatorURL": generator(one).map_or("", String::as_str),
            "fingerprint": fingerprint(labels),
        })
    });
    let mut group = named(&texts(&said.payload["group_labels"]));
    group.entry("alertname".into()).or_insert_with(|| said.text("alert").to_owned());
    json!({
        "version": "4",
        "groupKey": said.dedup_key,
        "truncatedAlerts": 0,
        "status": status(said.alerts.iter().all(One::is_resolved)),
        "receiver": "beampipe",
        "groupLabels": group,
        "commonLabels": common(both.iter().map(|(_, labels, _)| labels)),
        "commonAnnotations": common(both.iter().map(|(_, _, annotations)| annotations)),
        "externalURL": "",
        "alerts": alerts.collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_one_that_prometheus_makes() {
        // The empty set is FNV's offset; the other as in its reference, over `a`, 255, `b`, 255.
        assert_eq!(fingerprint(&BTreeMap::new()), "cbf29ce484222325");
        let one = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(fingerprint(&one), "d2b371819297f98a");
    }

    #[test]
    fn a_label_has_a_name_that_prometheus_takes() {
        for (label, name) in
            [("project_module", "project_module"), ("a-b.c", "a_b_c"), ("7up", "_7up"), ("é", "_")]
        {
            assert_eq!(name_of(label), name);
        }
    }
}
