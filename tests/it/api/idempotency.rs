use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{self, Answer, Service, answered};

async fn post(service: &Service, key: &str, path: &str, body: &Value) -> Answer {
    let request = service.request(Method::POST, path).header("idempotency-key", key).json(body);
    answered(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_again_gets_the_first_answer() {
    let service = support::service().await;
    service.execution("p").await;
    let order = json!({"project_module": "p", "sources": [{"source_identifier": "A"}]});
    let first = post(&service, "k1", "/executions", &order).await.is(201);
    let again = post(&service, "k1", "/executions", &order).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.is(200), first);
    let mut other = order.clone();
    other["sources"][0]["sbids"] = json!(["100"]);
    assert_eq!(post(&service, "k1", "/executions", &other).await.is(409)["code"], "idempotency-conflict");
    let another = post(&service, "k2", "/executions", &order).await.is(201);
    assert_ne!(another["uuid"], first["uuid"]);
    // A refusal is not remembered.
    let bad = json!({"project_module": "p", "sources": []});
    post(&service, "k3", "/executions", &bad).await.is(422);
    post(&service, "k3", "/executions", &order).await.is(201);

    let one = format!("/executions/{}", first["uuid"].as_str().unwrap());
    let a = post(&service, "e", &format!("{one}/execute"), &json!({})).await.is(202);
    let b = post(&service, "e", &format!("{one}/execute"), &json!({})).await.is(202);
    assert_eq!(a, b);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_create_it_once() {
    let service = support::service().await;
    service.execution("p").await;
    let order = json!({"project_module": "p", "sources": [{"source_identifier": "A"}]});
    let posts = (0..20).map(|_| post(&service, "burst", "/executions", &order));
    let answers = futures::future::join_all(posts).await;
    let created = answers.iter().filter(|answer| answer.status.as_u16() == 201).count();
    assert_eq!(created, 1);
    let uuids: std::collections::BTreeSet<String> =
        answers.into_iter().map(|answer| answer.json()["uuid"].to_string()).collect();
    assert_eq!(uuids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_is_created_once_even_when_the_answers_were_forgotten() {
    let service = support::service().await;
    service.execution("p").await;
    let order = json!({"project_module": "p", "sources": [{"source_identifier": "A"}]});
    let first = post(&service, "k", "/executions", &order).await.is(201);
    // Another process has the log and not the memory.
    service.api.answers.forget();
    assert_eq!(post(&service, "k", "/executions", &order).await.is(200)["uuid"], first["uuid"]);
    service.api.answers.forget();
    let mut other = order.clone();
    other["archive_name"] = json!("another");
    assert_eq!(post(&service, "k", "/executions", &other).await.is(409)["code"], "idempotency-conflict");
}
