//! What a message looks like to its receiver. Pure: a payload and secrets in, a body and headers out.
//!
//! Signatures are those of Standard Webhooks (github.com/standard-webhooks/standard-webhooks): the headers `webhook-id`,
//! `webhook-timestamp` and `webhook-signature`, HMAC-SHA-256 over `id.timestamp.body`. While a secret is rotated, a message has
//! a signature of each.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use beampipe_domain::channel::Template;
use beampipe_domain::delivery::Message;
use chrono::{DateTime, Utc};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

/// What a test says.
pub fn of_test(channel: &str, now: DateTime<Utc>) -> Value {
    json!({
        "alert": "test",
        "status": Message::Test.as_str(),
        "severity": "info",
        "project_module": null,
        "summary": format!("A test of the notification channel {channel:?}: messages arrive."),
        "execution_id": null,
        "source_identifiers": [],
        "labels": {},
        "links": {},
        "fired_at": now,
    })
}

/// The body for a template.
pub fn body(
    template: Template,
    payload: &Value,
    dedup_key: &str,
    routing_key: Option<&SecretString>,
) -> Value {
    let text = |field: &str| payload[field].as_str().unwrap_or_default().to_owned();
    match template {
        Template::Generic => payload.clone(),
        Template::Slack => {
            let status = text("status").to_uppercase();
            json!({"text": format!("[{status}] {} ({}): {}", text("alert"), text("severity"), text("summary"))})
        }
        Template::Pagerduty => json!({
            "routing_key": routing_key.map(|key| key.expose_secret().to_owned()),
            "event_action": if text("status") == Message::Resolved.as_str() { "resolve" } else { "trigger" },
            "dedup_key": dedup_key,
            "payload": {
                "summary": text("summary").chars().take(1024).collect::<String>(),
                "source": payload["project_module"].as_str().unwrap_or("beampipe"),
                "severity": text("severity"),
                "component": text("alert"),
                "custom_details": payload,
            },
        }),
    }
}

/// The bytes of a signing secret: Base64 after `whsec_`, or as it is.
fn key(secret: &SecretString) -> hmac::Key {
    let text = secret.expose_secret();
    let decoded = text.strip_prefix("whsec_").and_then(|encoded| STANDARD.decode(encoded).ok());
    let bytes = decoded.unwrap_or_else(|| text.as_bytes().to_vec());
    hmac::Key::new(hmac::HMAC_SHA256, &bytes)
}

/// The value of `webhook-signature`: one signature for each secret.
pub fn signature(secrets: &[SecretString], id: &str, timestamp: i64, body: &[u8]) -> String {
    let signed = [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body].concat();
    let of = |secret| format!("v1,{}", STANDARD.encode(hmac::sign(&key(secret), &signed)));
    secrets.iter().map(of).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_example_in_the_standard() {
        // From the specification's test vectors, which the reference libraries share.
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let (id, timestamp, body) =
            ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        let signed = signature(std::slice::from_ref(&secret), id, timestamp, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let both = signature(&[secret, SecretString::from("plain")], id, timestamp, body);
        assert!(both.starts_with(&format!("{signed} v1,")), "while it is rotated, both sign: {both}");
    }

    fn payload(status: &str) -> Value {
        json!({"alert": "backlog", "status": status, "severity": "critical", "summary": "61 wait", "project_module": "p"})
    }

    #[test]
    fn every_template_says_what_happened_in_its_receivers_words() {
        assert_eq!(body(Template::Generic, &payload("firing"), "d", None), payload("firing"));
        let slack = body(Template::Slack, &payload("resolved"), "d", None);
        assert_eq!(slack, json!({"text": "[RESOLVED] backlog (critical): 61 wait"}));
        let routing = SecretString::from("key");
        let said = |status: &str| body(Template::Pagerduty, &payload(status), "d", Some(&routing));
        let (fired, resolved) = (said("firing"), said("resolved"));
        assert_eq!(
            (&fired["event_action"], &resolved["event_action"]),
            (&json!("trigger"), &json!("resolve"))
        );
        assert_eq!(fired["dedup_key"], resolved["dedup_key"], "a resolution finds its incident");
        assert_eq!((&fired["routing_key"], &fired["payload"]["source"]), (&json!("key"), &json!("p")));
    }
}
