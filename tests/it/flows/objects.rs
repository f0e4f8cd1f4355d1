//! The service with its artifacts in an S3 store: what was made is read back, and the store may go away for a while.

use std::time::{Duration, Instant};

use beampipe::artifacts::digest;

use super::service::{PROJECT, SOURCES, Service, is_terminal};
use crate::artifacts::Own;

async fn until_ready_is(service: &Service, wanted: u16, reason: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let (status, text) = service.text("/ready", "application/json").await;
        if status == wanted && text.contains(reason) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{status} {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn artifacts_live_in_an_s3_store_and_its_absence_is_a_fault_that_clears_by_itself() {
    let (own, endpoint, url) = {
        let own = Own::start();
        let settings = own.settings();
        (own, settings.endpoint.unwrap(), settings.url)
    };
    let service = Service::start(&[
        ("BEAMPIPE_ARTIFACTS__URL", &url),
        ("BEAMPIPE_ARTIFACTS__ENDPOINT", &endpoint),
        ("BEAMPIPE_ARTIFACTS__ALLOW_HTTP", "true"),
        ("BEAMPIPE_ARTIFACTS__ACCESS_KEY_ID", "{env=\"BEAMPIPE_TEST_S3_KEY\"}"),
        ("BEAMPIPE_ARTIFACTS__SECRET_ACCESS_KEY", "{env=\"BEAMPIPE_TEST_S3_SECRET\"}"),
        ("BEAMPIPE_ARTIFACTS__PROBE_SECONDS", "1"),
    ])
    .await;
    service.configure(|yaml| yaml).await;
    service.simulate(10).await;
    service.register(&SOURCES[..1]).await;
    let ended = |all: &[serde_json::Value]| all.len() == 1 && all.iter().all(is_terminal);
    let executions = service.until("at its end", Duration::from_secs(60), ended).await;
    assert_eq!(executions[0]["status"], "completed", "{:#}", executions[0]);
    let path = format!("/executions/{}/artifacts", executions[0]["uuid"].as_str().unwrap());
    let list = service.get(&path).await;
    let of_kind = |kind: &str| list.as_array().unwrap().iter().find(|one| one["kind"] == kind).cloned();
    let manifest = of_kind("manifest").unwrap_or_else(|| panic!("{list:#}"));
    let sha256 = manifest["sha256"].as_str().unwrap().to_owned();
    let bytes = format!("{path}/{sha256}");
    let (status, text) = service.text(&bytes, "*/*").await;
    assert_eq!((status, digest(text.as_bytes())), (200, sha256));
    assert!(text.contains(SOURCES[0]), "{text}");
    assert!(!service.state_dir().join("artifacts").exists(), "nothing is kept on this machine");

    own.call("stop");
    let noticed = until_ready_is(&service, 503, "artifact store").await;
    let (status, text) = service.text(&bytes, "*/*").await;
    assert!(status == 503 && text.contains("artifacts-unavailable"), "{status} {text}");
    let (status, _) =
        service.text(&format!("/executions?project_module={PROJECT}"), "application/json").await;
    assert_eq!(status, 200, "the rest goes on");
    own.call("start");
    let back = until_ready_is(&service, 200, "").await;
    let (status, _) = service.text(&bytes, "*/*").await;
    assert_eq!(status, 200);
    println!("noticed after {noticed:?}, ready again {back:?} after it answered");
}
