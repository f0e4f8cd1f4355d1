use serde_json::{Value, json};

use super::*;

fn payload(status: &str, alerts: &[(&str, &str)]) -> Value {
    let alerts = alerts.iter().map(|(id, status)| {
        json!({
            "id": id, "status": status, "summary": format!("{id} waits"), "labels": {"rule": "backlog", "source-id": id},
            "annotations": {"note": "n"}, "starts_at": "2026-11-20T03:00:00Z",
            "ends_at": if *status == "resolved" { json!("2026-11-20T04:00:00Z") } else { Value::Null },
            "links": {"execution": "https://core.example.org/e/1"},
        })
    });
    json!({
        "alert": "backlog", "status": status, "severity": "critical", "project_module": "p", "summary": "61 <wait> & see",
        "labels": {"rule": "backlog"}, "links": {"execution": "https://core.example.org/e/1", "runbook": "/r"},
        "fired_at": "2026-11-20T03:00:00Z", "group_labels": {"project_module": "p"}, "alerts": alerts.collect::<Value>(),
    })
}

fn order(payload: Value) -> Enqueued {
    Enqueued { payload, dedup_key: "key".into(), ..Enqueued::default() }
}

fn opened() -> Opened {
    let secrets = [
        ("url", "https://hooks.example.org/T0"),
        ("routing_key", "R"),
        ("routing_key_ref", "R"),
        ("topic", "ops"),
        ("token", "tk"),
        ("headers.x-team", "t"),
    ];
    Opened(secrets.into_iter().map(|(field, secret)| (field.to_owned(), secret.to_owned().into())).collect())
}

fn prepared(config: Value, payload: Value) -> Prepared {
    let order = order(payload);
    let now = "2026-11-20T05:00:00Z".parse().unwrap();
    let config: Config = serde_json::from_value(config).unwrap();
    prepare(&config, &opened(), &Outbound::new(Uuid::from_u128(7), &order, now)).unwrap()
}

fn bodies(prepared: &Prepared) -> Vec<Value> {
    let Sending::Posts(posts) = &prepared.sending else { panic!("{prepared:?}") };
    posts.iter().map(|post| serde_json::from_slice(&post.body).unwrap()).collect()
}

fn url(prepared: &Prepared) -> String {
    let Sending::Posts(posts) = &prepared.sending else { panic!("{prepared:?}") };
    posts[0].url.to_string()
}

#[test]
fn a_webhook_has_the_payload_as_it_is_or_in_its_receivers_words() {
    let said = |template: &str| {
        bodies(&prepared(json!({"kind": "webhook", "template": template}), payload("firing", &[])))
    };
    assert_eq!(said("generic"), [payload("firing", &[])]);
    assert_eq!(said("slack"), [json!({"text": "[FIRING] backlog (critical): 61 &lt;wait&gt; &amp; see"})]);
    let pagerduty = &said("pagerduty")[0];
    assert_eq!((&pagerduty["event_action"], &pagerduty["routing_key"]), (&json!("trigger"), &json!("R")));
    assert_eq!((&pagerduty["dedup_key"], &pagerduty["payload"]["source"]), (&json!("key"), &json!("p")));
}

#[test]
fn a_webhook_of_its_own_layout_sends_json_and_the_plain_payload_if_that_fails() {
    let config = |template: &str| json!({"kind": "webhook", "template": "custom", "body_template": template});
    let made = prepared(config(r#"{"msg": "{{ severity }}: {{ summary }}"}"#), payload("firing", &[]));
    assert_eq!((bodies(&made), &made.note), (vec![json!({"msg": "critical: 61 <wait> & see"})], &None));
    for (template, word) in [("{{ labels.nobody }}", "default("), ("{{ summary }}", "not JSON")] {
        let plain = prepared(config(template), payload("firing", &[]));
        assert_eq!(bodies(&plain), [payload("firing", &[])]);
        let note = plain.note.unwrap();
        assert!(note.starts_with("body_template could not be used") && note.contains(word), "{note}");
    }
}

#[test]
fn pagerduty_has_an_event_for_each_alert_and_a_test_leaves_nothing_open() {
    let both = payload("firing", &[("a1", "firing"), ("a2", "resolved")]);
    let events = bodies(&prepared(json!({"kind": "pagerduty"}), both));
    let said: Vec<_> = events
        .iter()
        .map(|e| (e["dedup_key"].as_str().unwrap(), e["event_action"].as_str().unwrap()))
        .collect();
    assert_eq!(said, [("a1", "trigger"), ("a2", "resolve")]);
    assert_eq!(events[0]["links"][0]["href"], "https://core.example.org/e/1");
    assert_eq!(events[0]["payload"]["custom_details"]["labels"]["source-id"], "a1");
    let test = bodies(&prepared(
        json!({"kind": "pagerduty"}),
        json!({"alert": "test", "status": "test", "severity": "info"}),
    ));
    let actions: Vec<_> = test.iter().map(|event| event["event_action"].as_str().unwrap()).collect();
    assert_eq!((actions, &test[0]["dedup_key"]), (vec!["trigger", "resolve"], &test[1]["dedup_key"]));
}

#[test]
fn an_alertmanager_knows_the_resolved_alert_by_the_labels_of_the_firing_one() {
    let config = json!({"kind": "alertmanager", "headers": {}});
    let fired = prepared(config.clone(), payload("firing", &[("a1", "firing")]));
    assert_eq!(url(&fired), "https://hooks.example.org/T0/api/v2/alerts");
    let fired = &bodies(&fired)[0][0];
    let resolved = &bodies(&prepared(config, payload("resolved", &[("a1", "resolved")])))[0][0];
    let labels = json!({
        "alertname": "backlog", "project_module": "p", "rule": "backlog", "severity": "critical", "source_id": "a1",
    });
    assert_eq!((&fired["labels"], &resolved["labels"]), (&labels, &labels));
    assert_eq!(
        (&fired["startsAt"], &fired["endsAt"]),
        (&json!("2026-11-20T03:00:00Z"), &json!("2026-12-20T05:00:00Z"))
    );
    assert_eq!(resolved["endsAt"], "2026-11-20T04:00:00Z");
    assert_eq!(fired["generatorURL"], "https://core.example.org/e/1");
    assert_eq!(
        fired["annotations"],
        json!({"execution_url": "https://core.example.org/e/1", "note": "n", "summary": "a1 waits"})
    );
}

#[test]
fn what_takes_alertmanagers_webhook_gets_version_4_of_its_body() {
    let both = payload("firing", &[("a1", "firing"), ("a2", "resolved")]);
    let sent = prepared(json!({"kind": "alertmanager", "mode": "webhook"}), both);
    assert_eq!(url(&sent), "https://hooks.example.org/T0");
    let body = &bodies(&sent)[0];
    assert_eq!((&body["version"], &body["status"]), (&json!("4"), &json!("firing")));
    assert_eq!(body["groupLabels"], json!({"alertname": "backlog", "project_module": "p"}));
    assert!(body["commonLabels"].get("source_id").is_none() && body["commonLabels"]["rule"] == "backlog");
    let alerts = body["alerts"].as_array().unwrap();
    assert_eq!(
        (&alerts[0]["status"], &alerts[0]["endsAt"]),
        (&json!("firing"), &json!("0001-01-01T00:00:00Z"))
    );
    assert_eq!(
        (&alerts[1]["status"], &alerts[1]["endsAt"]),
        (&json!("resolved"), &json!("2026-11-20T04:00:00Z"))
    );
    assert_ne!(alerts[0]["fingerprint"], alerts[1]["fingerprint"]);
}

#[test]
fn slack_has_one_text_in_which_no_value_is_markup() {
    let text = |config: Value| {
        bodies(&prepared(config, payload("firing", &[])))[0]["text"].as_str().unwrap().to_owned()
    };
    let plain = text(json!({"kind": "slack"}));
    assert!(
        plain.starts_with("*[FIRING] backlog (critical): 61 &lt;wait&gt; &amp; see*\n61 &lt;wait"),
        "{plain}"
    );
    let own = json!({"kind": "slack", "title_template": "{{ alert }}", "body_template": "<https://x.example|{{ summary }}>"});
    assert_eq!(text(own), "backlog\n<https://x.example|61 &lt;wait&gt; &amp; see>");
}

#[test]
fn ntfy_rings_by_severity_and_leads_to_the_first_link() {
    let said = |status: &str| bodies(&prepared(json!({"kind": "ntfy"}), payload(status, &[])))[0].clone();
    let fired = said("firing");
    assert_eq!((&fired["priority"], &fired["topic"]), (&json!(5), &json!("ops")));
    assert_eq!(fired["click"], "https://core.example.org/e/1");
    assert_eq!(fired["actions"].as_array().unwrap().len(), 1, "a link without a host leads nowhere");
    assert_eq!(
        (&said("resolved")["priority"], &said("resolved")["tags"]),
        (&json!(3), &json!(["white_check_mark"]))
    );
    let mut long = payload("firing", &[]);
    long["summary"] = json!("é".repeat(9000));
    let long = bodies(&prepared(json!({"kind": "ntfy"}), long));
    assert!(long[0]["message"].as_str().unwrap().len() <= 4096);
}

#[test]
fn a_letter_is_known_by_its_delivery_and_names_its_thread() {
    let config = json!({
        "kind": "email", "smtp_host": "mail.example.org", "port": 587, "from": "beampipe@example.org",
        "to": ["a@example.org", "b@example.org"], "title_template": "{{ alert }}\r\nBcc: x@example.org",
    });
    let Sending::Mail(mail) = prepared(config, payload("firing", &[])).sending else { panic!() };
    let email::Mail { letter, shown, server } = *mail;
    let text = String::from_utf8(letter.message.clone()).unwrap();
    assert!(text.is_ascii(), "every server takes it");
    let header = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert_eq!(header("Message-ID:"), "Message-ID: <00000000-0000-0000-0000-000000000007@example.org>");
    assert!(header("References:").contains("@example.org>"), "{text}");
    assert_eq!(header("Bcc"), "", "a title cannot add a header");
    assert_eq!((shown.subject.as_str(), letter.to.len()), ("backlog  Bcc: x@example.org", 2));
    assert!(server.login.is_none(), "the channel has no user");
    assert!(shown.html.contains("61 &lt;wait&gt; &amp; see"), "{}", shown.html);
    assert!(shown.html.contains("<a href=\"https://core.example.org/e/1\">"), "{}", shown.html);
}

#[test]
fn a_secret_that_is_missing_is_named() {
    let order = order(payload("firing", &[]));
    let message = Outbound::new(Uuid::from_u128(7), &order, DateTime::UNIX_EPOCH);
    for (kind, field) in [("slack", "url"), ("pagerduty", "url"), ("ntfy", "topic")] {
        let mut some = opened();
        some.0.remove(field);
        let error = prepare(&Config::blank(kind).unwrap(), &some, &message).unwrap_err();
        assert_eq!(error, format!("{field}: the channel has none"));
    }
}

#[test]
fn an_alertmanager_shows_what_happened_from_when_it_is_told_and_each_execution_by_itself() {
    let happened = |id: &str, execution: Value| {
        json!({
            "id": id, "status": "firing", "labels": {"rule": "ended"}, "execution_id": execution, "occurrence": true,
            "starts_at": "2026-11-20T03:00:00Z", "ends_at": null,
        })
    };
    let mut all = payload("firing", &[("condition", "firing")]);
    let alerts = all["alerts"].as_array_mut().unwrap();
    alerts.extend([happened("h1", json!("e1")), happened("h2", json!("e2")), happened("h3", Value::Null)]);
    alerts.push(json!({"id": "x", "status": "firing", "labels": {}, "ends_at": "2026-11-20T03:05:00Z"}));
    let api = bodies(&prepared(json!({"kind": "alertmanager"}), all.clone()));
    let webhook = bodies(&prepared(json!({"kind": "alertmanager", "mode": "webhook"}), all));
    let (api, webhook) = (api[0].as_array().unwrap(), webhook[0]["alerts"].as_array().unwrap());
    for alerts in [api, webhook] {
        let label = |n: usize, name: &str| alerts[n]["labels"][name].as_str().map(str::to_owned);
        let both = |n: usize| (label(n, "execution"), label(n, "alert_id"));
        assert_eq!(both(0), (None, None), "a condition is the same alert whichever execution it sees");
        assert_eq!(both(1), (Some("e1".into()), None));
        assert_eq!(both(2), (Some("e2".into()), None));
        assert_eq!(both(3), (None, Some("h3".into())));
    }
    let ends: Vec<_> = api.iter().map(|alert| alert["endsAt"].as_str().unwrap()).collect();
    let soon = "2026-11-20T05:05:00Z";
    assert_eq!(ends, ["2026-12-20T05:00:00Z", soon, soon, soon, soon]);
    let known: std::collections::BTreeSet<_> =
        webhook.iter().map(|a| a["fingerprint"].as_str().unwrap()).collect();
    assert_eq!(known.len(), webhook.len());
}

#[test]
fn pagerduty_is_not_paged_for_a_notice_and_it_is_not_left_open() {
    let notice = crate::alerts::message::of_disabled("mail", "email", "no answer", DateTime::UNIX_EPOCH);
    let events = bodies(&prepared(json!({"kind": "pagerduty"}), notice.clone()));
    let actions: Vec<_> = events.iter().map(|event| event["event_action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["trigger", "resolve"]);
    let webhook = bodies(&prepared(json!({"kind": "webhook", "template": "pagerduty"}), notice));
    for event in events.iter().chain(&webhook) {
        assert_eq!((&event["payload"]["severity"], &event["dedup_key"]), (&json!("warning"), &json!("key")));
    }
}
