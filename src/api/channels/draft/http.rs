use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue};
use beampipe_domain::channel::{
    Alertmanager, AlertmanagerMode, Ntfy, Pagerduty, Secret, Slack, Template, Webhook,
};
use serde_json::Value;
use url::Url;

use super::{
    Given, Plain, REFERENCE, is_named, is_set, merged, merged_secret, merged_template, must_be_set,
    reference, secret,
};
use crate::alerts::template::Kind;
use crate::api::fields::Fields;

const MOST_HEADERS: usize = 20;
/// Headers that are said by whoever sends, and not by the channel.
const TAKEN: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];
/// Where PagerDuty takes events.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
const HEADER_VALUE: &str = "visible characters of one line";

fn any(_: &str) -> Result<(), &'static str> {
    Ok(())
}

pub fn webhook(fields: &mut Fields, before: &Webhook, plain: &mut Plain) -> Webhook {
    let template = merged(fields, "template", Some(&before.template), |fields| {
        fields.take::<Template>("template", "generic, slack, pagerduty or custom")
    });
    let template = template.unwrap_or_default();
    let routing_key_ref = "routing_key_ref";
    let routing_key = merged(fields, routing_key_ref, before.routing_key.as_ref(), |fields| {
        reference(fields, routing_key_ref, before.routing_key.as_ref())
    });
    let default = (template == Template::Pagerduty).then_some(PAGERDUTY);
    let (url, destination) = address(fields, before.url.as_ref(), &before.destination, default, plain);
    let mut signing = |field: &str, before: Option<&Secret>| merged_secret(fields, field, before, plain, any);
    let signing_secret = signing("signing_secret", before.signing_secret.as_ref());
    let previous_signing_secret = signing("previous_signing_secret", before.previous_signing_secret.as_ref());
    let headers = headers(fields, &before.headers, plain);
    let body_template = merged_template(fields, "body_template", before.body_template.as_ref(), Kind::Json);
    if template == Template::Pagerduty && routing_key.is_none() && !is_named(fields, routing_key_ref) {
        fields.refuse(routing_key_ref, "is missing: PagerDuty needs it", REFERENCE);
    }
    if template == Template::Custom && body_template.is_none() {
        must_be_set(fields, "body_template", "the template that makes the JSON that is sent");
    }
    Webhook {
        url,
        destination,
        template,
        headers,
        routing_key,
        signing_secret,
        previous_signing_secret,
        body_template,
    }
}

pub fn slack(fields: &mut Fields, before: &Slack, plain: &mut Plain) -> Slack {
    let (url, destination) = address(fields, before.url.as_ref(), &before.destination, None, plain);
    Slack {
        url,
        destination,
        title_template: merged_template(
            fields,
            "title_template",
            before.title_template.as_ref(),
            Kind::Slack,
        ),
        body_template: merged_template(fields, "body_template", before.body_template.as_ref(), Kind::Slack),
    }
}

pub fn pagerduty(fields: &mut Fields, before: &Pagerduty, plain: &mut Plain) -> Pagerduty {
    let (url, destination) =
        address(fields, before.url.as_ref(), &before.destination, Some(PAGERDUTY), plain);
    let routing_key = merged_secret(fields, "routing_key", before.routing_key.as_ref(), plain, any);
    if !is_set(routing_key.as_ref(), "routing_key", plain) {
        must_be_set(fields, "routing_key", "the integration key of a service, or a reference to it");
    }
    Pagerduty { url, destination, routing_key }
}

pub fn alertmanager(fields: &mut Fields, before: &Alertmanager, plain: &mut Plain) -> Alertmanager {
    let (url, destination) = address(fields, before.url.as_ref(), &before.destination, None, plain);
    let mode = merged(fields, "mode", Some(&before.mode), |fields| {
        fields.take::<AlertmanagerMode>("mode", "api or webhook")
    });
    let headers = headers(fields, &before.headers, plain);
    Alertmanager { url, destination, mode: mode.unwrap_or_default(), headers }
}

pub fn ntfy(fields: &mut Fields, before: &Ntfy, plain: &mut Plain) -> Ntfy {
    let (url, destination) = address(fields, before.url.as_ref(), &before.destination, None, plain);
    let is_topic = |text: &str| {
        let good = text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if good { Ok(()) } else { Err("1 to 64 letters, digits, hyphens and underscores") }
    };
    let topic = merged_secret(fields, "topic", before.topic.as_ref(), plain, is_topic);
    if !is_set(topic.as_ref(), "topic", plain) {
        must_be_set(fields, "topic", "1 to 64 letters, digits, hyphens and underscores");
    }
    let is_value = |text: &str| HeaderValue::from_str(text).map(drop).map_err(|_| HEADER_VALUE);
    Ntfy {
        url,
        destination,
        topic,
        token: merged_secret(fields, "token", before.token.as_ref(), plain, is_value),
        title_template: merged_template(fields, "title_template", before.title_template.as_ref(), Kind::Text),
        body_template: merged_template(fields, "body_template", before.body_template.as_ref(), Kind::Text),
    }
}

/// The address, and what of it may be shown: kept, a reference, or a text.
fn address(
    fields: &mut Fields,
    before: Option<&Secret>,
    destination: &str,
    default: Option<&str>,
    plain: &mut Plain,
) -> (Option<Secret>, String) {
    let hint = "an address such as https://hooks.example.org/…, without user, password and fragment";
    let sent = fields.presence("url");
    let value = match (sent, fields.value("url"), default) {
        (None, ..) if before.is_some() => return (before.cloned(), destination.to_owned()),
        (_, Some(value), _) => value,
        (_, None, Some(default)) => Value::String(default.into()),
        (_, None, None) => {
            fields.refuse("url", "is missing", hint);
            return (None, String::new());
        }
    };
    match secret(fields, "url", value, before) {
        None => (None, String::new()),
        Some(Given::Secret(secret)) => {
            let same = before == Some(&secret);
            (Some(secret), if same { destination.to_owned() } else { String::new() })
        }
        Some(Given::Plain(text)) => match text.parse::<Url>() {
            Ok(url)
                if matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.fragment().is_none() =>
            {
                plain.push(("url".into(), text));
                (None, url.origin().ascii_serialization())
            }
            _ => {
                fields.refuse("url", "cannot be used", hint);
                (None, String::new())
            }
        },
    }
}

fn headers(
    fields: &mut Fields,
    before: &BTreeMap<String, Secret>,
    plain: &mut Plain,
) -> BTreeMap<String, Secret> {
    match fields.presence("headers") {
        None => return before.clone(),
        Some(false) => {
            fields.value("headers");
            return BTreeMap::new();
        }
        Some(true) => {}
    }
    let mut kept = before.clone();
    let mut sent = fields.object("headers");
    let mut new = 0;
    for (name, value) in sent.rest() {
        let name = name.to_ascii_lowercase();
        if HeaderName::try_from(&name).is_err() || TAKEN.contains(&name.as_str()) {
            let shown: String = name.chars().take(60).collect();
            sent.refuse(&shown, "is no header that a channel may have", "a name such as authorization");
            continue;
        }
        let present = before.get(&name);
        if value.is_null() {
            kept.remove(&name);
            continue;
        }
        match secret(&mut sent, &name, value, present) {
            None => {}
            Some(Given::Secret(secret)) => {
                kept.insert(name, secret);
            }
            Some(Given::Plain(text)) if HeaderValue::from_str(&text).is_ok() => {
                new += usize::from(kept.remove(&name).is_none());
                plain.push((format!("headers.{name}"), text));
            }
            Some(Given::Plain(_)) => sent.refuse(&name, "cannot be a header's value", HEADER_VALUE),
        }
    }
    fields.errors.append(&mut sent.errors);
    if kept.len() + new > MOST_HEADERS {
        fields.refuse("headers", "are too many", format!("at most {MOST_HEADERS}"));
    }
    kept
}
