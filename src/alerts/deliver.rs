//! One attempt to deliver: what the channel says is read, secrets are opened, the request goes through the guard, and how it
//! ended is recorded. What a receiver answers is kept in part, with every secret of the request taken out of it.

use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::channel::{self, Channel, Config, Secret, Tested, Webhook};
use beampipe_domain::delivery::{Attempt, Command, Delivery, Enqueued, Facts, Message, Outcome};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use uuid::Uuid;

use super::message;
use crate::artifacts::Artifacts;
use crate::clock::Clock;
use crate::handle::{Context, Handle, HandleError};
use crate::outgoing::{Guard, SendError, retry_after_seconds};
use crate::sealing::Sealing;
use crate::secrets::SecretRef;

/// How many characters of a receiver's answer are kept.
const ANSWER_KEPT: usize = 500;
/// The receiver says that it is gone for good.
const GONE: u16 = 410;

/// Who delivers.
#[derive(Clone)]
pub struct Sender {
    pub handle: Handle,
    pub artifacts: Artifacts,
    pub sealing: Arc<Sealing>,
    pub guard: Guard,
}

/// A request that is ready to go, and what in it nobody may see.
struct Ready {
    url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
    secrets: Vec<SecretString>,
}

/// Takes secrets out of what somebody said.
fn without(secrets: &[SecretString], text: &str) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        let secret = secret.expose_secret();
        if secret.len() >= 4 {
            text = text.replace(secret, "[REDACTED]");
        }
    }
    text
}

impl Sender {
    fn clock(&self) -> &Clock {
        self.handle.clock()
    }

    /// Enqueues a test of a channel and makes its one attempt; answers the delivery's id and how it ended.
    pub async fn test(
        &self,
        channel_id: Uuid,
        spec: &channel::Spec,
        context: &Context,
    ) -> Result<(Uuid, Tested), HandleError> {
        let (id, now) = (self.clock().id(), self.clock().now());
        let order = Enqueued {
            message: Message::Test,
            channel_id,
            channel_kind: spec.config.kind().to_owned(),
            dedup_key: id.to_string(),
            payload: message::of_test(&spec.name, now),
            // The attempt is made here; should this process die before it, somebody else makes it then.
            next_attempt_at: now + chrono::TimeDelta::seconds(60),
            max_attempts: 1,
            ..Enqueued::default()
        };
        let enqueued = self
            .handle
            .handle::<Delivery>(&id.to_string(), context, Command::Enqueue(Box::new(order)))
            .await?;
        let context = enqueued.event_id.map_or_else(|| context.clone(), |event| context.because_of(event));
        let tested = self.attempt(id, &context).await?;
        Ok((id, tested.unwrap_or_default()))
    }

    /// Makes one attempt, and records how it ended; `None` when there is nothing to try any more.
    pub async fn attempt(&self, id: Uuid, context: &Context) -> Result<Option<Tested>, HandleError> {
        let key = id.to_string();
        let Delivery::Waiting { facts, .. } = self.handle.load::<Delivery>(&key).await?.state else {
            return Ok(None);
        };
        let channel_id = facts.order.channel_id;
        let channel = self.handle.load::<Channel>(&channel_id.to_string()).await?.state;
        let test = facts.order.message == Message::Test;
        let spec = match channel {
            Channel::Active(channel) if channel.spec.enabled || test => channel.spec,
            Channel::Active(_) => return self.give_up(&key, context, "the channel is not enabled").await,
            Channel::Absent | Channel::Removed(_) => {
                return self.give_up(&key, context, "the channel was removed").await;
            }
        };
        let started_at = self.clock().now();
        let (outcome, latency) = self.send(id, &facts, &spec.config).await;
        crate::fault::point("delivery_attempted");
        let tested = Tested {
            delivery_id: id,
            taken: matches!(outcome, Outcome::Taken { .. }),
            code: match outcome {
                Outcome::Taken { code, .. } | Outcome::Refused { code, .. } => Some(code),
                Outcome::Unanswered { .. } | Outcome::Impossible { .. } => None,
            },
            latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            error: match &outcome {
                Outcome::Taken { .. } => None,
                Outcome::Refused { code, .. } => Some(format!("the receiver answered {code}")),
                Outcome::Unanswered { error } | Outcome::Impossible { error } => Some(error.clone()),
            },
        };
        let attempt = Attempt {
            attempt_id: self.clock().id(),
            started_at,
            latency_ms: tested.latency_ms,
            outcome,
            at: self.clock().now(),
            jitter: self.clock().jitter(),
        };
        let done = self.handle.handle::<Delivery>(&key, context, Command::Record(Box::new(attempt))).await?;
        let context = done.event_id.map_or_else(|| context.clone(), |event| context.because_of(event));
        self.tell_channel(channel_id, &context, test, &tested).await?;
        Ok(Some(tested))
    }

    async fn give_up(
        &self,
        key: &str,
        context: &Context,
        reason: &str,
    ) -> Result<Option<Tested>, HandleError> {
        let command = Command::GiveUp { reason: reason.to_owned() };
        self.handle.handle::<Delivery>(key, context, command).await?;
        Ok(None)
    }

    /// What an attempt says of its channel: how a test ended, or that the receiver is gone. That the channel was removed
    /// meanwhile is no error.
    async fn tell_channel(
        &self,
        channel: Uuid,
        context: &Context,
        test: bool,
        tested: &Tested,
    ) -> Result<(), HandleError> {
        let key = channel.to_string();
        let mut commands = vec![];
        if test {
            commands.push(channel::Command::RecordTest(tested.clone()));
        }
        if tested.code == Some(GONE) {
            let reason = format!("the receiver answered {GONE}: it is gone for good");
            commands.push(channel::Command::Disable { reason });
        }
        for command in commands {
            match self.handle.handle::<Channel>(&key, context, command).await {
                Err(HandleError::Rejected(_)) => {}
                done => drop(done?),
            }
        }
        Ok(())
    }

    async fn send(&self, id: Uuid, facts: &Facts, config: &Config) -> (Outcome, Duration) {
        let ready = match config {
            Config::Webhook(webhook) => self.prepare(id, facts, webhook).await,
            Config::Email(_) => {
                let error =
                    "mail is not sent by this release; send this channel's messages to a webhook".to_owned();
                return (Outcome::Impossible { error }, Duration::ZERO);
            }
        };
        // What cannot be read here and now may be there at the next attempt, or for another process.
        let ready = match ready {
            Ok(ready) => ready,
            Err(error) => return (Outcome::Unanswered { error }, Duration::ZERO),
        };
        let began = std::time::Instant::now();
        let sent = self.guard.post(&ready.url, ready.headers, ready.body).await;
        let outcome = match sent {
            Err(SendError::Refused(error)) => Outcome::Impossible { error },
            Err(SendError::NoAnswer(error)) => Outcome::Unanswered { error: without(&ready.secrets, &error) },
            Ok(answer) => {
                let said: String = without(&ready.secrets, &answer.body).chars().take(ANSWER_KEPT).collect();
                let said = Some(said).filter(|said| !said.trim().is_empty());
                let now = self.clock().now();
                let later = answer.retry_after.and_then(|value| retry_after_seconds(&value, now));
                match answer.code {
                    code @ 200..=299 => Outcome::Taken { code, answer: said },
                    code => Outcome::Refused { code, answer: said, retry_after_seconds: later },
                }
            }
        };
        (outcome, began.elapsed())
    }

    /// The secret of a field as it is now.
    async fn open(&self, channel: Uuid, field: &str, secret: &Secret) -> Result<SecretString, String> {
        let reference = match secret {
            Secret::Env(name) => SecretRef::Env(name.clone()),
            Secret::File(path) => SecretRef::File(path.into()),
            Secret::Sealed(sha256) => {
                let owner = format!("channel-{channel}");
                let opened = self.sealing.unseal(&self.artifacts, &owner, field, sha256).await;
                return opened.map_err(|error| format!("{field}: {error}"));
            }
        };
        reference.read().map_err(|error| format!("{field}: {error}"))
    }

    async fn prepare(&self, id: Uuid, facts: &Facts, webhook: &Webhook) -> Result<Ready, String> {
        let order = &facts.order;
        let channel = order.channel_id;
        let url = webhook.url.as_ref().ok_or("the channel has no address")?;
        let url = self.open(channel, "url", url).await?;
        let mut secrets = vec![url.clone()];
        let url: Url = url.expose_secret().parse().map_err(|_| "url: it is no address".to_owned())?;
        // A receiver may repeat a part of the address.
        secrets.extend(url.query().map(|query| query.to_owned().into()));
        secrets.extend(Some(url.path()).filter(|path| path.len() > 1).map(|path| path.to_owned().into()));
        let mut headers = HeaderMap::new();
        for (name, secret) in &webhook.headers {
            let value = self.open(channel, &format!("headers.{name}"), secret).await?;
            let mut header = HeaderValue::from_str(value.expose_secret())
                .map_err(|_| format!("headers.{name}: it cannot be a header's value"))?;
            header.set_sensitive(true);
            let name = HeaderName::try_from(name).map_err(|_| format!("headers.{name}: it is no header"))?;
            headers.insert(name, header);
            secrets.push(value);
        }
        let routing_key = match &webhook.routing_key {
            Some(key) => Some(self.open(channel, "routing_key_ref", key).await?),
            None => None,
        };
        let body = message::body(webhook.template, &order.payload, &order.dedup_key, routing_key.as_ref());
        let body = body.to_string().into_bytes();
        secrets.extend(routing_key);
        let mut signing = vec![];
        for (field, secret) in [
            ("signing_secret", &webhook.signing_secret),
            ("previous_signing_secret", &webhook.previous_signing_secret),
        ] {
            if let Some(secret) = secret {
                signing.push(self.open(channel, field, secret).await?);
            }
        }
        let timestamp = self.clock().now().timestamp();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
        let id = id.to_string();
        let signature = message::signature(&signing, &id, timestamp, &body);
        for (name, value) in [("webhook-id", &id), ("webhook-signature", &signature)] {
            if !value.is_empty() {
                let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        secrets.extend(signing);
        Ok(Ready { url, headers, body, secrets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_receiver_repeats_of_a_secret_is_taken_out() {
        let secrets =
            ["https://h/T0/key".to_owned().into(), "Bearer x1".to_owned().into(), "ab".to_owned().into()];
        let said = without(&secrets, "no hook https://h/T0/key for Bearer x1, see above");
        assert_eq!(said, "no hook [REDACTED] for [REDACTED], see above", "two letters are no secret");
    }
}
