//! What is kept of a channel: its kind, and what each kind needs to be reached. Which fields are secret is said once, in
//! [`Config::secrets`]; whoever opens, shows or replaces secrets goes by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Secret {
    /// An environment variable of the service.
    Env(String),
    /// A file of the service.
    File(String),
    /// The SHA-256 of an object in the artifact store that only this service can open.
    Sealed(String),
}

words! {
    /// How a webhook's body is laid out.
    #[derive(Default)]
    pub enum Template {
        #[default] Generic = "generic",
        Slack = "slack",
        Pagerduty = "pagerduty",
        /// By the channel's own `body_template`.
        Custom = "custom",
    }
}

words! {
    /// How the way to a mail server is encrypted.
    #[derive(Default)]
    pub enum Tls {
        /// RFC 3207; a server that does not offer it is not used.
        #[default] Starttls = "starttls",
        /// RFC 8314, from the first byte.
        Implicit = "implicit",
        /// Not at all: only to addresses that the installation allows by name.
        None = "none",
    }
}

words! {
    /// How an Alertmanager, or what speaks like one, is told.
    #[derive(Default)]
    pub enum AlertmanagerMode {
        /// As Prometheus tells it: `POST /api/v2/alerts`.
        #[default] Api = "api",
        /// As it tells others: the body of its webhook, version 4.
        Webhook = "webhook",
    }
}

/// An HTTP receiver. In all kinds the address is a secret, because many receivers take whoever knows it for the right one;
/// `destination` is its scheme, host and port: what may be shown.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    pub url: Option<Secret>,
    #[serde(default)]
    pub destination: String,
    #[serde(default)]
    pub template: Template,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// PagerDuty's integration key.
    pub routing_key: Option<Secret>,
    /// With which messages are signed.
    pub signing_secret: Option<Secret>,
    /// The one before, with which they are signed too until every receiver knows the new one.
    pub previous_signing_secret: Option<Secret>,
    /// What the body is made by if the template is custom: it has to make JSON.
    pub body_template: Option<String>,
}

/// People, by mail.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Email {
    pub smtp_host: String,
    pub port: u16,
    #[serde(default)]
    pub tls: Tls,
    /// A file of the service with the certificates of those who vouch for the server; absent: the system's.
    pub ca_file: Option<String>,
    pub user: Option<String>,
    pub from: String,
    pub to: Vec<String>,
    pub password: Option<Secret>,
    pub title_template: Option<String>,
    pub body_template: Option<String>,
}

/// An incoming webhook of Slack, or of what takes the same.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slack {
    pub url: Option<Secret>,
    #[serde(default)]
    pub destination: String,
    pub title_template: Option<String>,
    pub body_template: Option<String>,
}

/// PagerDuty, by its Events API version 2.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pagerduty {
    pub url: Option<Secret>,
    #[serde(default)]
    pub destination: String,
    pub routing_key: Option<Secret>,
}

/// An Alertmanager.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alertmanager {
    pub url: Option<Secret>,
    #[serde(default)]
    pub destination: String,
    #[serde(default)]
    pub mode: AlertmanagerMode,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
}

/// A topic of an ntfy server. Whoever knows a topic may read it, so it is a secret.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ntfy {
    pub url: Option<Secret>,
    #[serde(default)]
    pub destination: String,
    pub topic: Option<Secret>,
    /// An access token.
    pub token: Option<Secret>,
    pub title_template: Option<String>,
    pub body_template: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Config {
    Webhook(Box<Webhook>),
    Email(Email),
    Slack(Slack),
    Pagerduty(Pagerduty),
    Alertmanager(Alertmanager),
    Ntfy(Ntfy),
}

impl Default for Config {
    fn default() -> Self {
        Self::Webhook(Box::default())
    }
}

/// Where a secret of a kind is kept.
type Place<'a> = (&'static str, &'a mut Option<Secret>);

impl Config {
    /// Every kind.
    pub const KINDS: &'static [&'static str] =
        &["webhook", "email", "slack", "pagerduty", "alertmanager", "ntfy"];

    /// A configuration of a kind with nothing in it; `None`: there is no such kind.
    pub fn blank(kind: &str) -> Option<Self> {
        Some(match kind {
            "webhook" => Self::Webhook(Box::default()),
            "email" => Self::Email(Email::default()),
            "slack" => Self::Slack(Slack::default()),
            "pagerduty" => Self::Pagerduty(Pagerduty::default()),
            "alertmanager" => Self::Alertmanager(Alertmanager::default()),
            "ntfy" => Self::Ntfy(Ntfy::default()),
            _ => return None,
        })
    }

    /// The kind, as in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Email(_) => "email",
            Self::Slack(_) => "slack",
            Self::Pagerduty(_) => "pagerduty",
            Self::Alertmanager(_) => "alertmanager",
            Self::Ntfy(_) => "ntfy",
        }
    }

    /// The secret fields of this kind by the names that people use, and its headers if it may have some.
    fn places(&mut self) -> (Vec<Place<'_>>, Option<&mut BTreeMap<String, Secret>>) {
        match self {
            Self::Webhook(it) => (
                vec![
                    ("url", &mut it.url),
                    ("routing_key_ref", &mut it.routing_key),
                    ("signing_secret", &mut it.signing_secret),
                    ("previous_signing_secret", &mut it.previous_signing_secret),
                ],
                Some(&mut it.headers),
            ),
            Self::Email(it) => (vec![("password_ref", &mut it.password)], None),
            Self::Slack(it) => (vec![("url", &mut it.url)], None),
            Self::Pagerduty(it) => (vec![("url", &mut it.url), ("routing_key", &mut it.routing_key)], None),
            Self::Alertmanager(it) => (vec![("url", &mut it.url)], Some(&mut it.headers)),
            Self::Ntfy(it) => {
                let places = vec![("url", &mut it.url), ("topic", &mut it.topic), ("token", &mut it.token)];
                (places, None)
            }
        }
    }

    /// Every secret field that this kind has, with what is set; a header is `headers.<name>`.
    pub fn secrets(&self) -> Vec<(String, Option<Secret>)> {
        let mut copy = self.clone();
        let (single, headers) = copy.places();
        let single = single.into_iter().map(|(name, secret)| (name.to_owned(), secret.clone()));
        let headers = headers.into_iter().flat_map(|headers| headers.iter());
        single
            .chain(headers.map(|(name, secret)| (format!("headers.{name}"), Some(secret.clone()))))
            .collect()
    }

    /// Puts a secret into its field, named as in [`Config::secrets`]; a field that this kind has not takes nothing.
    pub fn put_secret(&mut self, field: &str, secret: Secret) {
        let (single, headers) = self.places();
        if let (Some(name), Some(headers)) = (field.strip_prefix("headers."), headers) {
            headers.insert(name.to_owned(), secret);
        } else if let Some((_, place)) = single.into_iter().find(|(name, _)| *name == field) {
            *place = Some(secret);
        }
    }

    /// The templates of this kind that are set: of the title, and of the body.
    pub fn templates(&self) -> (Option<&str>, Option<&str>) {
        let (title, body) = match self {
            Self::Webhook(it) => (&None, &it.body_template),
            Self::Email(it) => (&it.title_template, &it.body_template),
            Self::Slack(it) => (&it.title_template, &it.body_template),
            Self::Ntfy(it) => (&it.title_template, &it.body_template),
            Self::Pagerduty(_) | Self::Alertmanager(_) => (&None, &None),
        };
        (title.as_deref(), body.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_blank_form_and_takes_its_secrets_by_name() {
        for kind in Config::KINDS {
            let mut config = Config::blank(kind).unwrap();
            assert_eq!(config.kind(), *kind);
            let fields = config.secrets();
            assert!(!fields.is_empty() && fields.iter().all(|(_, secret)| secret.is_none()), "{kind}");
            for (field, _) in &fields {
                config.put_secret(field, Secret::Env(field.to_uppercase()));
            }
            config.put_secret("colour", Secret::Env("NOTHING".into()));
            let set =
                fields.iter().map(|(field, _)| (field.clone(), Some(Secret::Env(field.to_uppercase()))));
            assert_eq!(config.secrets(), set.collect::<Vec<_>>());
            let written = serde_json::to_value(&config).unwrap();
            assert_eq!(
                (written["kind"].as_str(), Config::deserialize(&written).unwrap()),
                (Some(*kind), config)
            );
        }
        assert_eq!(Config::blank("pigeon"), None);
    }

    #[test]
    fn a_header_is_a_secret_of_the_kinds_that_have_headers() {
        for (kind, has) in [("webhook", true), ("alertmanager", true), ("slack", false)] {
            let mut config = Config::blank(kind).unwrap();
            config.put_secret("headers.authorization", Secret::Env("A".into()));
            let found = config.secrets().iter().any(|(field, _)| field == "headers.authorization");
            assert_eq!(found, has, "{kind}");
        }
    }

    #[test]
    fn a_field_that_nobody_knows_is_no_configuration() {
        let odd = serde_json::json!({"kind": "ntfy", "topics": 1});
        assert!(serde_json::from_value::<Config>(odd).is_err());
    }
}
