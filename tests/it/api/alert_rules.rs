use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{self, answered};

fn path(answer: &Value) -> String {
    format!("/alert-rules/{}", answer["uuid"].as_str().unwrap())
}

async fn channel(service: &support::Service) -> Value {
    let channel = json!({"name": "ops", "kind": "webhook", "config": {"url": "https://hooks.example.org/x"}});
    service.post("/notification-channels", channel).await.is(201)["uuid"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_is_created_changed_and_removed_version_by_version() {
    let service = support::service().await;
    service.project("p").await;
    let channel = channel(&service).await;
    // As a console sends it.
    let draft = json!({
        "name": "backlog", "project_module": "p", "severity": "critical", "trigger_kind": "pending_backlog",
        "trigger_config": {"threshold": null}, "channel_ids": [channel], "cooldown_minutes": 30, "enabled": true,
    });
    let created = service.post("/alert-rules", draft).await.is(201);
    assert_eq!(created["trigger_config"], json!({"threshold": 50}), "as in earlier releases");
    assert_eq!((&created["version"], &created["last_fired_at"]), (&json!(1), &Value::Null));
    assert_eq!(created["warnings"], json!(["channel \"ops\" was never tested"]));
    let one = path(&created);
    assert_eq!(
        service.patch(&one, created.clone()).await.is(200),
        created,
        "the whole answer changes nothing"
    );
    let changes = json!({
        "project_module": "", "trigger_config": {"threshold": 3}, "for_seconds": 120, "no_data": "resolve",
        "labels": {"team": "survey"}, "annotations": {"runbook_url": "https://example.org/backlog"},
        "cooldown_minutes": null,
    });
    let changed = service.patch(&one, changes).await.is(200);
    assert_eq!(
        (&changed["project_module"], &changed["version"]),
        (&Value::Null, &json!(2)),
        "it is global now"
    );
    assert_eq!(
        (&changed["trigger_config"], &changed["for_seconds"]),
        (&json!({"threshold": 3}), &json!(120))
    );
    assert_eq!((&changed["severity"], &changed["cooldown_minutes"]), (&json!("critical"), &json!(0)));
    let other = service.patch(&one, json!({"trigger_kind": "pending_stale"})).await.is(200);
    assert_eq!(other["trigger_config"], json!({"max_age_seconds": 21_600}), "another kind begins anew");
    assert_eq!(service.get("/alert-rules").await.is(200), json!([other]));
    let of_project = service.get("/alert-rules?project_module=other").await.is(200);
    assert_eq!(of_project.as_array().unwrap().len(), 1, "a global rule is every project's");
    let events = service.get("/events?type=rule.*").await.is(200);
    assert_eq!(events.as_array().unwrap().len(), 3);
    assert_eq!(service.delete(&one).await.status.as_u16(), 204);
    service.get(&one).await.is(404);
    service.delete(&one).await.is(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_trigger_is_taken_with_nothing_but_its_name() {
    let service = support::service().await;
    for kind in beampipe_domain::rule::Trigger::KINDS.iter().filter(|kind| **kind != "expression") {
        let draft = json!({"name": kind, "project_module": "", "trigger_kind": kind, "channel_ids": []});
        let created = service.post("/alert-rules", draft).await.is(201);
        assert_eq!((&created["trigger_kind"], &created["severity"]), (&json!(kind), &json!("warning")));
        assert!(created["warnings"][0].as_str().unwrap().contains("no channel"), "{created}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_saw_the_same_version_of_a_rule_the_second_changes_nothing() {
    let service = support::service().await;
    let draft = json!({"name": "r", "trigger_kind": "discovery_changed", "channel_ids": []});
    let created = service.post("/alert-rules", draft).await;
    assert_eq!(created.header("etag"), Some("\"1\""));
    let one = path(&created.is(201));
    let change = |name: &str, tag: &str| {
        let request = service.request(Method::PATCH, &one).header("if-match", tag);
        request.json(&json!({"name": name})).send()
    };
    let first = answered(change("a", "\"1\"").await.unwrap()).await;
    assert_eq!((first.status.as_u16(), first.header("etag")), (200, Some("\"2\"")));
    assert_eq!(answered(change("b", "\"1\"").await.unwrap()).await.is(412)["code"], "outdated");
    assert_eq!(answered(change("c", "\"x\"").await.unwrap()).await.is(400)["code"], "bad-header");
    assert_eq!(service.get(&one).await.is(200)["name"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_a_rule_is_said_at_once() {
    let service = support::service().await;
    let wrong = json!({
        "name": "", "project_module": "nope", "severity": "panic", "trigger_kind": "pending_backlog",
        "trigger_config": {"threshold": 0}, "channel_ids": "all", "cooldown_minutes": -1, "for_seconds": 1e9,
        "no_data": "guess", "repeat_interval_seconds": 1, "labels": {"1x": "y"}, "enabled": "yes", "colour": 1,
    });
    let refused = service.post("/alert-rules", wrong).await.is(422);
    assert_eq!(refused["code"], "invalid-rule");
    let errors = refused["errors"].as_array().unwrap();
    let fields: Vec<_> = errors.iter().map(|error| error["field"].as_str().unwrap()).collect();
    for field in [
        "name",
        "severity",
        "trigger_config.threshold",
        "channel_ids",
        "cooldown_minutes",
        "for_seconds",
        "no_data",
        "repeat_interval_seconds",
        "labels",
        "enabled",
        "colour",
    ] {
        assert!(fields.contains(&field), "{field} is not among {fields:?}");
    }
    let nobody = "018f0000-0000-7000-8000-000000000000";
    let away = json!({
        "name": "r", "project_module": "nope", "trigger_kind": "discovery_changed", "channel_ids": [nobody],
    });
    let refused = service.post("/alert-rules", away).await.is(422);
    assert_eq!(refused["errors"][0]["field"], "project_module");
    assert_eq!(refused["errors"][1]["field"], "channel_ids[0]");
    for (kind, config) in [
        (json!(null), json!({})),
        (json!("earthquake"), json!({})),
        (json!("pending_backlog"), json!({"treshold": 3})),
        (json!("execution_terminal"), json!({"statuses": ["exploded"]})),
        (json!("execution_terminal"), json!({"statuses": []})),
        (json!("daily_summary"), json!({"window_hours": 0})),
    ] {
        let body = json!({"name": "r", "trigger_kind": kind, "trigger_config": config, "channel_ids": []});
        let refused = service.post("/alert-rules", body).await.is(422);
        assert!(refused["errors"][0]["field"].as_str().unwrap().starts_with("trigger_"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_of_a_rule_is_kept_and_shown_and_what_cannot_be_meant_is_refused_by_its_field() {
    let service = support::service().await;
    let channel = channel(&service).await;
    let draft = json!({
        "name": "odd", "trigger_kind": "expression", "channel_ids": [channel],
        "trigger_config": {"expression": "pending > 100 && last_hour.completed == 0"},
        "group_by": ["severity", "project_module", "severity"], "group_wait_seconds": 30, "group_interval_seconds": 300,
        "escalation": {"after_minutes": 15, "channel_ids": [channel]},
        "quiet_hours": {"from": "22:00", "to": "07:00", "utc_offset_minutes": 480},
        "flapping": {"times": 2, "window_minutes": 30},
        "inhibits": [{"matchers": [{"name": "trigger", "op": "=~", "value": "discovery_.*"}], "equal": ["project_module"]}],
    });
    let created = service.post("/alert-rules", draft.clone()).await.is(201);
    assert_eq!(created["group_by"], json!(["project_module", "severity"]));
    for field in
        ["group_wait_seconds", "group_interval_seconds", "escalation", "quiet_hours", "flapping", "inhibits"]
    {
        assert_eq!(created[field], draft[field], "{field}");
    }
    let one = path(&created);
    assert_eq!(
        service.patch(&one, created.clone()).await.is(200),
        created,
        "the whole answer changes nothing"
    );
    let nulls = json!({"group_by": null, "escalation": null, "quiet_hours": null, "flapping": null, "inhibits": null});
    let cleared = service.patch(&one, nulls).await.is(200);
    assert_eq!((&cleared["quiet_hours"], &cleared["flapping"]["times"]), (&Value::Null, &json!(3)));
    for (field, value) in [
        ("trigger_config.expression", json!({"trigger_config": {"expression": "pendin > 1"}})),
        ("trigger_config.expression", json!({"trigger_config": {"expression": ""}})),
        ("trigger_config.ratio", json!({"trigger_kind": "error_rate", "trigger_config": {"ratio": 1.5}})),
        ("trigger_config", json!({"trigger_kind": "queue_age", "trigger_config": {"job_kind": "none"}})),
        ("trigger_config", json!({"trigger_kind": "queue_age", "trigger_config": {"max_age": 3}})),
        ("quiet_hours", json!({"quiet_hours": {"from": "22:00", "to": "24:00"}})),
        ("quiet_hours", json!({"quiet_hours": {"from": "é:00", "to": "7:00"}})),
        ("escalation", json!({"escalation": {"after_minutes": 15, "channel_ids": []}})),
        (
            "escalation.channel_ids[0]",
            json!({"escalation": {"after_minutes": 1, "channel_ids": [uuid::Uuid::nil()]}}),
        ),
        (
            "escalation",
            json!({"trigger_kind": "discovery_changed", "escalation": {"after_minutes": 1, "channel_ids": [channel]}}),
        ),
        ("flapping", json!({"flapping": {"times": 0, "window_minutes": 30}})),
        (
            "inhibits[0].matchers",
            json!({"inhibits": [{"matchers": [{"name": "a", "op": "=~", "value": "("}]}]}),
        ),
        ("inhibits[0]", json!({"inhibits": [{"matchers": []}]})),
        ("group_by", json!({"group_by": [""]})),
        ("project_module", json!({"trigger_kind": "heartbeat", "project_module": "p"})),
    ] {
        let refused = service.patch(&one, value.clone()).await.is(422);
        let fields: Vec<_> =
            refused["errors"].as_array().unwrap().iter().map(|error| &error["field"]).collect();
        assert!(fields.contains(&&json!(field)), "{value}: {refused}");
    }
    let used = service.delete(&format!("/notification-channels/{}", channel.as_str().unwrap())).await;
    assert_eq!(used.status.as_u16(), 409, "a rule names it");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_by_people_who_named_no_version_are_merged_one_after_the_other() {
    let service = support::service().await;
    let channel = channel(&service).await;
    let draft = json!({"name": "r", "trigger_kind": "heartbeat", "channel_ids": [channel]});
    let one = path(&service.post("/alert-rules", draft).await.is(201));
    let of_channel = format!("/notification-channels/{}", channel.as_str().unwrap());
    let changes = (1..=20).map(|n| {
        let (service, one, of_channel) = (&service, &one, &of_channel);
        async move {
            let rule = service.patch(one, json!({"for_seconds": n})).await.status.as_u16();
            (rule, service.patch(of_channel, json!({"name": format!("ops {n}")})).await.status.as_u16())
        }
    });
    let done = futures::future::join_all(changes).await;
    assert!(done.iter().all(|codes| *codes == (200, 200)), "{done:?}");
    assert_eq!(service.get(&one).await.is(200)["version"], 21);
    let taken = service.patch(&one, json!({"labels": {"rule": "mine"}})).await.is(422);
    assert_eq!(taken["errors"][0]["field"], "labels.rule");
}
