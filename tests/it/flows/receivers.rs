//! Messages to receivers that others wrote: a library that checks signatures, a mail server with TLS, an Alertmanager.

use std::time::{Duration, Instant};

use beampipe::alerts::channels::alertmanager;
use beampipe_domain::delivery::{Command, Delivery, Enqueued, Message};
use serde_json::{Value, json};
use uuid::Uuid;

use super::alerting;
use crate::backends::daliuge::told;
use crate::support::{self, Service};

async fn channel(service: &Service, kind: &str, config: Value) -> Value {
    let channel = json!({"name": format!("real {kind}"), "kind": kind, "config": config});
    service.post("/notification-channels", channel).await.is(201)
}

fn path(channel: &Value) -> String {
    format!("/notification-channels/{}", channel["uuid"].as_str().unwrap())
}

async fn test(service: &Service, channel: &Value) -> Value {
    service.post(&format!("{}/test", path(channel)), json!({})).await.is(200)
}

/// A message as an alert would enqueue it, tried once; answers the delivery with its attempts.
async fn deliver(service: &Service, channel: &Value, payload: Value) -> Value {
    let id = service.clock.id();
    let order = Enqueued {
        message: Message::parse(payload["status"].as_str().unwrap()).unwrap(),
        channel_id: channel["uuid"].as_str().unwrap().parse().unwrap(),
        channel_kind: channel["kind"].as_str().unwrap().to_owned(),
        dedup_key: "the-alert".into(),
        payload,
        next_attempt_at: service.clock.now(),
        max_attempts: 13,
        ..Enqueued::default()
    };
    let command = Command::Enqueue(Box::new(order));
    service.handle.handle::<Delivery>(&id.to_string(), &service.context(), command).await.unwrap();
    attempt(service, id).await
}

async fn attempt(service: &Service, id: Uuid) -> Value {
    service.api.sender.attempt(id, &service.context()).await.unwrap();
    assert!(service.api.settle(service.handle.log().head().position).await);
    service.get(&format!("/alert-deliveries/{id}")).await.is(200)
}

fn backlog(status: &str, run: &str, resolved_at: Value) -> Value {
    json!({
        "alert": "backlog", "status": status, "severity": "critical", "project_module": "wallaby",
        "summary": "61 sources of wallaby wait – 50 are too many", "labels": {"rule": "backlog", "run": run},
        "annotations": {"runbook_url": "https://runbooks.example.org/backlog"},
        "links": {"runbook": "https://runbooks.example.org/backlog"},
        "source_identifiers": ["HIPASSJ1318-21"], "fired_at": chrono::DateTime::UNIX_EPOCH, "resolved_at": resolved_at,
    })
}

async fn came_in(name: &str) -> Vec<Value> {
    let url = format!("{}/{name}", told("BEAMPIPE_TEST_WEBHOOK_URL"));
    support::client().get(url).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_of_others_verifies_every_message_also_while_a_secret_is_rotated() {
    let service = support::service().await;
    let (old, new) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
    let name = service.clock.id().simple().to_string();
    let url = format!("{}/{name}", told("BEAMPIPE_TEST_WEBHOOK_URL"));
    let knows = async |secrets: &[&str]| {
        let known = service.http.put(format!("{url}/secrets")).json(&secrets).send().await.unwrap();
        assert_eq!(known.status(), 204);
    };
    let channel = channel(&service, "webhook", json!({"url": url, "signing_secret": old})).await;
    knows(&[old]).await;
    assert_eq!(test(&service, &channel).await["code"], 204);
    knows(&[new]).await;
    let refused = test(&service, &channel).await;
    assert_eq!((&refused["status"], &refused["code"]), (&json!("failed"), &json!(401)), "it does check");
    // While it is rotated, who knows either secret believes the message.
    let rotated = json!({"config": {"signing_secret": new, "previous_signing_secret": old}});
    service.patch(&path(&channel), rotated).await.is(200);
    for known in [&[old][..], &[new], &[old, new]] {
        knows(known).await;
        assert_eq!(test(&service, &channel).await["code"], 204, "{} secrets", known.len());
    }
    service.patch(&path(&channel), json!({"config": {"previous_signing_secret": null}})).await.is(200);
    knows(&[old]).await;
    assert_eq!(test(&service, &channel).await["code"], 401, "the old secret is over");
    knows(&[new]).await;
    let sent = deliver(&service, &channel, backlog("firing", "x", Value::Null)).await;
    assert_eq!(sent["status"], "sent", "{sent}");
    let got = came_in(&name).await;
    let by: Vec<_> = got.iter().map(|one| one["by"].clone()).collect();
    assert_eq!(by, [json!([0]), json!([0]), json!([0]), json!([0, 1]), json!([0])]);
    let last = got.last().unwrap();
    assert_eq!((&last["id"], &last["body"]), (&sent["uuid"], &sent["payload"]));
}

/// What an Alertmanager shows of the alert of this run.
async fn shown(service: &Service, run: &str) -> Vec<Value> {
    let url = format!("{}/api/v2/alerts?filter=run%3D{run}", told("BEAMPIPE_TEST_ALERTMANAGER_URL"));
    service.http.get(url).send().await.unwrap().json().await.unwrap()
}

/// What it told others of it, once it told that it is so.
async fn told_others(run: &str, status: &str) -> Value {
    let began = Instant::now();
    loop {
        let all = came_in("unsigned-alertmanager").await;
        let found = all
            .into_iter()
            .map(|one| one["body"].clone())
            .find(|body| body["alerts"][0]["labels"]["run"] == run && body["status"] == status);
        if let Some(found) = found {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it never told that {run} is {status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alertmanager_shows_the_alert_and_then_its_resolution() {
    let service = support::service().await;
    let run = service.clock.id().simple().to_string();
    let channel =
        channel(&service, "alertmanager", json!({"url": told("BEAMPIPE_TEST_ALERTMANAGER_URL")})).await;
    assert_eq!(deliver(&service, &channel, backlog("firing", &run, Value::Null)).await["status"], "sent");
    let alerts = shown(&service, &run).await;
    println!("Alertmanager shows {}", serde_json::to_string_pretty(&alerts).unwrap());
    assert_eq!((alerts.len(), &alerts[0]["status"]["state"]), (1, &json!("active")));
    let labels = serde_json::from_value(alerts[0]["labels"].clone()).unwrap();
    assert_eq!(alerts[0]["fingerprint"], alertmanager::fingerprint(&labels), "as it makes them itself");
    let fired = told_others(&run, "firing").await;
    let resolved = json!(service.clock.now());
    assert_eq!(deliver(&service, &channel, backlog("resolved", &run, resolved)).await["status"], "sent");
    let over = told_others(&run, "resolved").await;
    println!("and tells others {}", serde_json::to_string_pretty(&over["alerts"]).unwrap());
    assert_eq!(over["alerts"][0]["labels"], fired["alerts"][0]["labels"]);
    assert_eq!(shown(&service, &run).await, Vec::<Value>::new(), "it is active no more");

    // What we send to those who take its webhook has every field that its own has.
    let draft = json!({
        "kind": "alertmanager", "config": {"url": "https://taker.example.org", "mode": "webhook"},
        "payload": backlog("firing", &run, Value::Null),
    });
    let ours = service.post("/notification-channels/preview", draft).await.is(200);
    let ours = &ours["firing"]["requests"][0]["body"];
    let fields =
        |of: &Value| of.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!((fields(ours), fields(&ours["alerts"][0])), (fields(&fired), fields(&fired["alerts"][0])));
    assert_eq!(
        (&ours["version"], &ours["alerts"][0]["endsAt"]),
        (&fired["version"], &fired["alerts"][0]["endsAt"])
    );
    assert_eq!(ours["alerts"][0]["fingerprint"], fired["alerts"][0]["fingerprint"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alertmanager_shows_every_execution_that_ended_also_when_it_is_told_late() {
    let service = support::service().await;
    let run = service.clock.id().simple().to_string();
    let config = json!({"url": told("BEAMPIPE_TEST_ALERTMANAGER_URL")});
    let channel = channel(&service, "alertmanager", config).await;
    let ended = |execution: &str| {
        json!({
            "id": format!("rule-{execution}"), "status": "firing", "labels": {"rule": "ended", "run": run},
            "summary": format!("{execution} failed"), "execution_id": execution, "occurrence": true,
            "starts_at": service.clock.now() - chrono::TimeDelta::minutes(20), "ends_at": null,
        })
    };
    let mut payload = backlog("firing", &run, Value::Null);
    payload["alerts"] = json!([ended("e1"), ended("e2")]);
    assert_eq!(deliver(&service, &channel, payload).await["status"], "sent");
    let alerts = shown(&service, &run).await;
    println!("Alertmanager shows {}", serde_json::to_string_pretty(&alerts).unwrap());
    let executions: std::collections::BTreeSet<_> =
        alerts.iter().map(|alert| alert["labels"]["execution"].as_str().unwrap()).collect();
    assert_eq!(executions.into_iter().collect::<Vec<_>>(), ["e1", "e2"]);
    assert!(alerts.iter().all(|alert| alert["status"]["state"] == "active"));
}

/// The configuration of a mail channel to the real server.
fn mail(directory: &std::path::Path, tls: &str, to: &[&str]) -> Value {
    let password = directory.join("password");
    std::fs::write(&password, format!("{}\n", told("BEAMPIPE_TEST_SMTP_PASSWORD"))).unwrap();
    let port = told(if tls == "implicit" { "BEAMPIPE_TEST_SMTPS_PORT" } else { "BEAMPIPE_TEST_SMTP_PORT" });
    json!({
        "smtp_host": "127.0.0.1", "port": port.parse::<u16>().unwrap(), "tls": tls,
        "ca_file": format!("{}/ca.pem", told("BEAMPIPE_TEST_SMTP_DIR")), "user": told("BEAMPIPE_TEST_SMTP_USER"),
        "from": "beampipe@survey.example.org", "to": to, "password_ref": {"file": password},
    })
}

/// The letters that the server keeps of a delivery, as text.
fn letters(delivery: &Value) -> Vec<String> {
    let prefix = format!("{}@survey.example.org.", delivery["uuid"].as_str().unwrap());
    let kept = std::fs::read_dir(format!("{}/mail", told("BEAMPIPE_TEST_SMTP_DIR"))).unwrap();
    let kept = kept.map(|entry| entry.unwrap().path());
    let mine = kept.filter(|file| file.file_name().unwrap().to_string_lossy().starts_with(&prefix));
    mine.map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_arrives_over_tls_of_either_manner_and_its_copy_has_the_same_id() {
    let service = support::service().await;
    for tls in ["starttls", "implicit"] {
        let config = mail(service.directory.path(), tls, &["a@example.org", "b@example.org"]);
        let channel = channel(&service, "email", config).await;
        let sent = deliver(&service, &channel, backlog("firing", "x", Value::Null)).await;
        assert_eq!((&sent["status"], &sent["code"]), (&json!("sent"), &json!(250)), "{tls}: {sent}");
        let letter = letters(&sent).remove(0);
        println!("over {tls}:\n{letter}");
        for part in [
            "TLS: TLSv1",
            "MAIL FROM: beampipe@survey.example.org",
            "RCPT TO: a@example.org, b@example.org",
            "To: a@example.org, b@example.org",
            "Auto-Submitted: auto-generated",
            "multipart/alternative",
            "runbook: https://runbooks.example.org/backlog",
            "text/html",
        ] {
            assert!(letter.contains(part), "{tls}: {part:?} is not in\n{letter}");
        }
        assert!(!letter.contains("TLS: none") && letter.is_ascii(), "{letter}");
        let again = sent["uuid"].as_str().unwrap();
        service.post(&format!("/alert-deliveries/{again}/redeliver"), json!({})).await.is(202);
        let again = attempt(&service, again.parse().unwrap()).await;
        assert_eq!(
            (&again["status"], letters(&again).len()),
            (&json!("sent"), 2),
            "it may repeat, under its id"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mail_server_says_decides_whether_it_is_tried_again() {
    let service = support::service().await;
    let directory = service.directory.path().to_owned();
    let with = |change: Value| {
        let mut config = mail(&directory, "starttls", &["a@example.org"]);
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        config
    };
    let wrong = directory.join("wrong");
    std::fs::write(&wrong, "canary-wrong-password").unwrap();
    for (what, change, status, code, word) in [
        ("a wrong password", json!({"password_ref": {"file": wrong}}), "failed", json!(535), "535"),
        ("nobody known", json!({"to": ["never@example.org"]}), "failed", json!(550), "no such mailbox"),
        (
            "some known",
            json!({"to": ["never@example.org", "a@example.org"]}),
            "sent",
            json!(250),
            "never@example.org",
        ),
        (
            "one later",
            json!({"to": ["later@example.org", "a@example.org"]}),
            "retrying",
            json!(451),
            "come again",
        ),
        (
            "no TLS",
            json!({"tls": "none", "user": null, "password_ref": null}),
            "failed",
            json!(530),
            "STARTTLS",
        ),
        ("nobody vouches", json!({"ca_file": null}), "retrying", Value::Null, "UnknownIssuer"),
        ("no such authority", json!({"ca_file": "/nowhere.pem"}), "retrying", Value::Null, "ca_file"),
        ("not in the certificate", json!({"smtp_host": "127.0.0.2"}), "retrying", Value::Null, "connect"),
    ] {
        let channel = channel(&service, "email", with(change)).await;
        let tried = deliver(&service, &channel, backlog("firing", "x", Value::Null)).await;
        assert_eq!((&tried["status"], &tried["code"]), (&json!(status), &code), "{what}: {tried}");
        let text = tried["attempt_list"][0].to_string();
        assert!(text.contains(word), "{what}: {text}");
        assert!(!text.contains("canary") && !text.contains("Y2FuYXJ5"), "{what}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_sees_is_shown_by_every_real_receiver_and_then_that_it_is_over() {
    let service = support::service().await;
    let run = service.clock.id().simple().to_string();
    let url = format!("{}/unsigned-{run}", told("BEAMPIPE_TEST_WEBHOOK_URL"));
    let channels = [
        channel(&service, "webhook", json!({"url": url})).await,
        channel(&service, "alertmanager", json!({"url": told("BEAMPIPE_TEST_ALERTMANAGER_URL")})).await,
        channel(&service, "email", mail(service.directory.path(), "starttls", &["ops@example.org"])).await,
    ];
    let ids: Vec<&Value> = channels.iter().map(|channel| &channel["uuid"]).collect();
    let rule = json!({
        "name": "archive", "severity": "critical", "trigger_kind": "dependency_down", "channel_ids": ids,
        "trigger_config": {"dependency": "tap_a"}, "labels": {"run": run},
        "annotations": {"runbook_url": "https://runbooks.example.org/archive"},
    });
    service.post("/alert-rules", rule).await.is(201);
    let stop = tokio_util::sync::CancellationToken::new();
    let post = alerting::run_post(&service, &stop);
    // A point is judged when it is over: an Alertmanager goes by its own clock.
    let judged = async |at: chrono::DateTime<chrono::Utc>| {
        while service.clock.now() < at {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        alerting::judge(&service, at).await;
    };
    alerting::look(&service, "tap_a", false).await;
    judged(alerting::at(&service, 0)).await;
    let fired = alerting::ended(&service, 3).await;
    assert!(fired.iter().all(|one| one["status"] == "sent"), "{fired:#?}");
    assert_eq!(shown(&service, &run).await[0]["labels"]["dependency"], "tap_a");
    // It tells of an end only whom it told of the beginning.
    told_others(&run, "firing").await;
    alerting::look(&service, "tap_a", true).await;
    judged(alerting::at(&service, 0)).await;
    let all = alerting::ended(&service, 6).await;
    assert!(all.iter().all(|one| one["status"] == "sent"), "{all:#?}");
    stop.cancel();
    post.await.unwrap();
    let over = told_others(&run, "resolved").await;
    assert_eq!(over["alerts"][0]["annotations"]["summary"], "tap_a is down: connection refused");
    assert_eq!(shown(&service, &run).await, Vec::<Value>::new(), "the Alertmanager shows it no more");
    let said: Vec<_> =
        came_in(&format!("unsigned-{run}")).await.iter().map(|one| one["body"]["status"].clone()).collect();
    assert_eq!(said, ["firing", "resolved"]);
    let by_mail: Vec<&Value> = all.iter().filter(|one| one["channel_id"] == channels[2]["uuid"]).collect();
    for (delivery, word) in by_mail.iter().zip(["RESOLVED", "FIRING"]) {
        let letter = letters(delivery).remove(0);
        println!("{letter}");
        assert!(letter.contains(&format!("Subject: [{word}] archive (critical)")), "{letter}");
    }
}
