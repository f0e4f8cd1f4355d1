use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{self, Service, answered};

/// As a console sends it: a whole draft, with nulls.
fn webhook() -> Value {
    json!({
        "name": "operators", "kind": "webhook", "enabled": null,
        "config": {
            "url": "https://hooks.example.org:8443/T0/canary-url-9f3c?key=canary-query-77aa", "template": "generic",
            "headers": {"Authorization": "Bearer canary-header-51d0", "X-Nothing": null},
            "routing_key_ref": null, "signing_secret": "whsec_Y2FuYXJ5LXNpZ25pbmctNDRl",
        },
    })
}

fn mail() -> Value {
    json!({
        "name": "astronomers", "kind": "email",
        "config": {
            "smtp_host": "mail.example.org", "port": 587, "user": "beampipe", "from": "beampipe@example.org",
            "to": ["a@example.org", "b@example.org"], "password_ref": {"env": "SMTP_PASSWORD"},
        },
    })
}

fn path(answer: &Value) -> String {
    format!("/notification-channels/{}", answer["uuid"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_created_merged_and_removed_and_shows_no_secret() {
    let service = support::service().await;
    let created = service.post("/notification-channels", webhook()).await.is(201);
    let one = path(&created);
    let config = &created["config"];
    assert_eq!((&config["url"], &config["template"]), (&json!("[REDACTED]"), &json!("generic")));
    assert_eq!(config["destination"], "https://hooks.example.org:8443", "where it goes may be shown");
    assert_eq!(config["headers"], json!({"authorization": "[REDACTED]"}));
    assert_eq!((&created["enabled"], &created["revision"]), (&json!(true), &json!(1)));
    let set = json!(["url", "signing_secret", "headers.authorization"]);
    assert_eq!(created["configured_fields"], set);
    assert!(created["secret_fields"].as_array().unwrap().contains(&json!("routing_key_ref")));
    // The whole answer sent back keeps everything.
    assert_eq!(service.patch(&one, created.clone()).await.is(200), created);
    // Null takes away, an absent field keeps, a new one is added.
    let changes = json!({
        "name": "operators at night",
        "config": {"headers": {"authorization": null, "X-Team": {"env": "TEAM"}}, "signing_secret": null},
    });
    let changed = service.patch(&one, changes).await.is(200);
    assert_eq!(changed["config"]["headers"], json!({"x-team": {"env": "TEAM"}}));
    assert_eq!(changed["configured_fields"], json!(["url", "headers.x-team"]));
    assert_eq!((&changed["name"], &changed["revision"]), (&json!("operators at night"), &json!(2)));
    assert_eq!(changed["config"]["destination"], "https://hooks.example.org:8443");
    let moved = service.patch(&one, json!({"config": {"url": "http://other.example.org/x"}})).await.is(200);
    assert_eq!(moved["config"]["destination"], "http://other.example.org");
    assert_eq!(service.get(&one).await.is(200), moved);
    assert_eq!(service.get("/notification-channels").await.is(200), json!([moved]));
    assert_eq!(service.delete(&one).await.status.as_u16(), 204);
    service.get(&one).await.is(404);
    service.patch(&one, json!({})).await.is(404);
    assert_eq!(service.get("/notification-channels").await.is(200), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_channel_keeps_the_reference_to_its_password() {
    let service = support::service().await;
    let created = service.post("/notification-channels", mail()).await.is(201);
    assert_eq!(created["config"]["password_ref"], json!({"env": "SMTP_PASSWORD"}));
    let one = path(&created);
    let changed =
        service.patch(&one, json!({"config": {"to": ["c@example.org"], "port": null}})).await.is(200);
    assert_eq!(changed["config"]["to"], json!(["c@example.org"]));
    assert_eq!((&changed["config"]["port"], &changed["config"]["user"]), (&json!(587), &json!("beampipe")));
    let kept = json!({"config": {"password_ref": "[REDACTED]"}});
    assert_eq!(
        service.patch(&one, kept).await.is(200)["config"]["password_ref"],
        json!({"env": "SMTP_PASSWORD"})
    );
    let kind = service.patch(&one, json!({"kind": "webhook", "config": {"url": "https://a.example"}})).await;
    assert_eq!(kind.is(409)["code"], "channel-kind-fixed");
}

async fn with_tag(service: &Service, method: Method, path: &str, tag: &str, body: Value) -> (u16, Value) {
    let sent = service.request(method, path).header("if-match", tag).json(&body).send().await.unwrap();
    let answer = answered(sent).await;
    (answer.status.as_u16(), serde_json::from_str(&answer.body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_saw_the_same_channel_the_second_changes_nothing() {
    let service = support::service().await;
    let one = path(&service.post("/notification-channels", mail()).await.is(201));
    assert_eq!(service.get(&one).await.header("etag"), Some("\"1\""));
    let change = |name: &str| json!({"name": name});
    assert_eq!(with_tag(&service, Method::PATCH, &one, "\"1\"", change("first")).await.0, 200);
    let (status, refused) = with_tag(&service, Method::PATCH, &one, "\"1\"", change("second")).await;
    assert_eq!((status, &refused["code"]), (412, &json!("outdated")));
    assert_eq!(with_tag(&service, Method::DELETE, &one, "\"1\"", json!({})).await.0, 412);
    assert_eq!(with_tag(&service, Method::PATCH, &one, "1", change("third")).await.0, 400);
    assert_eq!(service.get(&one).await.is(200)["name"], "first");
    assert_eq!(with_tag(&service, Method::DELETE, &one, "\"2\"", json!({})).await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_under_a_key_creates_one_channel_also_after_a_restart() {
    let service = support::service().await;
    let send = || {
        let request = service.request(Method::POST, "/notification-channels").header("idempotency-key", "k1");
        request.json(&webhook()).send()
    };
    let first = answered(send().await.unwrap()).await.is(201);
    service.api.answers.forget();
    assert_eq!(answered(send().await.unwrap()).await.is(200), first, "a sealed secret is the same again");
    assert_eq!(service.get("/notification-channels").await.is(200).as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_a_rule_names_is_not_removed() {
    let service = support::service().await;
    let channel = service.post("/notification-channels", mail()).await.is(201);
    let rule =
        json!({"name": "nightly", "trigger_kind": "discovery_changed", "channel_ids": [channel["uuid"]]});
    let rule = service.post("/alert-rules", rule).await.is(201);
    let held = service.delete(&path(&channel)).await.is(409);
    assert!(held["detail"].as_str().unwrap().contains("nightly"), "{held}");
    let rule = format!("/alert-rules/{}", rule["uuid"].as_str().unwrap());
    assert_eq!(service.delete(&rule).await.status.as_u16(), 204);
    assert_eq!(service.delete(&path(&channel)).await.status.as_u16(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_a_channel_is_said_at_once_and_no_value_is_repeated() {
    let service = support::service().await;
    let refused = |body: Value| {
        let service = &service;
        async move {
            let problem = service.post("/notification-channels", body).await.is(422);
            assert!(!problem.to_string().contains("canary"), "{problem}");
            let errors = problem["errors"].as_array().unwrap().clone();
            errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    assert_eq!(refused(json!({})).await, ["kind", "name"]);
    assert_eq!(refused(json!({"name": "x", "kind": "pigeon"})).await, ["kind"]);
    let wrong = json!({
        "name": " ", "kind": "webhook", "colour": 1,
        "config": {
            "url": "ftp://canary@host", "template": "canary", "headers": {"host": "canary", "a b": "x", "x": "canary\n"},
            "routing_key_ref": "canary", "signing_secret": "[REDACTED]", "previous_signing_secret": {"sealed": "canary"},
        },
    });
    let fields = refused(wrong).await;
    for field in [
        "name",
        "colour",
        "config.url",
        "config.template",
        "config.headers.host",
        "config.headers.a b",
        "config.headers.x",
        "config.routing_key_ref",
        "config.signing_secret",
        "config.previous_signing_secret",
    ] {
        assert!(fields.iter().any(|named| named == field), "{field} is not among {fields:?}");
    }
    let no_key = json!({"name": "x", "kind": "webhook", "config": {"template": "pagerduty"}});
    assert_eq!(refused(no_key).await, ["config.routing_key_ref"]);
    let wrong = json!({
        "name": "x", "kind": "email",
        "config": {"smtp_host": "a b", "port": 0, "from": "nobody", "to": [], "password_ref": {"env": "P"}, "tls": 1},
    });
    let fields = refused(wrong).await;
    for field in ["smtp_host", "port", "from", "to", "user", "tls"] {
        assert!(fields.contains(&format!("config.{field}")), "{field} is not among {fields:?}");
    }
    for url in ["https://user:canary@host/", "https://", "canary", "https://host/#canary"] {
        let body = json!({"name": "x", "kind": "webhook", "config": {"url": url}});
        assert_eq!(refused(body).await, ["config.url"], "{url}");
    }
}

/// Every file below a directory.
fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_channel_is_in_any_file_or_answer() {
    let service = support::service().await;
    let created = service.post("/notification-channels", webhook()).await.is(201);
    let one = path(&created);
    let rotated = json!({"config": {"previous_signing_secret": "canary-previous-8b1e"}});
    service.patch(&one, rotated).await.is(200);
    let mut said = String::new();
    let events = service.get("/events?type=channel.*").await;
    assert!(events.body.contains("channel.updated"), "{}", events.body);
    for answer in [events, service.get(&one).await, service.get("/notification-channels").await] {
        said.push_str(&answer.body);
    }
    let canaries = ["canary-url", "canary-query", "canary-header", "Y2FuYXJ5", "canary-previous"];
    for canary in canaries {
        assert!(!said.contains(canary), "{canary} is in an answer");
    }
    let kept = files(service.directory.path());
    assert!(kept.iter().any(|file| file.to_string_lossy().contains("artifacts")), "something was sealed");
    for file in kept {
        let bytes = std::fs::read(&file).unwrap();
        for canary in canaries {
            let found = bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
            assert!(!found, "{canary} is in {}", file.display());
        }
    }
}
