//! An evening with alerts, told through the command line: installed, tested, fired, killed, silenced, explained.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::alerting::Receiver;
use super::service::Service;
use crate::cli::run::{Ran, command, ran};
use crate::support;

/// Asks the service with the binary.
fn alerts(service: &Service, arguments: &[&str]) -> Ran {
    let mut command = command(&std::env::temp_dir());
    command
        .arg("alerts")
        .args(arguments)
        .env("BEAMPIPE_URL", service.url("").trim_end_matches("/api/v2"))
        .env("BEAMPIPE_KEY", &service.key);
    let ran = ran(command.output().unwrap());
    println!("$ beampipe alerts {}\n{}{}", arguments.join(" "), ran.out, ran.err);
    ran
}

/// Waits until the receiver heard of an alert in this state.
async fn heard(receiver: &Receiver, alert: &str, status: &str) -> Value {
    let began = Instant::now();
    loop {
        let got = receiver.got();
        let found =
            got.iter().map(|one| one.json()).find(|one| one["alert"] == alert && one["status"] == status);
        if let Some(found) = found {
            return found;
        }
        let heard: Vec<_> = got.iter().map(|one| one.json()["summary"].clone()).collect();
        assert!(began.elapsed() < Duration::from_secs(60), "{alert} {status} is not among {heard:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_installs_rules_is_told_once_over_a_kill_and_can_ask_why() {
    let receiver = Receiver::default();
    let url = receiver.listen().await;
    let mut service = Service::start(&[
        ("BEAMPIPE_OUTGOING__ALLOW_NETWORKS", "[\"127.0.0.0/8\"]"),
        ("BEAMPIPE_HTTP__PUBLIC_URL", "https://beampipe.example.org"),
    ])
    .await;
    // Its archive answers nothing.
    let upload = service.request(reqwest::Method::POST, "/project-configs").body(support::survey("p"));
    assert_eq!(upload.header("content-type", "application/x-yaml").send().await.unwrap().status(), 201);
    service
        .post("/notification-channels", json!({"name": "ops", "kind": "webhook", "config": {"url": url}}))
        .await;
    let began = Instant::now();
    while !service.get("/ready").await["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .any(|one| one["name"] == "tap_a")
    {
        assert!(began.elapsed() < Duration::from_secs(30), "the archive is not looked at");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let dry = alerts(&service, &["install", "--channel", "ops", "--dry-run"]);
    assert!(dry.status == 0 && dry.out.contains("would be installed"), "{dry:?}");
    let install = ["install", "--channel", "ops", "--heartbeat-channel", "ops"];
    assert!(alerts(&service, &install).out.contains("dependency-down-tap_a"));
    assert!(!alerts(&service, &install).out.contains("installed\n"), "a second time nothing is installed");
    let untested = alerts(&service, &["rules", "-o", "json"]).json();
    assert_eq!(untested[0]["warnings"], json!(["channel \"ops\" was never tested"]));
    assert_eq!(alerts(&service, &["test", "ops"]).status, 0);
    assert_eq!(alerts(&service, &["rules", "-o", "json"]).json()[0]["warnings"], json!([]));
    assert_eq!(alerts(&service, &["test", "nobody"]).status, 1);
    let away = json!({
        "name": "away", "severity": "critical", "trigger_kind": "dependency_down", "channel_ids": [channel(&service).await],
        "trigger_config": {"dependency": "tap_a"},
    });
    service.post("/alert-rules", away).await;
    let told = heard(&receiver, "away", "firing").await;
    assert!(
        told["links"]["alert"].as_str().unwrap().starts_with("https://beampipe.example.org/api/v2/alerts/")
    );
    let token = told["links"]["silence"]
        .as_str()
        .unwrap()
        .strip_prefix("https://beampipe.example.org/api/v2/silence/");
    let page =
        support::client().get(service.url(&format!("/silence/{}", token.unwrap()))).send().await.unwrap();
    assert_eq!(page.status().as_u16(), 200, "the link of the message needs no key");
    let kept = service.get("/alert-deliveries").await.to_string();
    assert!(
        kept.contains("/silence") && !kept.contains(token.unwrap()),
        "a link that is a key is kept nowhere"
    );
    let alive = heard(&receiver, "heartbeat", "firing").await;
    let runbook = alive["links"]["runbook"].as_str().unwrap().to_owned();
    let page = support::client().get(&runbook).send().await.unwrap().text().await.unwrap();
    assert!(page.starts_with("# heartbeat"), "the link leads to the page, and not to {page}");
    service.kill();
    service.start_again(&[]).await;
    // Two points later nothing was said again.
    tokio::time::sleep(Duration::from_secs(33)).await;
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for got in receiver.got() {
        *times.entry(format!("{} {}", got.json()["alert"], got.json()["status"])).or_default() += 1;
    }
    assert_eq!((times["\"away\" \"firing\""], times["\"heartbeat\" \"firing\""]), (1, 1), "{times:?}");
    let listed = alerts(&service, &["list", "-o", "json"]).json();
    let away = listed.as_array().unwrap().iter().find(|one| one["rule_name"] == "away").unwrap();
    let id = away["id"].as_str().unwrap();
    assert_eq!(alerts(&service, &["ack", id, "--comment", "mine"]).status, 0);
    assert!(alerts(&service, &["list"]).out.contains("key:first"));
    let why = alerts(&service, &["explain", "--rule", "away"]);
    assert!(why.out.contains("told") && why.out.contains("attempt 1: 200"), "{why:?}");
    let before = alerts(&service, &["explain", "--rule", "away", "--at", "1s"]);
    assert!(before.status == 0 && before.out.contains("told"), "{before:?}");
    let tried = alerts(&service, &["backtest", "away", "--from", "15m", "-o", "json"]).json();
    assert_eq!((&tried["fired"], &tried["messages_total"]), (&json!(1), &json!(1)), "{tried}");
    assert_eq!(alerts(&service, &["silence", id, "--for", "30m", "--comment", "known"]).status, 0);
    let silences = alerts(&service, &["silences"]);
    assert!(silences.out.contains("rule=away") && silences.out.contains("known"), "{silences:?}");
    let id = alerts(&service, &["silences", "-o", "json"]).json()[0]["uuid"].as_str().unwrap().to_owned();
    assert_eq!(alerts(&service, &["unsilence", &id]).status, 0);
    assert!(alerts(&service, &["deliveries", "--status", "sent"]).out.contains("tap_a is down"));
    let (_, metrics) = service.text("/metrics", "text/plain").await;
    let judged = metrics
        .lines()
        .find_map(|line| line.strip_prefix("beampipe_alerts_judged_through_timestamp_seconds "));
    assert!(judged.is_some_and(|time| time.parse::<f64>().unwrap() > 1.7e9), "{judged:?}");
    service.stop().await;
    service.verify_log();
}

async fn channel(service: &Service) -> Value {
    service.get("/notification-channels").await[0]["uuid"].clone()
}
