//! A webhook of any receiver: the payload as it is, or laid out for another, signed as in Standard Webhooks
//! (github.com/standard-webhooks/standard-webhooks): the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`,
//! HMAC-SHA-256 over `id.timestamp.body`. While a secret is rotated, a message has a signature of each.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use beampipe_domain::channel::{Template, Webhook};
use ring::hmac;
use serde_json::{Value, json};

use super::{Opened, Outbound, Post, not_used, pagerduty};
use crate::alerts::template::{self, Kind};

pub fn posts(
    webhook: &Webhook,
    opened: &Opened,
    message: &Outbound<'_>,
    note: &mut Option<String>,
) -> Result<Vec<Post>, String> {
    let url = opened.url()?;
    let secrets: Vec<&str> =
        ["signing_secret", "previous_signing_secret"].iter().filter_map(|field| opened.get(field)).collect();
    let timestamp = message.now.timestamp();
    let posts = bodies(webhook, opened, message, note)?.into_iter().enumerate().map(|(n, body)| {
        let id = if n == 0 { message.id.to_string() } else { format!("{}-{n}", message.id) };
        let mut post = Post::json(url.clone(), opened.headers(), &body);
        post.headers.push(("webhook-id".into(), id.clone()));
        post.headers.push(("webhook-timestamp".into(), timestamp.to_string()));
        if !secrets.is_empty() {
            post.headers.push(("webhook-signature".into(), signature(&secrets, &id, timestamp, &post.body)));
        }
        post
    });
    Ok(posts.collect())
}

fn bodies(
    webhook: &Webhook,
    opened: &Opened,
    message: &Outbound<'_>,
    note: &mut Option<String>,
) -> Result<Vec<Value>, String> {
    let said = &message.said;
    Ok(match webhook.template {
        Template::Generic => vec![said.payload.clone()],
        Template::Slack => vec![json!({"text": template::escaped_for_slack(&said.title())})],
        Template::Pagerduty => pagerduty::events(said, opened.must("routing_key_ref")?),
        Template::Custom => {
            let template = webhook.body_template.as_deref().unwrap_or_default();
            let made = custom(template, &said.context());
            vec![made.unwrap_or_else(|error| {
                *note = Some(not_used("body_template", &error));
                said.payload.clone()
            })]
        }
    })
}

/// The JSON that a template makes of a message.
pub fn custom(template: &str, context: &Value) -> Result<Value, String> {
    let text = template::render(template, Kind::Json, context)?;
    serde_json::from_str(&text).map_err(|error| format!("what it makes is not JSON: {error}"))
}

/// The bytes of a signing secret: Base64 after `whsec_`, or as it is.
fn key(secret: &str) -> hmac::Key {
    let decoded = secret.strip_prefix("whsec_").and_then(|encoded| STANDARD.decode(encoded).ok());
    let bytes = decoded.unwrap_or_else(|| secret.as_bytes().to_vec());
    hmac::Key::new(hmac::HMAC_SHA256, &bytes)
}

/// The value of `webhook-signature`: one signature for each secret.
fn signature(secrets: &[&str], id: &str, timestamp: i64, body: &[u8]) -> String {
    let signed = [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body].concat();
    let of = |secret: &&str| format!("v1,{}", STANDARD.encode(hmac::sign(&key(secret), &signed)));
    secrets.iter().map(of).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_example_in_the_standard() {
        // From the specification's test vectors, which the reference libraries share.
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let (id, timestamp, body) =
            ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        let signed = signature(&[secret], id, timestamp, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let both = signature(&[secret, "plain"], id, timestamp, body);
        assert!(both.starts_with(&format!("{signed} v1,")), "while it is rotated, both sign: {both}");
    }
}
