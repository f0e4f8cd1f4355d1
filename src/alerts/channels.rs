//! How each kind of receiver is told: from a channel, its secrets and a message to the requests that are sent. Pure, so that
//! what a preview shows is what is sent.
//!
//! Where a channel's own template fails, the plain message is sent in its place, and it is said: a message is not lost for a
//! mistake in its looks.

use std::collections::BTreeMap;

use beampipe_domain::channel::Config;
use beampipe_domain::delivery::Enqueued;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use uuid::Uuid;

use super::message::Said;
use super::template::{self, Kind};

pub mod alertmanager;
pub mod email;
pub mod ntfy;
pub mod pagerduty;
pub mod slack;
pub mod webhook;

/// The secrets of a channel by the names of their fields.
#[derive(Debug, Default)]
pub struct Opened(pub BTreeMap<String, SecretString>);

impl Opened {
    fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(ExposeSecret::expose_secret)
    }

    fn must(&self, field: &str) -> Result<&str, String> {
        self.get(field).ok_or_else(|| format!("{field}: the channel has none"))
    }

    fn url(&self) -> Result<Url, String> {
        self.must("url")?.parse().map_err(|_| "url: it is no address".to_owned())
    }

    /// The headers that the channel has of its own.
    fn headers(&self) -> Vec<(String, String)> {
        let headers =
            self.0.iter().filter_map(|(field, value)| Some((field.strip_prefix("headers.")?, value)));
        headers.map(|(name, value)| (name.to_owned(), value.expose_secret().to_owned())).collect()
    }
}

/// A POST of JSON.
#[derive(Clone, Debug)]
pub struct Post {
    pub url: Url,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Post {
    fn json(url: Url, mut headers: Vec<(String, String)>, body: &serde_json::Value) -> Self {
        headers.push(("content-type".into(), "application/json".into()));
        Self { url, headers, body: body.to_string().into_bytes() }
    }
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Sending {
    /// In this order; what one does not take is not followed by the next.
    Posts(Vec<Post>),
    Mail(Box<email::Mail>),
}

/// What is ready to be sent.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub sending: Sending,
    /// What the channel's owner has to know of it.
    pub note: Option<String>,
}

/// A message that is to go to a channel.
pub struct Outbound<'a> {
    pub id: Uuid,
    pub said: Said<'a>,
    /// When it is sent.
    pub now: DateTime<Utc>,
}

impl<'a> Outbound<'a> {
    pub fn new(id: Uuid, order: &'a Enqueued, now: DateTime<Utc>) -> Self {
        Self { id, said: Said::of(&order.payload, &order.dedup_key), now }
    }
}

/// Lays a message out for a channel. The error names a field of the channel that cannot be used.
pub fn prepare(config: &Config, opened: &Opened, message: &Outbound<'_>) -> Result<Prepared, String> {
    let mut note = None;
    let sending = match config {
        Config::Webhook(it) => Sending::Posts(webhook::posts(it, opened, message, &mut note)?),
        Config::Slack(_) => {
            let texts = Texts::of(config, Kind::Slack, message, &mut note);
            Sending::Posts(vec![slack::post(opened, &texts)?])
        }
        Config::Pagerduty(_) => Sending::Posts(pagerduty::posts(opened, message)?),
        Config::Alertmanager(it) => Sending::Posts(vec![alertmanager::post(it, opened, message)?]),
        Config::Ntfy(_) => {
            let texts = Texts::of(config, Kind::Text, message, &mut note);
            Sending::Posts(vec![ntfy::post(opened, message, &texts)?])
        }
        Config::Email(it) => {
            let texts = Texts::of(config, Kind::Text, message, &mut note);
            email::sending(it, opened, message, &texts)?
        }
    };
    Ok(Prepared { sending, note })
}

/// A title and a body for people, by the channel's templates if it has some.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    pub title: String,
    pub body: String,
    /// Whether title and body were made by templates of the channel.
    pub own_title: bool,
    pub own_body: bool,
}

impl Texts {
    fn of(config: &Config, kind: Kind, message: &Outbound<'_>, note: &mut Option<String>) -> Self {
        let (title, body) = config.templates();
        let context = message.said.context();
        let mut own = |field: &str, template: Option<&str>| {
            let rendered = template::render(template?, kind, &context);
            rendered.map_err(|error| *note = Some(not_used(field, &error))).ok()
        };
        let (title, body) = (own("title_template", title), own("body_template", body));
        let plain =
            |text: String| if kind == Kind::Slack { template::escaped_for_slack(&text) } else { text };
        Self {
            own_title: title.is_some(),
            own_body: body.is_some(),
            title: title.unwrap_or_else(|| plain(message.said.title())),
            body: body.unwrap_or_else(|| plain(message.said.body())),
        }
    }
}

fn not_used(field: &str, error: &str) -> String {
    format!("{field} could not be used and the plain message was sent: {error}")
}

#[cfg(test)]
mod tests;
