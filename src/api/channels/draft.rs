//! What may be sent for a channel, and how it is merged with what is there: an absent field keeps, null removes, `[REDACTED]`
//! keeps. Pure: secrets are put aside as plain text, for the caller to seal.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue};
use beampipe_domain::channel::{Config, Email, Secret, Spec, Template, Webhook};
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::REDACTED;
use crate::api::fields::Fields;
use crate::api::problem::FieldError;

/// What an answer has beside a draft: consoles send whole answers back.
const READ_ONLY: &[&str] = &[
    "uuid",
    "secret_fields",
    "configured_fields",
    "disabled_reason",
    "revision",
    "last_test_at",
    "last_test_status",
    "last_test_code",
    "created_at",
    "updated_at",
];
const MOST_HEADERS: usize = 20;
const MOST_RECIPIENTS: usize = 50;
/// The longest secret, in bytes.
const LONGEST_SECRET: usize = 4096;
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

/// A draft that was understood. Where `spec` lacks a secret, `plain` has its field and text.
pub struct Understood {
    pub spec: Spec,
    pub plain: Vec<(String, String)>,
}

/// Puts a secret into its field.
pub fn put(config: &mut Config, field: &str, secret: Secret) {
    match (config, field) {
        (Config::Webhook(webhook), "url") => webhook.url = Some(secret),
        (Config::Webhook(webhook), "signing_secret") => webhook.signing_secret = Some(secret),
        (Config::Webhook(webhook), "previous_signing_secret") => {
            webhook.previous_signing_secret = Some(secret);
        }
        (Config::Webhook(webhook), header) => {
            let name = header.strip_prefix("headers.").unwrap_or(header).to_owned();
            webhook.headers.insert(name, secret);
        }
        (Config::Email(_), _) => {}
    }
}

/// A reference as it is sent. A sealed object is nothing that anybody may name.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Reference {
    Env(String),
    File(String),
}

const REFERENCE: &str = "{\"env\": \"NAME\"} or {\"file\": \"/path\"}";

/// Reads a reference, which may be there already.
fn reference(fields: &mut Fields, field: &str, present: Option<&Secret>) -> Option<Secret> {
    let value = fields.value(field)?;
    if value == REDACTED && present.is_some() {
        return present.cloned();
    }
    let secret = match serde_json::from_value(value) {
        Ok(Reference::Env(name)) if !name.is_empty() && name.len() <= 200 => Some(Secret::Env(name)),
        Ok(Reference::File(path)) if path.starts_with('/') && path.len() <= 1000 => Some(Secret::File(path)),
        _ => None,
    };
    if secret.is_none() {
        fields.refuse(field, "is no reference to a secret", REFERENCE);
    }
    secret
}

/// What was sent for a secret.
enum Given {
    Secret(Secret),
    Plain(String),
}

/// Reads a secret: a reference, or a text.
fn secret(fields: &mut Fields, field: &str, value: Value, present: Option<&Secret>) -> Option<Given> {
    match value {
        Value::String(text) if text == REDACTED => {
            let kept = present.cloned().map(Given::Secret);
            if kept.is_none() {
                fields.refuse(
                    field,
                    format!("{REDACTED} keeps what is set, and nothing is"),
                    "send the value",
                );
            }
            kept
        }
        Value::String(text) if !text.is_empty() && text.len() <= LONGEST_SECRET => Some(Given::Plain(text)),
        Value::Object(_) => {
            let mut one = Fields::new(Map::from_iter([(field.to_owned(), value)]), "");
            let read = reference(&mut one, field, None).map(Given::Secret);
            if read.is_none() {
                fields.refuse(field, "is no reference to a secret", REFERENCE);
            }
            read
        }
        _ => {
            let hint = format!("a text of 1 to {LONGEST_SECRET} bytes, or {REFERENCE}");
            fields.refuse(field, "cannot be used", hint);
            None
        }
    }
}

/// Reads a draft; `present` is what it is merged with.
pub fn read(draft: Map<String, Value>, present: Option<&Spec>) -> Result<Understood, Vec<FieldError>> {
    let mut fields = Fields::new(draft, "");
    let name = fields.text("name", 200).or_else(|| present.map(|spec| spec.name.clone()));
    let enabled: Option<bool> = fields.take("enabled", "true or false");
    let enabled = enabled.unwrap_or_else(|| present.is_none_or(|spec| spec.enabled));
    let kind: Option<String> = fields.take("kind", "webhook or email");
    let kind = kind.or_else(|| present.map(|spec| spec.config.kind().to_owned()));
    let before = present.map(|spec| &spec.config);
    let mut config = fields.object("config");
    let mut plain = vec![];
    let read = match (kind.as_deref(), before) {
        (Some("webhook"), Some(Config::Webhook(before))) => {
            Some(Config::Webhook(Box::new(webhook(&mut config, before, &mut plain))))
        }
        (Some("webhook"), _) => {
            Some(Config::Webhook(Box::new(webhook(&mut config, &Webhook::default(), &mut plain))))
        }
        (Some("email"), Some(Config::Email(before))) => Some(Config::Email(email(&mut config, before))),
        (Some("email"), _) => Some(Config::Email(email(&mut config, &Email::default()))),
        (other, _) => {
            let message = if other.is_some() { "is no kind of channel" } else { "is missing" };
            fields.refuse("kind", message, "webhook or email");
            config.rest();
            None
        }
    };
    if name.is_none() && fields.errors.iter().all(|error| error.field != "name") {
        fields.refuse("name", "is missing", "a text of 1 to 200 characters");
    }
    let known = match kind.as_deref() {
        Some("email") => "smtp_host, port, user, from, to, password_ref",
        _ => "url, template, headers, routing_key_ref, signing_secret, previous_signing_secret",
    };
    fields.errors.extend(config.finish(&["destination"], known));
    let errors = fields.finish(READ_ONLY, "name, kind, config, enabled");
    match (name, read) {
        (Some(name), Some(config)) if errors.is_empty() => {
            Ok(Understood { spec: Spec { name, enabled, config }, plain })
        }
        _ => Err(errors),
    }
}

/// Whether a field was sent: a null takes away, an absent one keeps.
fn merged<T: Clone>(
    fields: &mut Fields,
    field: &str,
    before: Option<&T>,
    read: impl FnOnce(&mut Fields) -> Option<T>,
) -> Option<T> {
    match fields.presence(field) {
        None => before.cloned(),
        Some(false) => {
            fields.value(field);
            None
        }
        Some(true) => read(fields),
    }
}

fn webhook(fields: &mut Fields, before: &Webhook, plain: &mut Vec<(String, String)>) -> Webhook {
    let template = merged(fields, "template", Some(&before.template), |fields| {
        fields.take::<Template>("template", "generic, slack or pagerduty")
    });
    let routing_key = merged(fields, "routing_key_ref", before.routing_key.as_ref(), |fields| {
        reference(fields, "routing_key_ref", before.routing_key.as_ref())
    });
    let mut webhook = Webhook { template: template.unwrap_or_default(), routing_key, ..Webhook::default() };
    address(fields, before, &mut webhook, plain);
    let mut signing = |field: &'static str, before: Option<&Secret>| {
        merged(fields, field, before, |fields| {
            let value = fields.value(field)?;
            match secret(fields, field, value, before)? {
                Given::Secret(secret) => Some(secret),
                Given::Plain(text) => {
                    plain.push((field.to_owned(), text));
                    None
                }
            }
        })
    };
    webhook.signing_secret = signing("signing_secret", before.signing_secret.as_ref());
    webhook.previous_signing_secret =
        signing("previous_signing_secret", before.previous_signing_secret.as_ref());
    webhook.headers = headers(fields, &before.headers, plain);
    if webhook.template == Template::Pagerduty && webhook.routing_key.is_none() {
        fields.refuse("routing_key_ref", "is missing: PagerDuty needs it", REFERENCE);
    }
    webhook
}

/// The address: kept, a reference, or a text whose scheme, host and port may be shown.
fn address(fields: &mut Fields, before: &Webhook, webhook: &mut Webhook, plain: &mut Vec<(String, String)>) {
    let hint = "an address such as https://hooks.example.org/…, without user, password and fragment";
    let sent = fields.presence("url");
    let value = match (sent, fields.value("url")) {
        (None, _) if before.url.is_some() => {
            (webhook.url, webhook.destination) = (before.url.clone(), before.destination.clone());
            return;
        }
        (_, Some(value)) => value,
        (_, None) if webhook.template == Template::Pagerduty => Value::String(PAGERDUTY.into()),
        (_, None) => return fields.refuse("url", "is missing", hint),
    };
    match secret(fields, "url", value, before.url.as_ref()) {
        None => {}
        Some(Given::Secret(secret)) => {
            if before.url.as_ref() == Some(&secret) {
                webhook.destination = before.destination.clone();
            }
            webhook.url = Some(secret);
        }
        Some(Given::Plain(text)) => match text.parse::<Url>() {
            Ok(url)
                if matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.fragment().is_none() =>
            {
                webhook.destination = url.origin().ascii_serialization();
                plain.push(("url".into(), text));
            }
            _ => fields.refuse("url", "cannot be used", hint),
        },
    }
}

fn headers(
    fields: &mut Fields,
    before: &BTreeMap<String, Secret>,
    plain: &mut Vec<(String, String)>,
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
            Some(Given::Plain(_)) => {
                sent.refuse(&name, "cannot be a header's value", "visible characters of one line");
            }
        }
    }
    fields.errors.append(&mut sent.errors);
    if kept.len() + new > MOST_HEADERS {
        fields.refuse("headers", "are too many", format!("at most {MOST_HEADERS}"));
    }
    kept
}

fn email(fields: &mut Fields, before: &Email) -> Email {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let smtp_host =
        merged(fields, "smtp_host", some(&before.smtp_host).as_ref(), |fields| fields.text("smtp_host", 253));
    let port = merged(fields, "port", Some(&before.port), |fields| {
        fields.number("port", 1, 65_535).and_then(|port| u16::try_from(port).ok())
    });
    let user = merged(fields, "user", before.user.as_ref(), |fields| fields.text("user", 320));
    let from = merged(fields, "from", some(&before.from).as_ref(), |fields| fields.text("from", 320));
    let to = merged(fields, "to", Some(&before.to), |fields| {
        fields.take("to", "a list of addresses such as [\"ops@example.org\"]")
    });
    let password = merged(fields, "password_ref", before.password.as_ref(), |fields| {
        reference(fields, "password_ref", before.password.as_ref())
    });
    let email = Email {
        smtp_host: smtp_host.unwrap_or_default(),
        port: port.filter(|port| *port > 0).unwrap_or(587),
        user,
        from: from.unwrap_or_default(),
        to: to.unwrap_or_default(),
        password,
    };
    check_email(fields, &email);
    email
}

/// An address that a mail can be sent to: `a@b`, of one line.
fn is_address(text: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"<>,;\"()".contains(c);
    text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
        && text.chars().all(plain)
        && text.len() <= 320
}

fn check_email(fields: &mut Fields, email: &Email) {
    let named = |fields: &Fields, field: &str| fields.errors.iter().any(|error| error.field.ends_with(field));
    let host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if (email.smtp_host.is_empty() || !email.smtp_host.chars().all(host)) && !named(fields, "smtp_host") {
        fields.refuse("smtp_host", "is no name of a host", "such as mail.example.org");
    }
    if !is_address(&email.from) && !named(fields, "from") {
        fields.refuse("from", "is no mail address", "such as beampipe@example.org");
    }
    let good = (1..=MOST_RECIPIENTS).contains(&email.to.len()) && email.to.iter().all(|to| is_address(to));
    if !good && !named(fields, "to") {
        fields.refuse("to", "is no list of mail addresses", format!("1 to {MOST_RECIPIENTS} addresses"));
    }
    if email.password.is_some() && email.user.is_none() {
        fields.refuse("user", "is missing: a password belongs to a user", "the user's name on the server");
    }
}
