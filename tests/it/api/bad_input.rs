//! What is wrong is refused with a problem that names it; nothing that is sent is a fault of the service.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{self, Answer, Service, answered};

/// A refusal: its status, and a word that the problem has to have.
struct Case {
    method: Method,
    path: String,
    body: Option<String>,
    content_type: &'static str,
    status: u16,
    word: &'static str,
}

fn post(path: &str, body: Value, status: u16, word: &'static str) -> Case {
    with(Method::POST, path, body, status, word)
}

fn patch(path: &str, body: Value, status: u16, word: &'static str) -> Case {
    with(Method::PATCH, path, body, status, word)
}

fn with(method: Method, path: &str, body: Value, status: u16, word: &'static str) -> Case {
    let (path, body) = (path.to_owned(), Some(body.to_string()));
    Case { method, path, body, content_type: "application/json", status, word }
}

fn get(path: &str, status: u16, word: &'static str) -> Case {
    Case { method: Method::GET, path: path.to_owned(), body: None, content_type: "", status, word }
}

fn delete(path: &str, status: u16, word: &'static str) -> Case {
    Case { method: Method::DELETE, path: path.to_owned(), body: None, content_type: "", status, word }
}

fn raw(path: &str, content_type: &'static str, body: &str, status: u16, word: &'static str) -> Case {
    let (path, body) = (path.to_owned(), Some(body.to_owned()));
    Case { method: Method::POST, path, body, content_type, status, word }
}

async fn send(service: &Service, case: &Case) -> Answer {
    let mut request = service.request(case.method.clone(), &case.path);
    if let Some(body) = &case.body {
        request = request.body(body.clone());
        if !case.content_type.is_empty() {
            request = request.header("content-type", case.content_type);
        }
    }
    answered(request.send().await.unwrap()).await
}

async fn check(service: &Service, cases: Vec<Case>) {
    assert!(cases.len() >= 20, "{} cases", cases.len());
    for case in cases {
        let answer = send(service, &case).await;
        let what = format!("{} {} {:?}: {}", case.method, case.path, case.body, answer.body);
        assert_eq!(answer.status.as_u16(), case.status, "{what}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
        let problem = answer.json();
        assert!(problem["type"].as_str().unwrap().starts_with("/docs/problems/"), "{what}");
        assert_eq!(problem["status"], case.status, "{what}");
        for member in ["title", "detail", "error", "code"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {what}");
        }
        let said = format!("{} {}", problem["detail"], problem["errors"]);
        assert!(said.contains(case.word), "does not say {:?}: {what}", case.word);
    }
}

const NOBODY: &str = "018f0000-0000-7000-8000-000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn sources() {
    let service = support::service().await;
    service.project("p").await;
    let source = service.source("p", "A").await;
    let one = format!("/sources/{source}");
    let long = "x".repeat(201);
    check(
        &service,
        vec![
            post("/sources", json!({}), 422, "project_module"),
            post("/sources", json!({"project_module": "p"}), 422, "source_identifier"),
            post(
                "/sources",
                json!({"project_module": "nope", "source_identifier": "A"}),
                422,
                "project_module",
            ),
            post(
                "/sources",
                json!({"project_module": "p", "source_identifier": ""}),
                422,
                "source_identifier",
            ),
            post(
                "/sources",
                json!({"project_module": "p", "source_identifier": " A"}),
                422,
                "source_identifier",
            ),
            post("/sources", json!({"project_module": "p", "source_identifier": "A\u{7}"}), 422, "control"),
            post("/sources", json!({"project_module": "p", "source_identifier": long}), 422, "200"),
            post(
                "/sources",
                json!({"project_module": "p", "source_identifier": 5}),
                422,
                "source_identifier",
            ),
            post(
                "/sources",
                json!({"project_module": "p", "source_identifier": "A", "enabled": "yes"}),
                422,
                "enabled",
            ),
            post(
                "/sources",
                json!({"project_module": "p", "source_identifier": "A", "colour": 1}),
                422,
                "colour",
            ),
            post("/sources", json!([]), 422, "body"),
            raw("/sources", "application/json", "{\"project_module\":", 400, "line 1"),
            raw("/sources", "text/plain", "{}", 415, "application/json"),
            post("/sources/bulk", json!({"items": []}), 422, "items"),
            post(
                "/sources/bulk",
                json!({"items": [{"project_module": "p", "source_identifier": "A"},
                {"project_module": "nope", "source_identifier": "B"}]}),
                422,
                "items[1].project_module",
            ),
            post(
                "/sources/bulk",
                json!({"items": [{"project_module": "p", "source_identifier": "A", "enabled": true},
                {"project_module": "p", "source_identifier": "A", "enabled": false}]}),
                422,
                "items[1].enabled",
            ),
            post(
                "/sources/bulk",
                json!({"items": [{"project_module": "p", "source_identifier": 1}]}),
                422,
                "items[0].source_identifier",
            ),
            post("/sources/discover", json!({"project_module": "nope"}), 422, "project_module"),
            post(
                "/sources/discover",
                json!({"project_module": "p", "source_identifier": "A", "source_identifiers": []}),
                422,
                "source_identifiers",
            ),
            post(
                "/sources/discover",
                json!({"project_module": "p", "source_identifiers": ["A", "B"]}),
                422,
                "source_identifiers[1]",
            ),
            patch(&one, json!({"stale_after_hours": 0}), 422, "stale_after_hours"),
            patch(&one, json!({"stale_after_hours": -1}), 422, "stale_after_hours"),
            patch(&one, json!({"enabled": 3}), 422, "enabled"),
            patch(&one, json!({"name": "B"}), 422, "name"),
            patch(&format!("/sources/{NOBODY}"), json!({"enabled": true}), 404, "source"),
            get("/sources?limit=0", 400, "limit"),
            get("/sources?limit=x", 400, "limit"),
            get("/sources?offset=-1", 400, "offset"),
            get("/sources?colour=red", 400, "colour"),
            get("/sources/5", 400, "UUID"),
            get("/sources/%FF", 400, "UTF-8"),
            get(&format!("/sources/{NOBODY}"), 404, NOBODY),
            get(&format!("/sources/{NOBODY}/status"), 404, NOBODY),
            delete(&format!("/sources/{NOBODY}"), 404, "source"),
        ],
    )
    .await;
    // All or nothing: what was right in a refused request was not done.
    let sources = service.get("/sources").await.is(200);
    assert_eq!(sources.as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn executions() {
    let service = support::service().await;
    let execution = service.execution("p").await;
    service.source("p", "B").await;
    let one = format!("/executions/{execution}");
    let order = |source: &str| json!({"project_module": "p", "sources": [{"source_identifier": source}]});
    let mut with_profile = order("A");
    with_profile["deployment_profile_name"] = json!("nope");
    let mut with_both = order("A");
    with_both["deployment_profile_name"] = json!("sim-p");
    with_both["deployment_profile_id"] = json!(NOBODY);
    check(
        &service,
        vec![
            post("/executions", json!({}), 422, "project_module"),
            post("/executions", json!({"project_module": "p"}), 422, "sources"),
            post("/executions", json!({"project_module": "p", "sources": []}), 422, "sources"),
            post("/executions", json!({"project_module": "p", "sources": ["A"]}), 422, "sources[0]"),
            post("/executions", json!({"project_module": "nope", "sources": [{"source_identifier": "A"}]}), 422, "project_module"),
            post("/executions", order("C"), 422, "sources[0].source_identifier"),
            post("/executions", order("B"), 422, "discovered"),
            post("/executions", with_profile, 422, "deployment_profile_name"),
            post("/executions", with_both, 422, "deployment_profile_name"),
            post("/executions", json!({"project_module": "p", "sources": [{"source_identifier": "A"}, {"source_identifier": "A"}]}), 422, "twice"),
            post("/executions", json!({"project_module": "p", "sources": [{"source_identifier": "A", "sbids": ["1"]}]}), 422, "SBID 1"),
            post("/executions", json!({"project_module": "p", "sources": [{"source_identifier": "A", "sbids": []}]}), 422, "sbids"),
            post("/executions", json!({"project_module": "p", "sources": [{"source_identifier": "A"}], "priority": 1}), 422, "priority"),
            post("/executions", json!({"project_module": "p", "sources": [{"source_identifier": "A"}], "deployment_profile_id": "x"}), 422, "deployment_profile_id"),
            patch(&one, json!({"status": "completed"}), 422, "cancelled"),
            patch(&one, json!({}), 422, "status"),
            patch(&format!("/executions/{NOBODY}"), json!({"status": "cancelled"}), 404, NOBODY),
            post(&format!("{one}/execute"), json!({"do_stage": false, "do_submit": false}), 422, "do_stage"),
            post(&format!("{one}/execute"), json!({"do_stage": "yes"}), 422, "do_stage"),
            post(&format!("{one}/execute"), json!({"force": true}), 422, "force"),
            post(&format!("/executions/{NOBODY}/execute"), json!({}), 404, NOBODY),
            post(&format!("{one}/retry"), json!({}), 422, "reason"),
            post(&format!("{one}/retry"), json!({"reason": " "}), 422, "reason"),
            post(&format!("{one}/retry"), json!({"reason": "x"}), 409, "execute"),
            post(&format!("{one}/submission/abandon"), json!({"reason": "x"}), 422, "acknowledge_external_job_may_exist"),
            post(&format!("{one}/submission/abandon"), json!({"reason": "x", "acknowledge_external_job_may_exist": true,
                "expected_submission_state": "uncertain", "expected_daliuge_session_id": null, "expected_submission_deadline_at": null}), 409, "handed over"),
            get("/executions?status=done", 400, "completed"),
            get("/executions?page=0", 400, "page"),
            get("/executions?items_per_page=501", 400, "items_per_page"),
            get("/executions?sort=age", 400, "sort"),
            get("/executions/x", 400, "UUID"),
            get(&format!("/executions/{NOBODY}/observations"), 404, NOBODY),
            get(&format!("{one}/artifacts/abc"), 404, "abc"),
            get(&format!("{one}/ledger-snapshot?include_manifest=maybe"), 400, "include_manifest"),
            get(&format!("{one}/events?limit=5001"), 400, "limit"),
            get(&format!("{one}/events?order=up"), 400, "order"),
            get(&format!("{one}/events?since=now"), 400, "RFC 3339"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles() {
    let service = support::service().await;
    service.project("p").await;
    let profile = service.profile("p").await;
    let one = format!("/deployment-profiles/{}", profile["uuid"].as_str().unwrap());
    let simulated = |more: Value| {
        let mut profile = json!({"name": "x", "deployment": {"kind": "simulated"}});
        profile.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post("/deployment-profiles", profile, 422, "")
    };
    let deployment =
        |deployment: Value, word: &'static str| Case { word, ..simulated(json!({"deployment": deployment})) };
    let field = |more: Value, word: &'static str| Case { word, ..simulated(more) };
    check(
        &service,
        vec![
            post("/deployment-profiles", json!({}), 422, "name"),
            post("/deployment-profiles", json!({"name": "x"}), 422, "deployment"),
            field(json!({"name": ""}), "name"),
            field(json!({"name": "a b"}), "name"),
            field(json!({"name": 5}), "name"),
            field(json!({"colour": "red"}), "colour"),
            field(json!({"is_default": true}), "is_default"),
            field(json!({"project_module": "nope"}), "project_module"),
            field(json!({"max_concurrent_executions": 0}), "max_concurrent_executions"),
            field(json!({"max_concurrent_executions": -1}), "max_concurrent_executions"),
            field(json!({"translation": {"algo": "magic"}}), "translation.algo"),
            field(json!({"translation": {"num_par": 0}}), "translation.num_par"),
            field(json!({"translation": {"tm_url": "nowhere"}}), "translation.tm_url"),
            field(json!({"translation": {"tm_url": "http://u:p@h:1"}}), "tm_url"),
            field(json!({"translation": {"islands": 1}}), "translation.islands"),
            field(json!({"translation": 5}), "translation"),
            deployment(json!({}), "deployment.kind"),
            deployment(json!({"kind": "cloud"}), "rest_remote"),
            deployment(json!({"kind": "rest_remote"}), "deployment.deploy_host"),
            deployment(
                json!({"kind": "rest_remote", "deploy_host": "http://h", "deploy_port": 0}),
                "deployment.deploy_port",
            ),
            deployment(
                json!({"kind": "rest_remote", "deploy_host": "h", "deploy_port": 70000}),
                "deployment.deploy_port",
            ),
            deployment(
                json!({"kind": "rest_remote", "deploy_host": "h", "deploy_port": 1, "verify": true}),
                "deployment.verify",
            ),
            deployment(
                json!({"kind": "simulated", "failure_probability": 2}),
                "deployment.failure_probability",
            ),
            deployment(json!({"kind": "slurm_remote", "login_node": "h"}), "deployment.account"),
            post(
                "/deployment-profiles",
                json!({"name": "sim-p", "deployment": {"kind": "simulated"}}),
                409,
                "PATCH",
            ),
            patch(&one, json!({"name": "other"}), 409, "name"),
            patch(&one, json!({"deployment": {"latency_ms": "long"}}), 422, "deployment.latency_ms"),
            delete(&one, 409, "default"),
            get(&format!("/deployment-profiles/{NOBODY}"), 404, NOBODY),
            get("/deployment-profiles/x", 400, "UUID"),
            get("/deployment-profiles?limit=x", 400, "limit"),
        ],
    )
    .await;
    // Everything that is wrong is said at once.
    let many = json!({"name": "", "colour": 1, "deployment": {"kind": "rest_remote"}, "translation": {"num_par": "x"}});
    let problem = service.post("/deployment-profiles", many).await.is(422);
    assert!(problem["errors"].as_array().unwrap().len() >= 4, "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_jobs_workers_and_accounts() {
    let service = support::service().await;
    service.project("p").await;
    check(
        &service,
        vec![
            raw("/project-configs", "application/x-yaml", "", 422, "mapping"),
            raw("/project-configs", "application/x-yaml", "a: [", 422, "line"),
            raw("/project-configs", "application/json", "{}", 415, "application/x-yaml"),
            raw("/project-configs", "text/plain", "kind: ProjectConfig", 422, "apiVersion"),
            raw("/project-configs", "text/plain", "- 1", 422, "mapping"),
            get("/project-configs/nope", 404, "nope"),
            get("/project-configs/nope/versions", 404, "nope"),
            get("/projects/contracts/nope", 404, "nope"),
            post("/projects/nope/pause", json!({"reason": "x"}), 404, "nope"),
            post("/projects/nope/resume", json!({}), 404, "nope"),
            post("/projects/p/pause", json!({"reason": 5}), 422, "reason"),
            post("/projects/p/pause", json!({"why": "x"}), 422, "why"),
            get("/projects?limit=0", 400, "limit"),
            post("/jobs", json!({}), 422, "kind"),
            post("/jobs", json!({"kind": "dance"}), 422, "discover_batch"),
            post("/jobs", json!({"kind": "execute"}), 422, "execution_id"),
            post("/jobs", json!({"kind": "execute", "execution_id": NOBODY}), 422, "execution_id"),
            post("/jobs", json!({"kind": "scheduler_tick", "payload": [1]}), 422, "payload"),
            post(
                "/jobs",
                json!({"kind": "scheduler_tick", "payload": {"project_module": "nope"}}),
                422,
                "payload.project_module",
            ),
            post("/jobs", json!({"kind": "scheduler_tick", "idempotency_key": ""}), 422, "idempotency_key"),
            post(&format!("/jobs/{NOBODY}/requeue"), json!({}), 404, "job"),
            get(&format!("/jobs/{NOBODY}"), 404, NOBODY),
            get("/jobs?status=lost", 400, "dead_lettered"),
            get("/workers/nobody", 404, "nobody"),
            get("/workers?include_stopped=maybe", 400, "include_stopped"),
            post("/workers/nobody/drain", json!({}), 404, "worker"),
            post("/projections/nope/rebuild", json!({}), 404, "executions"),
            post("/accounts", json!({"username": "a b"}), 422, "username"),
            post("/accounts", json!({"username": "ada", "password": "short"}), 422, "password"),
            post("/accounts", json!({"username": "ada", "role": "king"}), 422, "role"),
            post("/accounts", json!({"username": "ADMIN"}), 409, "taken"),
            post("/accounts", json!({"username": "ada", "email": "nowhere"}), 422, "email"),
            post("/api-keys", json!({}), 422, "name"),
            post("/api-keys", json!({"name": "k", "expires_at": "2001-01-01T00:00:00Z"}), 422, "expires_at"),
            post("/api-keys", json!({"name": "k", "expires_at": "tomorrow"}), 422, "expires_at"),
            delete(&format!("/api-keys/{NOBODY}"), 404, NOBODY),
            post("/login", json!({"username": "admin"}), 422, "password"),
            post("/login", json!({"username": "admin", "password": "x", "otp": 1}), 422, "otp"),
            post("/refresh", json!({"refresh_token": "bpr_x"}), 401, "refresh"),
            post("/refresh", json!({}), 422, "refresh_token"),
            get("/nothing/here", 404, "docs/api.md"),
            with(Method::PUT, "/sources", json!({}), 405, "PUT"),
            get("/events?correlation_id=x", 400, "correlation_id"),
            get("/events?after=x", 400, "after"),
            get("/projects?min_position=x", 400, "min_position"),
        ],
    )
    .await;
    let put = answered(service.request(Method::PUT, "/sources").send().await.unwrap()).await;
    assert!(put.header("allow").unwrap().contains("POST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_odd_is_refused_too() {
    let service = support::service().await;
    let large = format!("{{\"items\": [{}]}}", " ".repeat(17 * 1024 * 1024));
    let answer = send(&service, &raw("/sources/bulk", "application/json", &large, 413, "")).await;
    assert_eq!(answer.is(413)["code"], "body-too-large");
    let large = format!("{{\"username\": \"{}\"}}", "x".repeat(2 * 1024 * 1024));
    assert_eq!(
        send(&service, &raw("/login", "application/json", &large, 413, "")).await.is(413)["code"],
        "body-too-large"
    );
    // The answer reaches a client that sends without listening, also where the body was of no interest at all.
    for _ in 0..20 {
        let large = format!("{{\"items\": [{}]}}", " ".repeat(17 * 1024 * 1024));
        let unknown = service.http.post(format!("{}/nothing/here", service.base_url)).body(large).send();
        answered(unknown.await.unwrap()).await.is(404);
    }
    let deep = "[".repeat(100_000);
    send(&service, &raw("/login", "application/json", &deep, 400, "")).await.is(400);
    for key in ["", "a b", &"k".repeat(129)] {
        let request = service.request(Method::POST, "/sources").header("idempotency-key", key);
        let answer = answered(request.json(&json!({})).send().await.unwrap()).await;
        assert_eq!(answer.is(400)["code"], "bad-header", "{key:?}");
    }
    let accept = service.request(Method::GET, "/events").header("accept", "image/png");
    answered(accept.send().await.unwrap()).await.is(406);
    let page =
        service.http.get(format!("{}/docs/problems/bad-query", service.base_url)).send().await.unwrap();
    assert!(answered(page).await.body.starts_with("# bad-query"));
}
