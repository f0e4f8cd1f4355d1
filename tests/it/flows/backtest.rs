//! What a rule would have said is what a live evaluation had said on the same events; and why somebody was told, or was not.

use std::sync::Arc;
use std::time::Instant;

use beampipe::alerts::evaluate::{Evaluator, Setting};
use beampipe::alerts::payload::Links;
use beampipe::clock::Clock;
use beampipe::codec;
use beampipe::handle::{Context, Handle};
use beampipe::metrics::Metrics;
use beampipe_domain::rule::{self, Rule, Spec, Trigger};
use beampipe_domain::source::{Check, Command, Outcome, Source};
use beampipe_domain::{Event, alerting, delivery, id};
use beampipe_log::{Direction, Filter};
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support;

fn setting(service: &support::Service) -> Setting {
    Setting {
        handle: service.handle.clone(),
        links: Links::default(),
        noted: service.directory.path().join("judged"),
        process: "test".into(),
        metrics: Metrics::new("test", "sqlite"),
    }
}

/// Sources whose data change, and which are admitted, wave after wave, in a time that is over.
struct Survey {
    handle: Handle,
    clock: Clock,
    context: Context,
}

const SOURCES: usize = 2000;
const AT_ONCE: usize = 64;

impl Survey {
    /// The same to every source, `AT_ONCE` of them at a time, with `pause` between.
    async fn wave(&self, pause: TimeDelta, command: impl Fn(usize) -> Command) {
        for first in (0..SOURCES).step_by(AT_ONCE) {
            let some = first..(first + AT_ONCE).min(SOURCES);
            let asked = some.map(|n| {
                let (source, command) = (id::source("p", &format!("S{n}")).to_string(), command(n));
                async move { self.handle.handle::<Source>(&source, &self.context, command).await.unwrap() }
            });
            let asked: Vec<_> = asked.collect();
            futures::stream::iter(asked).buffer_unordered(AT_ONCE).for_each(async |_| {}).await;
            self.clock.advance(pause);
        }
    }

    async fn waves(&self, waves: u64, pause: TimeDelta) {
        let register = |n: usize| Command::Register {
            project_module: "p".into(),
            source_identifier: format!("S{n}"),
            enabled: true,
        };
        self.wave(TimeDelta::zero(), register).await;
        for wave in 0..waves {
            let signature = format!("{wave:064}");
            let found = || Outcome::Found {
                signature: signature.clone(),
                dataset_count: 1,
                sbids: vec!["1".into()],
                metadata_sha256: signature.clone(),
            };
            self.wave(pause, |_| Command::RecordDiscovery { outcome: found(), check: Check::default() })
                .await;
            let execution_id = |n: usize| id::source("execution", &format!("{wave}/{n}"));
            let admit = |n| Command::Admit { execution_id: execution_id(n), signature: signature.clone() };
            self.wave(pause, admit).await;
            // So that what came and went is steady again.
            if wave % 6 == 5 {
                self.clock.advance(TimeDelta::hours(2));
            }
        }
    }
}

/// What a live evaluation enqueued, as a backtest says it.
async fn enqueued(service: &support::Service) -> Vec<Value> {
    let (mut said, mut from) = (vec![], 0);
    let (log, filter) = (service.handle.log(), Filter::category("delivery"));
    loop {
        let page = log.read_all(from, Direction::Forward, 1000, &filter).await.unwrap();
        for recorded in &page.events {
            let Event::Delivery(delivery::Event::Enqueued(e)) = codec::decode(recorded).unwrap() else {
                continue;
            };
            let fields = [
                "id",
                "status",
                "labels",
                "summary",
                "execution_id",
                "source_identifiers",
                "starts_at",
                "ends_at",
            ];
            let alerts = e.payload["alerts"].as_array().unwrap().iter();
            let alerts: Vec<Value> = alerts
                .map(|alert| fields.iter().map(|field| ((*field).to_owned(), alert[field].clone())).collect())
                .collect();
            said.push(
                json!({"at": e.at, "status": e.payload["status"], "channel_id": e.channel_id, "alerts": alerts}),
            );
        }
        match page.next {
            Some(next) => from = next,
            None => return said,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backtest_says_what_a_live_evaluation_had_said_on_the_same_events() {
    // A wave is 4,000 events, a million in all over four days, or fewer.
    let waves = if std::env::var_os("BEAMPIPE_TEST_SOAK").is_some() { 250 } else { 18 };
    let service = support::service().await;
    let channel = json!({"name": "ops", "kind": "webhook", "config": {"url": "http://127.0.0.1:9/x"}});
    let channel = service.post("/notification-channels", channel).await.is(201)["uuid"].clone();
    let begin = service.clock.now() - TimeDelta::days(6);
    let clock = Clock::by_hand(begin);
    let past = Handle::new(service.handle.log().clone(), clock.clone());
    let survey = Survey { context: Context::system(&clock, "test"), handle: past, clock: clock.clone() };
    let spec = Spec {
        name: "backlog".into(),
        enabled: true,
        channel_ids: vec![channel.as_str().unwrap().parse().unwrap()],
        trigger: Trigger::PendingBacklog { threshold: 1000 },
        for_seconds: 30,
        ..Spec::default()
    };
    let rule = service.clock.id();
    let create = rule::Command::Create { spec };
    survey.handle.handle::<Rule>(&rule.to_string(), &survey.context, create).await.unwrap();
    configured(&survey).await;
    let began = Instant::now();
    survey.waves(waves, TimeDelta::milliseconds(4500)).await;
    let events = service.handle.log().head().position;
    println!("{events} events were made in {:.1?}", began.elapsed());
    let end: DateTime<Utc> = clock.now() + TimeDelta::minutes(1);
    let (setting, began) = (setting(&service), Instant::now());
    Evaluator::begin(&setting).await.judge_between(begin, end).await.unwrap();
    println!("judged live, late, {} points in {:.1?}", (end - begin).num_seconds() / 15, began.elapsed());
    let live = enqueued(&service).await;
    let asked = json!({"rule_id": rule, "from": begin, "to": end});
    let began = Instant::now();
    let report = service.post("/alert-rules/backtest", asked).await.is(200);
    println!(
        "backtest: {} events and {} points in {:.1?}: fired {} times, {} messages, {} held back; live: {} messages",
        report["events_read"],
        report["points"],
        began.elapsed(),
        report["fired"],
        report["messages_total"],
        report["held_back_total"],
        live.len()
    );
    assert_eq!(report["messages"].as_array().unwrap(), &live);
    assert!(live.len() as u64 >= waves, "of six waves three were told of, and that they ended");
    assert!(report["held_back_total"].as_u64().unwrap() > 0, "it comes and goes, and that is damped");
    // A rule that is not saved, with more patience, says less; nothing is recorded of it.
    let changed =
        json!({"rule_id": rule, "from": begin, "to": end, "rule": {"trigger_config": {"threshold": 2001}}});
    let none = service.post("/alert-rules/backtest", changed).await.is(200);
    assert_eq!((&none["fired"], &none["messages"]), (&json!(0), &json!([])));
    assert_eq!(enqueued(&service).await.len(), live.len());
}

/// The project's configuration, active since the past.
async fn configured(survey: &Survey) {
    use beampipe_domain::project::{Command, Project};
    let upload = |version: u32| Command::UploadConfig {
        project_module: "p".into(),
        spec_sha256: format!("{version:064}"),
        spec: json!({"version": version}),
    };
    survey.handle.handle::<Project>("p", &survey.context, upload(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backtest_that_cannot_be_meant_is_refused_by_its_field() {
    let service = support::service().await;
    for (field, asked) in [
        ("rule_id", json!({"from": service.clock.now() - TimeDelta::days(1)})),
        (
            "from",
            json!({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z", "rule": {"name": "r", "trigger_kind": "discovery_changed"}}),
        ),
        (
            "from",
            json!({"from": "2001-01-01T00:00:00Z", "rule": {"name": "r", "trigger_kind": "discovery_changed"}}),
        ),
        (
            "rule.trigger_kind",
            json!({"from": service.clock.now() - TimeDelta::days(1), "rule": {"name": "r"}}),
        ),
        ("form", json!({"form": "2026-01-01T00:00:00Z"})),
    ] {
        let refused = service.post("/alert-rules/backtest", asked.clone()).await.is(422);
        let fields: Vec<_> =
            refused["errors"].as_array().unwrap().iter().map(|error| &error["field"]).collect();
        assert!(fields.contains(&&json!(field)), "{asked}: {refused}");
    }
    let unknown = json!({"rule_id": Uuid::nil(), "from": service.clock.now() - TimeDelta::days(1)});
    service.post("/alert-rules/backtest", unknown).await.is(404);
    service.get("/alerts/explain").await.is(400);
    service.get(&format!("/alerts/explain?rule={}", Uuid::nil())).await.is(404);
    service.get(&format!("/alerts/explain?execution={}", Uuid::nil())).await.is(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_explained_why_somebody_was_told_or_was_not() {
    let service = support::service().await;
    let execution = service.execution("p").await;
    let channel = json!({"name": "ops", "kind": "webhook", "config": {"url": "http://127.0.0.1:9/x"}});
    let channel = service.post("/notification-channels", channel).await.is(201)["uuid"].clone();
    let rule = async |name: &str, more: Value| {
        let mut draft = json!({"name": name, "trigger_kind": "execution_terminal", "channel_ids": [channel]});
        draft.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        service.post("/alert-rules", draft).await.is(201)["uuid"].clone()
    };
    let ends = rule("ends", json!({})).await;
    let failures = rule("failures", json!({"trigger_config": {"statuses": ["failed"]}})).await;
    let off = rule("off", json!({"enabled": false})).await;
    let quiet = rule("quiet", json!({})).await;
    let backlog =
        rule("backlog", json!({"trigger_kind": "pending_backlog", "trigger_config": {"threshold": 1}})).await;
    let mute = rule("mute", json!({"channel_ids": []})).await;
    let waits = rule("waits", json!({"group_by": [], "group_wait_seconds": 3600})).await;
    let silence =
        json!({"matchers": [{"name": "rule", "value": "quiet"}], "comment": "x", "duration_minutes": 5});
    service.post("/silences", silence).await.is(201);
    let before = service.clock.now();
    service.patch(&format!("/executions/{execution}"), json!({"status": "cancelled"})).await.is(200);
    let at = alerting::next(alerting::point(service.clock.now()));
    let setting = Arc::new(setting(&service));
    // A point is judged when it has passed.
    let asked = async || {
        let answer = service.get(&format!("/alerts/explain?execution={execution}")).await.is(200);
        let rules = answer["rules"].as_array().unwrap().clone();
        move |rule: &Value| rules.iter().find(|one| one["rule_id"] == *rule).cloned().unwrap()
    };
    while service.clock.now() < at + TimeDelta::seconds(1) {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(asked().await(&ends)["verdict"], "waiting", "nobody has judged yet");
    Evaluator::begin(&setting).await.judge_between(at - TimeDelta::seconds(15), at).await.unwrap();
    service.api.settle(service.handle.log().head().position).await;
    let of = asked().await;
    let told = of(&ends);
    assert_eq!(told["verdict"], "told", "{told}");
    assert!(told["why"].as_str().unwrap().contains("it ended as cancelled"), "{told}");
    let alert = &told["alerts"][0];
    assert_eq!(alert["events"][0]["event_type"], "alert.fired");
    assert_eq!(
        (&alert["deliveries"][0]["channel_name"], &alert["deliveries"][0]["status"]),
        (&json!("ops"), &json!("pending"))
    );
    assert_eq!(of(&failures)["why"], "the rule does not tell of executions that are cancelled");
    assert_eq!(of(&off)["why"], "the rule was not enabled");
    assert_eq!(of(&mute)["verdict"], "no_channel");
    let waits = of(&waits);
    assert_eq!(waits["verdict"], "waiting");
    assert!(waits["why"].as_str().unwrap().contains("waits for others of its group, until"), "{waits}");
    let held = of(&quiet);
    assert_eq!(held["verdict"], "held_back", "{held}");
    assert!(held["why"].as_str().unwrap().ends_with("silence held it back"), "{held}");
    let earlier = service
        .get(&format!("/alerts/explain?execution={execution}&at={}", before.format("%Y-%m-%dT%H:%M:%S%.6fZ")))
        .await
        .is(200);
    let known = earlier["rules"].as_array().unwrap().iter().find(|one| one["rule_id"] == ends);
    assert!(known.is_none_or(|one| one["why"] == "the execution had not ended at that time"), "{earlier}");
    let rule = service.get(&format!("/alerts/explain?rule={}", backlog.as_str().unwrap())).await.is(200);
    let instance = &rule["rules"][0]["instances"][0];
    assert_eq!((&instance["condition"], &instance["state"]), (&json!("holds"), &json!("firing")), "{rule}");
    assert_eq!(rule["rules"][0]["verdict"], "told");
    assert_eq!(rule["rules"][0]["alerts"][0]["deliveries"].as_array().unwrap().len(), 1);
    // The same alert is silenced in one step.
    let path = format!("/alerts/{}/silence", instance["alert"].as_str().unwrap());
    let silence = service.post(&path, json!({"duration_minutes": 30})).await.is(201);
    let names: Vec<_> =
        silence["matchers"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["project_module", "rule", "severity", "trigger"]);
    service.post(&path, json!({"duration_minutes": 0})).await.is(422);
}
