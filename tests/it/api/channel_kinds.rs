use serde_json::{Value, json};

use crate::support::{self, Service};

/// A draft of each kind beyond those of earlier releases, with nulls as consoles send them.
fn drafts() -> Vec<Value> {
    vec![
        json!({"name": "chat", "kind": "slack", "config": {
            "url": "https://hooks.example.org/canary-slack", "title_template": "{{ alert }}", "body_template": null,
        }}),
        json!({"name": "pager", "kind": "pagerduty", "config": {"routing_key": "canary-routing", "url": null}}),
        json!({"name": "site", "kind": "alertmanager", "config": {
            "url": "https://alerts.example.org:8443/canary-path", "mode": "webhook",
            "headers": {"Authorization": "Bearer canary-am", "X-Nothing": null},
        }}),
        json!({"name": "phones", "kind": "ntfy", "config": {
            "url": "https://ntfy.example.org", "topic": "canary-topic", "token": {"env": "NTFY_TOKEN"},
        }}),
    ]
}

fn path(answer: &Value) -> String {
    format!("/notification-channels/{}", answer["uuid"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_kept_merged_and_shown_without_its_secrets() {
    let service = support::service().await;
    for draft in drafts() {
        let kind = draft["kind"].as_str().unwrap();
        let created = service.post("/notification-channels", draft.clone()).await.is(201);
        assert!(!created.to_string().contains("canary"), "{created}");
        let config = &created["config"];
        assert_eq!(config["url"], "[REDACTED]", "{kind}");
        let place = config["destination"].as_str().unwrap();
        assert!(
            place.starts_with("https://") && !place.trim_start_matches("https://").contains('/'),
            "{place}"
        );
        let (secret, set) = (&created["secret_fields"], &created["configured_fields"]);
        let expected = match kind {
            "slack" => (json!(["url"]), json!(["url"])),
            "pagerduty" => (json!(["url", "routing_key"]), json!(["url", "routing_key"])),
            "alertmanager" => {
                (json!(["url", "headers.authorization"]), json!(["url", "headers.authorization"]))
            }
            _ => (json!(["url", "topic", "token"]), json!(["url", "topic", "token"])),
        };
        assert_eq!((secret, set), (&expected.0, &expected.1), "{kind}");
        // The whole answer sent back keeps everything; an empty change, too.
        let one = path(&created);
        assert_eq!(service.patch(&one, created.clone()).await.is(200), created, "{kind}");
        assert_eq!(service.patch(&one, json!({"config": {}})).await.is(200), created, "{kind}");
    }
    let listed = service.get("/notification-channels").await.is(200);
    assert_eq!(listed.as_array().unwrap().len(), 4);
    assert_eq!(listed[0]["config"]["token"], json!({"env": "NTFY_TOKEN"}), "a reference is shown as it is");
    let ntfy = path(&listed[0]);
    let changed =
        service.patch(&ntfy, json!({"config": {"token": null, "topic": "[REDACTED]"}})).await.is(200);
    assert_eq!(
        (&changed["config"]["token"], &changed["config"]["topic"]),
        (&Value::Null, &json!("[REDACTED]"))
    );
    assert_eq!(changed["configured_fields"], json!(["url", "topic"]));
    let events = service.get("/events?type=channel.*&limit=100").await;
    assert!(events.body.contains("channel.created") && !events.body.contains("canary"), "{}", events.body);
}

/// The fields that a draft is refused for.
async fn refused(service: &Service, kind: &str, config: Value) -> Vec<String> {
    let draft = json!({"name": "x", "kind": kind, "config": config});
    let problem = service.post("/notification-channels", draft).await.is(422);
    assert!(!problem.to_string().contains("canary"), "{problem}");
    let errors = problem["errors"].as_array().unwrap();
    assert!(errors.iter().all(|error| error["hint"].is_string()), "{problem}");
    errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_a_kind_is_said_with_what_would_be_right() {
    let service = support::service().await;
    let url = "https://h.example.org/canary";
    for (kind, config, fields) in [
        ("slack", json!({}), vec!["config.url"]),
        ("slack", json!({"url": url, "routing_key": "canary"}), vec!["config.routing_key"]),
        ("slack", json!({"url": url, "title_template": 7}), vec!["config.title_template"]),
        ("slack", json!({"url": url, "body_template": " "}), vec!["config.body_template"]),
        ("pagerduty", json!({}), vec!["config.routing_key"]),
        ("pagerduty", json!({"routing_key": {"sealed": "canary"}}), vec!["config.routing_key"]),
        ("alertmanager", json!({"url": url, "mode": "canary"}), vec!["config.mode"]),
        ("alertmanager", json!({"url": url, "headers": {"host": "canary"}}), vec!["config.headers.host"]),
        ("ntfy", json!({"url": url}), vec!["config.topic"]),
        ("ntfy", json!({"url": url, "topic": "canary/x"}), vec!["config.topic"]),
        ("ntfy", json!({"url": url, "topic": "a", "token": "canary\n"}), vec!["config.token"]),
        ("webhook", json!({"url": url, "template": "custom"}), vec!["config.body_template"]),
        (
            "email",
            json!({"smtp_host": "m", "from": "ä@b.example", "to": ["a@b"], "tls": "ssl", "ca_file": "x"}),
            vec!["config.tls", "config.ca_file", "config.from"],
        ),
    ] {
        assert_eq!(refused(&service, kind, config.clone()).await, fields, "{kind} {config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_cannot_be_used_is_refused_when_it_is_saved() {
    let service = support::service().await;
    for (kind, template, word) in [
        ("slack", "{{ alert", "line 1"),
        ("ntfy", "{{ summery }}", "default("),
        ("email", "{% include \"/etc/passwd\" %}", "no statement"),
        ("slack", "{% for a in range(9) %}{% endfor %}", "unknown function"),
        ("webhook", "{{ summary }}", "not JSON"),
    ] {
        let config = match kind {
            "email" => json!({"smtp_host": "m.example.org", "from": "a@b.example", "to": ["a@b.example"]}),
            _ => json!({"url": "https://h.example.org/", "topic": "t", "template": "custom"}),
        };
        let mut config = config;
        config["body_template"] = json!(template);
        if kind != "webhook" {
            config.as_object_mut().unwrap().remove("template");
        }
        if kind == "slack" {
            config.as_object_mut().unwrap().remove("topic");
        }
        let draft = json!({"name": "x", "kind": kind, "config": config});
        let problem = service.post("/notification-channels", draft).await.is(422);
        let error =
            problem["errors"].as_array().unwrap().iter().find(|e| e["field"] == "config.body_template");
        let said = error.unwrap_or_else(|| panic!("{kind}: {problem}"))["message"].as_str().unwrap();
        assert!(said.contains(word), "{kind} {template}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_shows_what_would_be_sent_and_sends_and_keeps_nothing() {
    let service = support::service().await;
    let preview = async |body: Value| service.post("/notification-channels/preview", body).await.is(200);
    for draft in drafts() {
        let kind = &draft["kind"];
        let shown = preview(json!({"kind": kind, "config": draft["config"]})).await;
        assert!(!shown.to_string().contains("canary"), "{shown}");
        for status in ["firing", "resolved"] {
            let request = &shown[status]["requests"][0];
            assert_eq!(
                (&request["method"], &request["url"]),
                (&json!("POST"), &json!("[REDACTED]")),
                "{kind}"
            );
            assert!(request["body"].to_string().contains("61 sources of survey"), "{request}");
            assert_eq!(shown[status]["note"], Value::Null);
        }
        assert_ne!(shown["firing"], shown["resolved"], "{kind}");
    }
    let mail = json!({
        "kind": "email",
        "config": {
            "smtp_host": "m.example.org", "from": "a@b.example", "to": ["c@d.example"], "user": "u",
            "password_ref": {"file": "/not/read/canary"}, "title_template": "{{ severity }}: {{ alert }}",
        },
    });
    let shown = preview(mail).await;
    assert_eq!(shown["firing"]["mail"]["subject"], "critical: pending_backlog");
    assert!(shown["resolved"]["mail"]["html"].as_str().unwrap().contains("<a href="), "{shown}");

    // A signature with a secret that nobody has would only mislead.
    let signed =
        json!({"kind": "webhook", "config": {"url": "https://h.example.org/", "signing_secret": "s"}});
    let headers = &preview(signed).await["firing"]["requests"][0]["headers"];
    assert_eq!(
        (&headers["webhook-signature"], &headers["content-type"]),
        (&json!("[REDACTED]"), &json!("application/json"))
    );

    // With a payload of one's own, on a channel that is there; where its template fails, that is said.
    let config = json!({"url": "https://h.example.org/", "body_template": "for {{ labels.dependency }}"});
    let slack = json!({"name": "chat", "kind": "slack", "config": config});
    let slack = service.post("/notification-channels", slack).await.is(201);
    let own = json!({"channel_id": slack["uuid"], "config": {"url": "[REDACTED]"}, "payload": {"alert": "mine", "summary": "x"}});
    let shown = preview(own).await;
    let text = shown["firing"]["requests"][0]["body"]["text"].as_str().unwrap();
    assert!(text.starts_with("*[FIRING] mine (): x*"), "{text}");
    assert!(
        shown["firing"]["note"].as_str().unwrap().starts_with("body_template could not be used"),
        "{shown}"
    );

    for (body, code, word) in [
        (json!({"kind": "pigeon", "config": {}}), 422, "kind"),
        (json!({"kind": "slack", "config": {}, "colour": 1}), 422, "colour"),
        (json!({"channel_id": "018f0000-0000-7000-8000-000000000000"}), 404, "channel-unknown"),
        (json!({"kind": "slack", "config": {"url": "[REDACTED]"}}), 422, "config.url"),
    ] {
        let refused = service.post("/notification-channels/preview", body).await.is(code);
        assert!(refused.to_string().contains(word), "{refused}");
    }
    assert_eq!(service.get("/alert-deliveries").await.is(200), json!([]), "nothing was sent");
    let kept = service.get("/events?type=channel.*").await.is(200);
    assert_eq!(kept.as_array().unwrap().len(), 1, "nothing was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_contract_says_of_a_consoles_bodies_holds_sentence_by_sentence() {
    let service = support::service().await;
    // kind webhook {url, template, headers{name: string or null}, routing_key_ref{env or file}}
    let console = json!({
        "name": "ops", "kind": "webhook", "enabled": true,
        "config": {
            "url": "https://hooks.example.org/x", "template": "pagerduty", "headers": {"x-a": "1", "x-b": null},
            "routing_key_ref": {"file": "/run/secrets/pd"},
        },
    });
    let created = service.post("/notification-channels", console).await;
    let created = created.is(201);
    for field in
        ["uuid", "name", "kind", "config", "secret_fields", "configured_fields", "enabled", "created_at"]
    {
        assert!(!created[field].is_null(), "{field}");
    }
    assert_eq!(created["updated_at"], Value::Null);
    let one = path(&created);
    // An absent key keeps, null removes, [REDACTED] keeps.
    let patch = json!({"config": {"headers": {"x-a": "[REDACTED]", "x-c": "3"}, "url": "[REDACTED]", "template": "slack", "routing_key_ref": null}});
    let patched = service.patch(&one, patch).await.is(200);
    let config = &patched["config"];
    assert_eq!(config["headers"], json!({"x-a": "[REDACTED]", "x-c": "[REDACTED]"}));
    assert_eq!((&config["url"], &config["template"]), (&json!("[REDACTED]"), &json!("slack")));
    assert_eq!((&config["routing_key_ref"], &patched["enabled"]), (&Value::Null, &json!(true)));
    assert_eq!(patched["configured_fields"], json!(["url", "headers.x-a", "headers.x-c"]));
    let gone = service.patch(&one, json!({"config": {"headers": null}})).await.is(200);
    assert_eq!(gone["config"]["headers"], json!({}));
    // kind email {smtp_host, port, user, from, to[], password_ref{env or file}}, and a reference only.
    let mail = json!({
        "name": "mail", "kind": "email", "config": {
            "smtp_host": "mail.example.org", "port": 587, "user": "u", "from": "a@b.example", "to": ["c@d.example"],
            "password_ref": {"env": "SMTP_PASSWORD"},
        },
    });
    let mut plain = mail.clone();
    plain["config"]["password_ref"] = json!("canary");
    let refused = service.post("/notification-channels", plain).await.is(422);
    assert_eq!(refused["errors"][0]["field"], "config.password_ref");
    assert!(!refused.to_string().contains("canary"));
    let created = service.post("/notification-channels", mail.clone()).await.is(201);
    for (field, value) in mail["config"].as_object().unwrap() {
        assert_eq!(&created["config"][field], value, "{field}");
    }
    // POST 201, PATCH 200, DELETE 204; the test's delivery is found in the list, its summary is a text.
    let tested = service.post(&format!("{one}/test"), json!({})).await.is(200);
    let listed = service.get("/alert-deliveries").await.is(200);
    let found = listed.as_array().unwrap().iter().find(|one| one["uuid"] == tested["delivery_id"]).unwrap();
    assert!(found["payload"]["summary"].is_string() && found["rule_id"].is_null(), "{found}");
    assert_eq!(service.get(&one).await.is(200)["last_test_status"], tested["status"]);
    assert_eq!(service.delete(&one).await.status.as_u16(), 204);
}
