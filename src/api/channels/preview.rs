//! What a channel would send, without sending it and without reading a secret: each is `[REDACTED]` in what is answered.

use axum::Json;
use axum::extract::State;
use beampipe_domain::channel::{Channel, Config, Secret, Spec};
use beampipe_domain::delivery::Enqueued;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{draft, unknown};
use crate::alerts::channels::{self, Opened, Outbound, Post, Sending};
use crate::alerts::message;
use crate::api::Api;
use crate::api::extract::Body;
use crate::api::problem::Problem;
use crate::sealing::REDACTED;

/// An address that is none, in the place of the one that is a secret.
const NOWHERE: &str = "https://redacted.invalid/";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    kind: Option<String>,
    #[serde(default)]
    config: Map<String, Value>,
    /// The channel that `config` is merged with, as by a PATCH.
    channel_id: Option<Uuid>,
    /// What a message says; absent: that of a sample.
    payload: Option<Map<String, Value>>,
}

pub async fn preview(State(api): State<Api>, Body(order): Body<Order>) -> Result<Json<Value>, Problem> {
    let present = match order.channel_id {
        None => None,
        Some(channel) => match api.handle.load::<Channel>(&channel.to_string()).await?.state {
            Channel::Active(facts) => Some(facts.spec),
            Channel::Absent | Channel::Removed(_) => return Err(unknown(channel)),
        },
    };
    let mut sent = Map::from_iter([("config".to_owned(), Value::Object(order.config))]);
    sent.extend(order.kind.map(|kind| ("kind".to_owned(), kind.into())));
    sent.entry("name").or_insert_with(|| "preview".into());
    let understood =
        draft::read(sent, present.as_ref()).map_err(|e| Problem::fields("invalid-channel", e))?;
    let draft::Understood { spec: Spec { mut config, .. }, plain } = understood;
    for (field, _) in plain {
        config.put_secret(&field, Secret::Env(String::new()));
    }
    let [firing, resolved] = message::samples();
    let with = |sample: Value, status: &str| match &order.payload {
        None => sample,
        Some(payload) => {
            let mut payload = payload.clone();
            payload.insert("status".into(), status.into());
            Value::Object(payload)
        }
    };
    let made = |payload| made(&api, &config, payload);
    Ok(Json(json!({
        "firing": made(with(firing, "firing"))?,
        "resolved": made(with(resolved, "resolved"))?,
    })))
}

fn made(api: &Api, config: &Config, payload: Value) -> Result<Value, Problem> {
    let mut opened = Opened::default();
    for (field, secret) in config.secrets() {
        if secret.is_some() {
            let stand_in = if field == "url" { NOWHERE } else { REDACTED };
            opened.0.insert(field, SecretString::from(stand_in));
        }
    }
    let order = Enqueued { payload, dedup_key: "preview".into(), ..Enqueued::default() };
    let outbound = Outbound::new(Uuid::nil(), &order, api.clock().now());
    let prepared = channels::prepare(config, &opened, &outbound)
        .map_err(|error| Problem::field("invalid-channel", "config", error, "what can be laid out"))?;
    let mut shown = match prepared.sending {
        Sending::Posts(posts) => json!({"requests": posts.iter().map(shown).collect::<Vec<_>>()}),
        Sending::Mail(mail) => json!({"mail": {
            "from": mail.shown.from, "to": mail.shown.to, "subject": mail.shown.subject, "text": mail.shown.text,
            "html": mail.shown.html,
        }}),
    };
    shown["note"] = json!(prepared.note);
    Ok(shown)
}

fn shown(post: &Post) -> Value {
    // A signature with a secret that is none would only mislead.
    let headers = post.headers.iter().map(|(name, value)| {
        let value = if name == "webhook-signature" { REDACTED } else { value.as_str() };
        (name.clone(), json!(value))
    });
    let body = serde_json::from_slice(&post.body).unwrap_or(Value::Null);
    json!({
        "method": "POST", "url": REDACTED, "headers": headers.collect::<Map<_, _>>(), "body": body,
    })
}
