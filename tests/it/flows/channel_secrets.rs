//! Secrets in every secret field of every kind of channel, and receivers that repeat all they are sent: none is in any answer,
//! error, file or line that the service writes.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe_domain::channel::Config;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::secrets::{Canaries, files};
use super::service::Service;

/// Repeats what it is sent, as careless receivers do.
async fn repeat(uri: Uri, headers: HeaderMap, body: String) -> (StatusCode, String) {
    let code = if uri.path().contains("refuse") { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    (code, format!("you sent {uri} with {headers:?} and {body}"))
}

async fn receiver() -> String {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(repeat);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// A mail server that takes any login in the open, and repeats it in its refusal.
async fn mail_server() -> u16 {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            let _ = write.write_all(b"220 mail.example.org\r\n").await;
            while let Ok(Some(line)) = lines.next_line().await {
                let reply = match line.split(' ').next().unwrap_or_default() {
                    "EHLO" => "250-mail.example.org\r\n250 AUTH PLAIN LOGIN\r\n".to_owned(),
                    "AUTH" => format!("535 5.7.8 {line} is not known here\r\n"),
                    _ => "221 bye\r\n".to_owned(),
                };
                let _ = write.write_all(reply.as_bytes()).await;
            }
        }
    });
    port
}

/// A configuration of a kind that is good, with the secret fields of it that may be sent as text.
fn sample(kind: &str, mail_port: u16) -> (Value, &'static [&'static str]) {
    match kind {
        "webhook" => (json!({}), &["url", "headers.x-key", "signing_secret", "previous_signing_secret"]),
        "slack" => (json!({}), &["url"]),
        "pagerduty" => (json!({}), &["url", "routing_key"]),
        "alertmanager" => (json!({}), &["url", "headers.authorization"]),
        "ntfy" => (json!({}), &["url", "topic", "token"]),
        "email" => {
            let config = json!({
                "smtp_host": "127.0.0.1", "port": mail_port, "tls": "none", "user": "beampipe",
                "from": "b@example.org", "to": ["a@example.org"],
            });
            (config, &[])
        }
        other => panic!("{other} has no sample: its secrets are not looked for"),
    }
}

fn put(config: &mut Value, field: &str, value: Value) {
    match field.strip_prefix("headers.") {
        Some(name) => config["headers"][name] = value,
        None => config[field] = value,
    }
}

async fn said(service: &Service, method: Method, path: &str, body: &Value) -> (u16, String) {
    let answer = service.request(method, path).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_any_kind_of_channel_is_in_anything_that_is_written_or_answered() {
    let (http, mail_port, mut canaries) = (receiver().await, mail_server().await, Canaries::default());
    let password = canaries.plant("a password of mail", "canary-mail-password-61c0");
    // As the server repeats it.
    canaries.plant("a password of mail, encoded", "AGJlYW1waXBlAGNhbmFyeS1tYWlsLXBhc3N3b3JkLTYxYzA=");
    let env = canaries.plant("a secret in the environment", "canary-environment-77b2");
    let mut service = Service::start(&[
        ("BEAMPIPE_OUTGOING__ALLOW_NETWORKS", "[\"127.0.0.0/8\"]"),
        ("BEAMPIPE_TELEMETRY__FILTER", "trace"),
        ("BEAMPIPE_TEST_CHANNEL_SECRET", &env),
    ])
    .await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{password}\n")).unwrap();

    let (mut answers, mut planted) = (vec![], 0);
    for kind in Config::KINDS {
        let (mut config, fields) = sample(kind, mail_port);
        for field in fields {
            planted += 1;
            let canary = format!("canary-{kind}-{}", field.replace(['.', '_'], "-"));
            let canary = canaries.plant(&format!("{field} of a {kind} channel"), &canary);
            let value = match *field {
                "url" => format!("{http}/hook/{canary}?key={canary}"),
                "headers.authorization" => format!("Bearer {canary}"),
                _ => canary,
            };
            put(&mut config, field, json!(value));
        }
        match *kind {
            "email" => config["password_ref"] = json!({"file": secret.path()}),
            "webhook" => config["headers"]["x-env"] = json!({"env": "BEAMPIPE_TEST_CHANNEL_SECRET"}),
            _ => {}
        }
        let draft = json!({"name": format!("c {kind}"), "kind": kind, "config": config});
        // A preview, a mistake beside every secret, and then as it should be.
        let (status, text) = said(
            &service,
            Method::POST,
            "/notification-channels/preview",
            &json!({"kind": kind, "config": config}),
        )
        .await;
        assert_eq!(status, 200, "{kind}: {text}");
        answers.push((format!("the preview of {kind}"), text));
        let mut wrong = draft.clone();
        wrong["config"]["colour"] = json!(canaries.raw_of(kind));
        wrong["name"] = json!(7);
        let (status, text) = said(&service, Method::POST, "/notification-channels", &wrong).await;
        assert_eq!(status, 422, "{kind}: {text}");
        answers.push((format!("the refusal of {kind}"), text));
        let channel = service.post("/notification-channels", draft).await;
        answers.push((format!("the answer to {kind}"), channel.to_string()));
        let path = format!("/notification-channels/{}", channel["uuid"].as_str().unwrap());
        for url in [None, Some("refuse"), Some("nowhere")] {
            let url = match url {
                Some("nowhere") => "http://127.0.0.1:9/canary-to-nowhere-5e".to_owned(),
                Some(word) => format!("{http}/hook/{word}-canary-to-nowhere-5e"),
                None => String::new(),
            };
            if !url.is_empty() && fields.contains(&"url") {
                let patched = said(&service, Method::PATCH, &path, &json!({"config": {"url": url}})).await;
                answers.push((format!("a change of {kind}"), patched.1));
            }
            let tested = service.post(&format!("{path}/test"), json!({})).await;
            let good = url.is_empty() && *kind != "email";
            assert_eq!(tested["status"], if good { "sent" } else { "failed" }, "{kind}: {tested}");
            if good {
                assert!(
                    tested["answer"].as_str().unwrap().contains("[REDACTED]"),
                    "it was repeated: {tested}"
                );
            }
            answers.push((format!("the test of {kind}"), tested.to_string()));
        }
    }
    canaries.plant("an address that nobody listens at", "canary-to-nowhere-5e");
    assert_eq!(planted, 12, "every secret field that may be sent as text");
    tokio::time::sleep(Duration::from_millis(200)).await;
    for path in [
        "/notification-channels",
        "/alert-deliveries?limit=500",
        "/events?limit=5000&order=asc",
        "/metrics",
        "/ready",
        "/projections",
    ] {
        let (status, text) = service.text(path, "*/*").await;
        assert_eq!(status, 200, "{path}");
        answers.push((path.to_owned(), text));
    }
    for (place, answer) in &answers {
        canaries.are_not_in(place, answer);
    }
    for command in [&["config", "explain"][..], &["projections", "verify"], &["log", "verify"]] {
        let done = service.command(command);
        canaries.are_not_in(&command.join(" "), &super::service::words(&done));
    }
    service.stop().await;
    let said = service.said();
    assert!(said.contains("TRACE"), "it said all there is to say");
    canaries.are_not_in("what the service said", &said);
    files(&service, &canaries);
}
