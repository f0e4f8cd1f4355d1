//! Every route with who may use it, written down a second time: a route that is not here fails the test.

use beampipe::api::{self, route::Access};
use reqwest::Method;

use crate::support;

const ROUTES: &[(&str, &str, &str)] = &[
    ("GET", "/health", "open"),
    ("GET", "/ready", "open"),
    ("GET", "/health/tap", "open"),
    ("GET", "/metrics", "metrics"),
    ("POST", "/login", "open"),
    ("POST", "/refresh", "open"),
    ("POST", "/logout", "open"),
    ("GET", "/user/me", "viewer"),
    ("POST", "/user/me/password", "viewer"),
    ("GET", "/api-keys", "viewer"),
    ("POST", "/api-keys", "viewer"),
    ("DELETE", "/api-keys/{id}", "viewer"),
    ("GET", "/accounts", "admin"),
    ("POST", "/accounts", "admin"),
    ("POST", "/accounts/{username}/disable", "admin"),
    ("POST", "/accounts/{username}/password", "admin"),
    ("GET", "/projects", "viewer"),
    ("GET", "/projects/contracts", "viewer"),
    ("GET", "/projects/contracts/{id}", "viewer"),
    ("POST", "/projects/{module}/pause", "operator"),
    ("POST", "/projects/{module}/resume", "operator"),
    ("POST", "/admission/pause", "operator"),
    ("POST", "/admission/resume", "operator"),
    ("POST", "/project-configs", "admin"),
    ("GET", "/project-configs/{id}", "viewer"),
    ("GET", "/project-configs/{id}/versions", "viewer"),
    ("GET", "/deployment-profiles", "viewer"),
    ("POST", "/deployment-profiles", "admin"),
    ("GET", "/deployment-profiles/{id}", "viewer"),
    ("PATCH", "/deployment-profiles/{id}", "admin"),
    ("DELETE", "/deployment-profiles/{id}", "admin"),
    ("POST", "/deployment-profiles/{id}/pause", "operator"),
    ("POST", "/deployment-profiles/{id}/resume", "operator"),
    ("GET", "/sources", "viewer"),
    ("POST", "/sources", "operator"),
    ("POST", "/sources/bulk", "operator"),
    ("POST", "/sources/discover", "operator"),
    ("GET", "/sources/{id}", "viewer"),
    ("PATCH", "/sources/{id}", "operator"),
    ("DELETE", "/sources/{id}", "operator"),
    ("GET", "/sources/{id}/status", "viewer"),
    ("GET", "/sources/{id}/metadata", "viewer"),
    ("GET", "/sources/{id}/executions", "viewer"),
    ("GET", "/executions", "viewer"),
    ("POST", "/executions", "operator"),
    ("POST", "/executions/prepare", "operator"),
    ("GET", "/executions/{id}", "viewer"),
    ("PATCH", "/executions/{id}", "operator"),
    ("POST", "/executions/{id}/execute", "operator"),
    ("POST", "/executions/{id}/retry", "operator"),
    ("POST", "/executions/{id}/submission/abandon", "admin"),
    ("GET", "/executions/{id}/status", "viewer"),
    ("GET", "/executions/{id}/summary", "viewer"),
    ("GET", "/executions/{id}/ledger-snapshot", "viewer"),
    ("GET", "/executions/{id}/observations", "viewer"),
    ("GET", "/executions/{id}/artifacts", "viewer"),
    ("GET", "/executions/{id}/artifacts/{sha256}", "viewer"),
    ("GET", "/jobs", "viewer"),
    ("POST", "/jobs", "admin"),
    ("GET", "/jobs/{id}", "viewer"),
    ("POST", "/jobs/{id}/requeue", "admin"),
    ("GET", "/workers", "viewer"),
    ("GET", "/workers/pools", "viewer"),
    ("GET", "/workers/leases", "viewer"),
    ("GET", "/workers/{id}", "viewer"),
    ("POST", "/workers/{id}/drain", "admin"),
    ("POST", "/workers/{id}/resume", "admin"),
    ("GET", "/slurm/credentials", "viewer"),
    ("GET", "/slurm/credentials/{slot}", "viewer"),
    ("GET", "/notification-channels", "viewer"),
    ("POST", "/notification-channels", "admin"),
    ("POST", "/notification-channels/preview", "admin"),
    ("GET", "/notification-channels/{id}", "viewer"),
    ("PATCH", "/notification-channels/{id}", "admin"),
    ("DELETE", "/notification-channels/{id}", "admin"),
    ("POST", "/notification-channels/{id}/test", "admin"),
    ("GET", "/alerts", "viewer"),
    ("GET", "/alerts/explain", "viewer"),
    ("GET", "/alerts/{id}", "viewer"),
    ("POST", "/alerts/{id}/silence", "operator"),
    ("GET", "/silence/{token}", "open"),
    ("POST", "/silence/{token}", "open"),
    ("POST", "/alerts/{id}/acknowledge", "operator"),
    ("GET", "/alert-rules", "viewer"),
    ("POST", "/alert-rules", "admin"),
    ("POST", "/alert-rules/backtest", "operator"),
    ("GET", "/alert-rules/{id}", "viewer"),
    ("PATCH", "/alert-rules/{id}", "admin"),
    ("DELETE", "/alert-rules/{id}", "admin"),
    ("GET", "/alert-deliveries", "viewer"),
    ("GET", "/alert-deliveries/{id}", "viewer"),
    ("POST", "/alert-deliveries/{id}/redeliver", "admin"),
    ("GET", "/silences", "viewer"),
    ("POST", "/silences", "operator"),
    ("GET", "/silences/{id}", "viewer"),
    ("DELETE", "/silences/{id}", "operator"),
    ("GET", "/projections", "viewer"),
    ("POST", "/projections/{name}/rebuild", "admin"),
    ("GET", "/events", "viewer"),
    ("GET", "/executions/{id}/events", "viewer"),
    ("GET", "/sources/{id}/events", "viewer"),
    ("GET", "/projects/{module}/events", "viewer"),
];

fn word(access: Access) -> &'static str {
    match access {
        Access::Open => "open",
        Access::Metrics => "metrics",
        Access::Viewer => "viewer",
        Access::Operator => "operator",
        Access::Admin => "admin",
    }
}

#[test]
fn every_route_is_written_down_here_with_who_may_use_it() {
    let mut declared: Vec<(String, String, &str)> =
        api::access_table().into_iter().map(|(method, path, access)| (method, path, word(access))).collect();
    let mut written: Vec<(String, String, &str)> =
        ROUTES.iter().map(|(m, p, who)| ((*m).to_owned(), (*p).to_owned(), *who)).collect();
    declared.sort();
    written.sort();
    assert_eq!(declared, written);
}

/// The path with something in the places of its ids.
fn concrete(path: &str) -> String {
    path.replace("{id}", "018f0000-0000-7000-8000-000000000000")
        .replace("{sha256}", &"a".repeat(64))
        .replace("{module}", "nope")
        .replace("{username}", "nobody")
        .replace("{name}", "nothing")
        .replace("{slot}", "none")
        .replace("{token}", "none")
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_further_than_his_role() {
    let service = support::service().await;
    let viewer = service.key_of("vera", "viewer").await;
    let operator = service.key_of("otto", "operator").await;
    let ranks = ["viewer", "operator", "admin"];
    for (method, path, who) in ROUTES {
        let url = service.url(&concrete(path));
        let send = |token: Option<&str>| {
            let method: Method = method.parse().unwrap();
            let mut request = service.http.request(method, &url);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            async move { request.send().await.unwrap().status().as_u16() }
        };
        let anonymous = send(None).await;
        if *who == "open" {
            assert!(anonymous != 401 && anonymous != 403, "{method} {path} is open: {anonymous}");
            continue;
        }
        assert_eq!(anonymous, 401, "{method} {path} without a key");
        assert_eq!(send(Some("bpk_00000000000000000000000000000000_x")).await, 401, "{method} {path}");
        let needed = ranks.iter().position(|rank| rank == who).unwrap_or(0);
        for (rank, key) in [(0, &viewer), (1, &operator)] {
            let status = send(Some(key)).await;
            if rank < needed {
                assert_eq!(status, 403, "{method} {path} as {}", ranks[rank]);
            } else {
                assert!(status != 401 && status != 403, "{method} {path} as {}: {status}", ranks[rank]);
            }
        }
    }
}

#[test]
fn every_route_is_in_the_description_of_the_api() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
    for (method, path, _) in ROUTES {
        for part in path.split('/').filter(|part| !part.is_empty() && !part.starts_with('{')) {
            assert!(page.contains(part), "{method} {path}: docs/api.md does not have {part:?}");
        }
    }
}
