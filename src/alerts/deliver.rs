//! One attempt to deliver: what the channel says is read, secrets are opened, the request goes through the guard, and how it
//! ended is recorded. What a receiver answers is kept in part, with every secret of the request taken out of it.

use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::channel::{self, Channel, Config, Secret, Tested};
use beampipe_domain::delivery::{Attempt, Command, Delivery, Enqueued, Message, Outcome};
use beampipe_log::Position;
use chrono::TimeDelta;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::SecretString;
use uuid::Uuid;

use super::channels::{self, Opened, Outbound, Post, Sending};
use super::message;
use super::redact::Secrets;
use super::silencing;
use crate::artifacts::Artifacts;
use crate::clock::Clock;
use crate::handle::{Context, Handle, HandleError};
use crate::outgoing::{Answer, Guard, SendError, retry_after_seconds};
use crate::sealing::Sealing;
use crate::secrets::SecretRef;

/// How many characters of a receiver's answer are kept.
const ANSWER_KEPT: usize = 500;
/// How long a secret in a file may take to be read.
const SECRET_READ: Duration = Duration::from_secs(5);
/// The receiver says that it is gone for good.
const GONE: u16 = 410;

/// Who delivers.
#[derive(Clone)]
pub struct Sender {
    pub handle: Handle,
    pub artifacts: Artifacts,
    pub sealing: Arc<Sealing>,
    pub guard: Guard,
    /// A channel on which everything failed for so long is disabled.
    pub disable_after: TimeDelta,
}

/// An attempt that was made and recorded.
#[derive(Clone, Debug, Default)]
pub struct Made {
    pub tested: Tested,
    /// Up to where a read model has to be to know of it.
    pub position: Position,
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
        let made = self.attempt(id, &context).await?.unwrap_or_default();
        Ok((id, made.tested))
    }

    /// Makes one attempt, and records how it ended; `None` when there is nothing to try any more.
    pub async fn attempt(&self, id: Uuid, context: &Context) -> Result<Option<Made>, HandleError> {
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
        let (outcome, latency) = self.send(id, &facts.order, &spec.config).await;
        crate::fault::point("delivery_attempted");
        let gone = matches!(outcome, Outcome::Refused { code: GONE, .. });
        let tested = Tested {
            delivery_id: id,
            taken: matches!(outcome, Outcome::Taken { .. }),
            code: outcome.code(),
            latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            error: outcome.error(),
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
        let mut commands = vec![];
        if test {
            commands.push(channel::Command::RecordTest(tested.clone()));
        }
        // A test counts against no channel.
        if gone && !test {
            let reason = format!("the receiver answered {GONE}: it is gone for good");
            commands.push(channel::Command::Disable { reason });
        }
        self.tell_channel(channel_id, &context, commands).await?;
        Ok(Some(Made { tested, position: done.position }))
    }

    async fn give_up(&self, key: &str, context: &Context, reason: &str) -> Result<Option<Made>, HandleError> {
        let command = Command::GiveUp { reason: reason.to_owned() };
        self.handle.handle::<Delivery>(key, context, command).await?;
        Ok(None)
    }

    /// What an attempt says of its channel: how a test ended, that the receiver is gone. That the channel was removed meanwhile is
    /// no error.
    pub async fn tell_channel(
        &self,
        channel: Uuid,
        context: &Context,
        commands: Vec<channel::Command>,
    ) -> Result<(), HandleError> {
        let key = channel.to_string();
        for command in commands {
            match self.handle.handle::<Channel>(&key, context, command).await {
                Err(HandleError::Rejected(_)) => {}
                done => drop(done?),
            }
        }
        Ok(())
    }

    /// Sends a message once. What cannot be read or laid out here and now may be so at the next attempt, or for another process.
    async fn send(&self, id: Uuid, order: &Enqueued, config: &Config) -> (Outcome, Duration) {
        let unanswered = |error| (Outcome::Unanswered { error }, Duration::ZERO);
        let opened = match self.open_all(order.channel_id, config).await {
            Ok(opened) => opened,
            Err(error) => return unanswered(error),
        };
        let mut order = order.clone();
        let links = silencing::sign(&self.sealing, &mut order.payload, self.clock().now());
        let outbound = Outbound::new(id, &order, self.clock().now());
        let prepared = match channels::prepare(config, &opened, &outbound) {
            Ok(prepared) => prepared,
            Err(error) => return unanswered(error),
        };
        let user = if let Config::Email(email) = config { email.user.as_deref() } else { None };
        let secrets = Secrets::of(&opened, user).and(links);
        let began = std::time::Instant::now();
        let outcome = match prepared.sending {
            Sending::Posts(posts) => self.post_all(posts, &secrets).await,
            Sending::Mail(mail) => match self.guard.mail(&mail.server, &mail.letter).await {
                Ok(answer) if (200..300).contains(&answer.code) => {
                    Outcome::Taken { code: answer.code, answer: said(&secrets, &answer) }
                }
                Ok(answer) => Outcome::RefusedByMail { code: answer.code, answer: said(&secrets, &answer) },
                Err(error) => failed(&secrets, error),
            },
        };
        (noted(outcome, prepared.note), began.elapsed())
    }

    /// Posts one after the other, until one is not taken.
    async fn post_all(&self, posts: Vec<Post>, secrets: &Secrets) -> Outcome {
        let mut last = Outcome::Impossible { error: "there is nothing to send".into() };
        for post in posts {
            last = match self.post(post, secrets).await {
                taken @ Outcome::Taken { .. } => taken,
                other => return other,
            };
        }
        last
    }

    async fn post(&self, post: Post, secrets: &Secrets) -> Outcome {
        let mut headers = HeaderMap::new();
        for (name, value) in &post.headers {
            let Ok(mut value) = HeaderValue::from_str(value) else {
                return Outcome::Unanswered {
                    error: format!("headers.{name}: it cannot be a header's value"),
                };
            };
            let Ok(name) = HeaderName::try_from(name) else {
                return Outcome::Unanswered { error: format!("headers.{name}: it is no header") };
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let answer = match self.guard.post(&post.url, headers, post.body).await {
            Ok(answer) => answer,
            Err(error) => return failed(secrets, error),
        };
        let retry_after_seconds =
            answer.retry_after.as_ref().and_then(|value| retry_after_seconds(value, self.clock().now()));
        match answer.code {
            code @ 200..=299 => Outcome::Taken { code, answer: said(secrets, &answer) },
            code => Outcome::Refused { code, answer: said(secrets, &answer), retry_after_seconds },
        }
    }

    /// The secrets of a channel as they are now.
    async fn open_all(&self, channel: Uuid, config: &Config) -> Result<Opened, String> {
        let mut opened = Opened::default();
        for (field, secret) in config.secrets() {
            if let Some(secret) = secret {
                let secret = self.open(channel, &field, &secret).await?;
                opened.0.insert(field, secret);
            }
        }
        Ok(opened)
    }

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
        // A file may be a pipe that nobody writes to.
        let reading = tokio::task::spawn_blocking(move || reference.read());
        match tokio::time::timeout(SECRET_READ, reading).await {
            Ok(Ok(read)) => read.map_err(|error| format!("{field}: {error}")),
            Ok(Err(_)) | Err(_) => Err(format!("{field}: the secret could not be read in time")),
        }
    }
}

/// The beginning of what a receiver answered, without what is secret.
fn said(secrets: &Secrets, answer: &Answer) -> Option<String> {
    let all = secrets.out_of(&answer.body);
    let mut said: String = all.chars().take(ANSWER_KEPT).collect();
    let longer = (said.len() < all.len()).then(|| format!("longer than {ANSWER_KEPT} characters"));
    if let Some(how) = answer.cut.clone().or(longer) {
        said.push_str(&format!(" … (cut: {how})"));
    }
    Some(said).filter(|said| !said.trim().is_empty())
}

fn failed(secrets: &Secrets, error: SendError) -> Outcome {
    match error {
        SendError::Refused(error) => Outcome::Impossible { error },
        SendError::NoAnswer(error) => {
            let error = secrets.out_of(&error).chars().take(ANSWER_KEPT).collect();
            Outcome::Unanswered { error }
        }
    }
}

/// An outcome with what the channel's owner has to know of it in front of what the receiver said.
fn noted(outcome: Outcome, note: Option<String>) -> Outcome {
    let Some(note) = note else { return outcome };
    let with =
        |said: Option<String>| Some(said.map_or_else(|| note.clone(), |said| format!("{note}; {said}")));
    match outcome {
        Outcome::Taken { code, answer } => Outcome::Taken { code, answer: with(answer) },
        Outcome::Refused { code, answer, retry_after_seconds } => {
            Outcome::Refused { code, answer: with(answer), retry_after_seconds }
        }
        Outcome::RefusedByMail { code, answer } => Outcome::RefusedByMail { code, answer: with(answer) },
        Outcome::Unanswered { error } => Outcome::Unanswered { error: format!("{error} ({note})") },
        impossible @ Outcome::Impossible { .. } => impossible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_says_so_at_its_end() {
        let secrets = Secrets::of(&Opened([("token".to_owned(), "canary-77".into())].into()), None);
        let kept = |body: &str, cut: Option<&str>| {
            let cut = cut.map(str::to_owned);
            said(&secrets, &Answer { code: 200, body: body.into(), cut, retry_after: None })
        };
        assert_eq!(kept("ok", None).unwrap(), "ok");
        assert_eq!(kept(" ", None), None);
        let longer = Some("longer than 2048 bytes");
        assert_eq!(
            kept("you sent canary", longer).unwrap(),
            "you sent [REDACTED] … (cut: longer than 2048 bytes)"
        );
        let drip = kept("", Some("not ended within 10 s")).unwrap();
        assert_eq!(drip, " … (cut: not ended within 10 s)");
        let long = kept(&"x".repeat(501), None).unwrap();
        assert!(long.ends_with("x … (cut: longer than 500 characters)"), "{long}");
        assert_eq!(kept(&"x".repeat(500), None).unwrap().len(), 500);
    }
}
