//! A channel as it is shown: whatever was sealed reads `[REDACTED]`, a reference as it is.

use beampipe_domain::channel::{Config, Secret};
use beampipe_projections::alerts as rows;
use serde_json::{Map, Value, json};

use crate::sealing::REDACTED;

fn shown(secret: Option<&Secret>) -> Value {
    match secret {
        None => Value::Null,
        Some(Secret::Sealed(_)) => json!(REDACTED),
        Some(reference) => json!(reference),
    }
}

/// What is no secret of a configuration.
fn open_fields(config: &Config) -> Value {
    let place = |destination: &String| Some(destination.clone()).filter(|place| !place.is_empty());
    match config {
        Config::Webhook(it) => json!({
            "destination": place(&it.destination), "template": it.template, "body_template": it.body_template,
            "headers": {},
        }),
        Config::Email(it) => json!({
            "smtp_host": it.smtp_host, "port": it.port, "tls": it.tls, "ca_file": it.ca_file, "user": it.user,
            "from": it.from, "to": it.to, "title_template": it.title_template, "body_template": it.body_template,
        }),
        Config::Slack(it) => json!({
            "destination": place(&it.destination), "title_template": it.title_template,
            "body_template": it.body_template,
        }),
        Config::Pagerduty(it) => json!({"destination": place(&it.destination)}),
        Config::Alertmanager(it) => {
            json!({"destination": place(&it.destination), "mode": it.mode, "headers": {}})
        }
        Config::Ntfy(it) => json!({
            "destination": place(&it.destination), "title_template": it.title_template,
            "body_template": it.body_template,
        }),
    }
}

/// A configuration without its secrets.
pub fn config(config: &Config) -> Value {
    let mut fields = open_fields(config);
    let mut headers = Map::new();
    for (field, secret) in config.secrets() {
        match field.strip_prefix("headers.") {
            Some(name) => drop(headers.insert(name.to_owned(), shown(secret.as_ref()))),
            None => fields[&field] = shown(secret.as_ref()),
        }
    }
    if fields.get("headers").is_some() {
        fields["headers"] = Value::Object(headers);
    }
    fields
}

pub fn shape(row: &rows::Channel) -> Value {
    let secrets = row.spec.config.secrets();
    let secret_fields: Vec<_> = secrets.iter().map(|(field, _)| field).collect();
    let configured: Vec<_> =
        secrets.iter().filter(|(_, set)| set.is_some()).map(|(field, _)| field).collect();
    json!({
        "uuid": row.id,
        "name": row.name,
        "kind": row.kind,
        "config": config(&row.spec.config),
        "secret_fields": secret_fields,
        "configured_fields": configured,
        "enabled": row.enabled,
        "disabled_reason": row.disabled_reason,
        "failing_since": row.failing_since,
        "revision": row.channel_revision,
        "last_test_at": row.last_test_at,
        "last_test_status": row.last_test_status,
        "last_test_code": row.last_test_code,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    })
}
