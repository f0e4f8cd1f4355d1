use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{self, Service, answered};

async fn login(service: &Service, username: &str, password: &str) -> support::Answer {
    let body = json!({"username": username, "password": password});
    answered(service.http.post(service.url("/login")).json(&body).send().await.unwrap()).await
}

async fn refresh(service: &Service, token: &Value) -> support::Answer {
    let body = json!({"refresh_token": token});
    answered(service.http.post(service.url("/refresh")).json(&body).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_gives_a_pair_that_a_refresh_replaces() {
    let service = support::service().await;
    let first = login(&service, "admin", &service.admin_password).await.is(200);
    assert_eq!(first["token_type"], "bearer");
    let access = first["access_token"].as_str().unwrap();
    let me = service.get_as(access, "/user/me").await.is(200);
    assert_eq!((&me["username"], &me["is_superuser"]), (&json!("admin"), &json!(true)));

    let second = refresh(&service, &first["refresh_token"]).await.is(200);
    service.get_as(access, "/user/me").await.is(401);
    let access = second["access_token"].as_str().unwrap();
    service.get_as(access, "/user/me").await.is(200);

    // A refresh token that is shown twice is in two hands: nobody keeps the session.
    let problem = refresh(&service, &first["refresh_token"]).await.is(401);
    assert_eq!(problem["code"], "session-closed");
    service.get_as(access, "/user/me").await.is(401);
    refresh(&service, &second["refresh_token"]).await.is(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_the_session() {
    let service = support::service().await;
    let pair = login(&service, "admin", &service.admin_password).await.is(200);
    let body = json!({"access_token": pair["access_token"], "refresh_token": null});
    let logout = service.http.post(service.url("/logout")).json(&body).send().await.unwrap();
    assert_eq!(logout.status().as_u16(), 204);
    service.get_as(pair["access_token"].as_str().unwrap(), "/user/me").await.is(401);
    refresh(&service, &pair["refresh_token"]).await.is(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_user_and_a_wrong_password_are_told_the_same() {
    let service = support::service().await;
    let wrong = login(&service, "admin", "not the password").await.is(401);
    let unknown = login(&service, "nobody", "not the password").await.is(401);
    assert_eq!(wrong, unknown);
    // Both were worked on: neither answer comes at once.
    let time = |name: &'static str| {
        let service = &service;
        async move {
            let start = std::time::Instant::now();
            login(service, name, "not the password").await.is(401);
            start.elapsed()
        }
    };
    let (known, unknown) = (time("admin").await, time("no-one-else").await);
    let ratio = unknown.as_secs_f64() / known.as_secs_f64();
    assert!((0.2..5.0).contains(&ratio), "known {known:?}, unknown {unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_tries_many_logins_has_to_wait() {
    let service = support::service().await;
    for _ in 0..10 {
        login(&service, "admin", "not the password").await.is(401);
    }
    let answer = login(&service, "admin", &service.admin_password).await;
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(answer.is(429)["code"], "too-many-requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_what_its_scope_says_until_it_is_revoked() {
    let service = support::service().await;
    let order = json!({"name": "dashboard", "scope": "viewer"});
    let issued = service.post("/api-keys", order).await.is(201);
    let key = issued["api_key"].as_str().unwrap();
    service.get_as(key, "/projects").await.is(200);
    let by_header = service.http.get(service.url("/projects")).header("x-api-key", key).send().await.unwrap();
    assert_eq!(by_header.status().as_u16(), 200);
    service.get_as(key, "/accounts").await.is(403);
    let wider = service.http.post(service.url("/api-keys")).bearer_auth(key);
    let wider = answered(wider.json(&json!({"name": "x", "scope": "admin"})).send().await.unwrap()).await;
    assert_eq!(wider.is(422)["errors"][0]["field"], "scope");

    let listed = service.get("/api-keys").await.is(200);
    assert!(listed.as_array().unwrap().iter().any(|k| k["name"] == "dashboard"));
    assert!(!listed.to_string().contains("sha256"), "hashes are shown to nobody");
    let id = issued["uuid"].as_str().unwrap();
    assert_eq!(service.delete(&format!("/api-keys/{id}")).await.status.as_u16(), 204);
    service.get_as(key, "/projects").await.is(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_account_is_out_at_once() {
    let service = support::service().await;
    let key = service.key_of("vera", "operator").await;
    service.get_as(&key, "/user/me").await.is(200);
    service.post("/accounts/vera/disable", json!({"reason": "left"})).await.is(200);
    service.get_as(&key, "/user/me").await.is(401);
    login(&service, "vera", "a password of vera").await.is(401);
    service.post("/accounts/nobody/disable", json!({})).await.is(404);
    service.post("/accounts/admin/disable", json!({})).await.is(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_closes_the_other_sessions() {
    let service = support::service().await;
    let a = login(&service, "admin", &service.admin_password).await.is(200);
    let b = login(&service, "admin", &service.admin_password).await.is(200);
    let (a, b) = (a["access_token"].as_str().unwrap(), b["access_token"].as_str().unwrap());
    let change = json!({"current_password": service.admin_password, "new_password": "a much better one"});
    let changed = service.http.post(service.url("/user/me/password")).bearer_auth(a).json(&change);
    assert_eq!(changed.send().await.unwrap().status().as_u16(), 204);
    service.get_as(a, "/user/me").await.is(200);
    service.get_as(b, "/user/me").await.is(401);
    login(&service, "admin", "a much better one").await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_repeats_the_request_id_and_makes_one_otherwise() {
    let service = support::service().await;
    let ask = |id: &'static str| {
        let request = service.request(Method::GET, "/projects").header("x-request-id", id);
        async move { answered(request.send().await.unwrap()).await.header("x-request-id").unwrap().to_owned() }
    };
    assert_eq!(ask("ticket-7").await, "ticket-7");
    assert!(uuid::Uuid::try_parse(&ask("has a space").await).is_ok());
    // What was done under it is found under it.
    let order = json!({"name": "k"});
    let issued = service.request(Method::POST, "/api-keys").header("x-request-id", "ticket-8").json(&order);
    answered(issued.send().await.unwrap()).await.is(201);
    let correlation = beampipe_domain::id::correlation("ticket-8");
    let events = service.get(&format!("/events?correlation_id={correlation}")).await.is(200);
    assert_eq!(events[0]["event_type"], "api_key.issued");
    assert_eq!(events[0]["actor"], "key:first");
    assert!(!events.to_string().contains("secret_sha256"));
}
