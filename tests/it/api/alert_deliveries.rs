use beampipe_domain::delivery::{Attempt, Command, Delivery, Enqueued, Message, Outcome};
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use crate::support::{self, Service};

async fn tell(service: &Service, id: Uuid, command: Command) {
    let done = service.handle.handle::<Delivery>(&id.to_string(), &service.context(), command).await.unwrap();
    assert!(service.api.settle(done.position).await);
}

async fn enqueue(service: &Service, channel: Uuid) -> Uuid {
    let id = service.clock.id();
    let order = Enqueued {
        message: Message::Firing,
        channel_id: channel,
        channel_kind: "webhook".into(),
        rule_id: Some(Uuid::from_u128(5)),
        payload: json!({"alert": "backlog", "summary": "61 sources wait"}),
        next_attempt_at: service.clock.now(),
        max_attempts: 3,
        ..Enqueued::default()
    };
    tell(service, id, Command::Enqueue(Box::new(order))).await;
    id
}

async fn attempt(service: &Service, id: Uuid, outcome: Outcome) {
    let now = service.clock.now();
    let attempt = Attempt {
        attempt_id: service.clock.id(),
        started_at: now - TimeDelta::milliseconds(12),
        latency_ms: 12,
        outcome,
        at: now,
        jitter: 1.0,
    };
    tell(service, id, Command::Record(Box::new(attempt))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_shows_every_attempt_and_how_it_ended() {
    let service = support::service().await;
    let id = enqueue(&service, Uuid::from_u128(1)).await;
    let one = format!("/alert-deliveries/{id}");
    let pending = service.get(&one).await.is(200);
    assert_eq!((&pending["status"], &pending["attempt_list"]), (&json!("pending"), &json!([])));
    assert_eq!(pending["payload"]["summary"], "61 sources wait");
    let refused =
        Outcome::Refused { code: 429, answer: Some("slow down".into()), retry_after_seconds: Some(60) };
    attempt(&service, id, refused).await;
    let retrying = service.get(&one).await.is(200);
    assert_eq!((&retrying["status"], &retrying["code"]), (&json!("retrying"), &json!(429)));
    assert_eq!(retrying["attempt_list"][0]["answer"], "slow down");
    assert_eq!(retrying["next_attempt_at"], retrying["attempt_list"][0]["retry_at"]);
    attempt(&service, id, Outcome::Taken { code: 202, answer: None }).await;
    let sent = service.get(&one).await.is(200);
    assert_eq!(
        (&sent["status"], &sent["attempts"], &sent["error"]),
        (&json!("sent"), &json!(2), &json!(null))
    );
    let metrics = service.http.get(format!("{}/metrics", service.metrics_url)).send().await.unwrap();
    let text = metrics.text().await.unwrap();
    for kind in ["email", "slack", "pagerduty", "alertmanager", "ntfy"] {
        for outcome in ["sent", "failed"] {
            let line =
                format!("beampipe_alert_deliveries_total{{channel_kind=\"{kind}\",outcome=\"{outcome}\"}} 0");
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
    for line in [
        "beampipe_alert_deliveries_total{channel_kind=\"webhook\",outcome=\"sent\"} 1",
        "beampipe_alert_deliveries_total{channel_kind=\"email\",outcome=\"failed\"} 0",
        "beampipe_alerts_firing{severity=\"critical\"} 0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_listed_newest_first_page_by_page_and_narrowed() {
    let service = support::service().await;
    let mut ids = vec![];
    for n in 0..5 {
        ids.push(enqueue(&service, Uuid::from_u128(n % 2)).await.to_string());
    }
    attempt(
        &service,
        ids[3].parse().unwrap(),
        Outcome::Refused { code: 404, answer: None, retry_after_seconds: None },
    )
    .await;
    ids.reverse();
    let (mut seen, mut next) = (vec![], Some("/alert-deliveries?limit=2".to_owned()));
    while let Some(path) = next {
        let page = service.get(&path).await;
        let link = page.header("link").map(|link| link.split(['<', '>']).nth(1).unwrap().to_owned());
        next = link.map(|link| link.trim_start_matches("/api/v2").to_owned());
        let page = page.is(200);
        seen.extend(page.as_array().unwrap().iter().map(|one| one["uuid"].as_str().unwrap().to_owned()));
    }
    assert_eq!(seen, ids);
    let count = |query: &'static str| {
        let service = &service;
        async move { service.get(&format!("/alert-deliveries?{query}")).await.is(200).as_array().unwrap().len() }
    };
    assert_eq!(count("status=failed").await, 1);
    assert_eq!(count("status=pending&channel_id=00000000-0000-0000-0000-000000000000").await, 3);
    assert_eq!(count("rule_id=00000000-0000-0000-0000-000000000006").await, 0);
    assert_eq!(count("message=test").await, 0);
    assert_eq!(count("message=firing&offset=4").await, 1);
    for (query, word) in [("status=lost", "retrying"), ("limit=501", "500"), ("channel_id=x", "UUID")] {
        let refused = service.get(&format!("/alert-deliveries?{query}")).await.is(400);
        assert!(refused.to_string().contains(word), "{refused}");
    }
    let nobody = service.get("/alert-deliveries/018f0000-0000-7000-8000-000000000000").await.is(404);
    assert_eq!(nobody["code"], "delivery-unknown");
}
