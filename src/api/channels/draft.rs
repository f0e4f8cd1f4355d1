//! What may be sent for a channel, and how it is merged with what is there: an absent field keeps, null removes, `[REDACTED]`
//! keeps. Pure: secrets are put aside as plain text, for the caller to seal.

use beampipe_domain::channel::{Config, Secret, Spec};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::alerts::channels::webhook;
use crate::alerts::message::Said;
use crate::alerts::template::{self, Kind};
use crate::api::fields::Fields;
use crate::api::problem::FieldError;
use crate::sealing::REDACTED;

/// Mail.
mod email;
/// The kinds that are reached over HTTP.
mod http;

/// What an answer has beside a draft: consoles send whole answers back.
const READ_ONLY: &[&str] = &[
    "uuid",
    "secret_fields",
    "configured_fields",
    "disabled_reason",
    "failing_since",
    "revision",
    "last_test_at",
    "last_test_status",
    "last_test_code",
    "created_at",
    "updated_at",
];
/// The longest secret, in bytes.
const LONGEST_SECRET: usize = 4096;

/// A draft that was understood. Where `spec` lacks a secret, `plain` has its field and text.
pub struct Understood {
    pub spec: Spec,
    pub plain: Vec<(String, String)>,
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

/// The secrets of a draft that came as plain text, by their fields.
type Plain = Vec<(String, String)>;

/// Reads a secret of its own field, merged; `fits` says whether a text can be one.
fn merged_secret(
    fields: &mut Fields,
    field: &str,
    before: Option<&Secret>,
    plain: &mut Plain,
    fits: impl Fn(&str) -> Result<(), &'static str>,
) -> Option<Secret> {
    merged(fields, field, before, |fields| {
        let value = fields.value(field)?;
        match secret(fields, field, value, before)? {
            Given::Secret(secret) => return Some(secret),
            Given::Plain(text) => match fits(&text) {
                Ok(()) => plain.push((field.to_owned(), text)),
                Err(hint) => fields.refuse(field, "cannot be used", hint),
            },
        }
        None
    })
}

/// Whether `field` is set, or will be when its text is sealed.
fn is_set(secret: Option<&Secret>, field: &str, plain: &Plain) -> bool {
    secret.is_some() || plain.iter().any(|(name, _)| name == field)
}

/// Refuses that a field is missing, unless it is said already what is wrong with it.
fn must_be_set(fields: &mut Fields, field: &str, hint: &str) {
    if !is_named(fields, field) {
        fields.refuse(field, "is missing", hint);
    }
}

/// Whether an error names the field.
fn is_named(fields: &Fields, field: &str) -> bool {
    fields.errors.iter().any(|error| error.field.ends_with(field))
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

/// Reads a template, merged, and tries it on what it may be given.
fn merged_template(fields: &mut Fields, field: &str, before: Option<&String>, kind: Kind) -> Option<String> {
    merged(fields, field, before, |fields| {
        let hint =
            format!("a text of 1 to {} bytes; docs/alerting.md says what it may use", template::LONGEST);
        let text: String = fields.take(field, &hint)?;
        if text.trim().is_empty() {
            fields.refuse(field, "cannot be used", hint);
            return None;
        }
        for sample in crate::alerts::message::samples() {
            let context = Said::of(&sample, "sample").context();
            let made = match kind {
                Kind::Json => webhook::custom(&text, &context).map(drop),
                _ => template::render(&text, kind, &context).map(drop),
            };
            if let Err(error) = made {
                fields.refuse(field, format!("cannot be used: {error}"), hint);
                return None;
            }
        }
        Some(text)
    })
}

/// Reads a draft; `present` is what it is merged with.
pub fn read(draft: Map<String, Value>, present: Option<&Spec>) -> Result<Understood, Vec<FieldError>> {
    let mut fields = Fields::new(draft, "");
    let name = fields.text("name", 200).or_else(|| present.map(|spec| spec.name.clone()));
    let enabled: Option<bool> = fields.take("enabled", "true or false");
    let enabled = enabled.unwrap_or_else(|| present.is_none_or(|spec| spec.enabled));
    let kinds = Config::KINDS.join(", ");
    let kind: Option<String> = fields.take("kind", &kinds);
    let kind = kind.or_else(|| present.map(|spec| spec.config.kind().to_owned()));
    let before = present.map(|spec| &spec.config).filter(|config| kind.as_deref() == Some(config.kind()));
    let before = before.cloned().or_else(|| Config::blank(kind.as_deref()?));
    let mut config = fields.object("config");
    let mut plain = vec![];
    let read = before.map(|before| of_kind(&mut config, &before, &mut plain));
    if read.is_none() {
        let message = if kind.is_some() { "is no kind of channel" } else { "is missing" };
        if !is_named(&fields, "kind") {
            fields.refuse("kind", message, kinds);
        }
        config.rest();
    }
    if name.is_none() && fields.errors.iter().all(|error| error.field != "name") {
        fields.refuse("name", "is missing", "a text of 1 to 200 characters");
    }
    let known = read.as_ref().map_or("", |config| known(config));
    fields.errors.extend(config.finish(&["destination"], known));
    let errors = fields.finish(READ_ONLY, "name, kind, config, enabled");
    match (name, read) {
        (Some(name), Some(config)) if errors.is_empty() => {
            Ok(Understood { spec: Spec { name, enabled, config }, plain })
        }
        _ => Err(errors),
    }
}

fn of_kind(fields: &mut Fields, before: &Config, plain: &mut Plain) -> Config {
    match before {
        Config::Webhook(before) => Config::Webhook(Box::new(http::webhook(fields, before, plain))),
        Config::Email(before) => Config::Email(email::email(fields, before)),
        Config::Slack(before) => Config::Slack(http::slack(fields, before, plain)),
        Config::Pagerduty(before) => Config::Pagerduty(http::pagerduty(fields, before, plain)),
        Config::Alertmanager(before) => Config::Alertmanager(http::alertmanager(fields, before, plain)),
        Config::Ntfy(before) => Config::Ntfy(http::ntfy(fields, before, plain)),
    }
}

/// The fields of a kind.
fn known(config: &Config) -> &'static str {
    match config {
        Config::Webhook(_) => {
            "url, template, headers, routing_key_ref, signing_secret, previous_signing_secret, body_template"
        }
        Config::Email(_) => {
            "smtp_host, port, tls, ca_file, user, from, to, password_ref, title_template, body_template"
        }
        Config::Slack(_) => "url, title_template, body_template",
        Config::Pagerduty(_) => "routing_key, url",
        Config::Alertmanager(_) => "url, mode, headers",
        Config::Ntfy(_) => "url, topic, token, title_template, body_template",
    }
}
