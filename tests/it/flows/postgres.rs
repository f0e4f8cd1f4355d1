//! The same story on a log that is kept by PostgreSQL: the service as a process, killed and started again, and the verbs
//! that an auditor uses, over the same address.

use std::time::Duration;

use serde_json::Value;

use super::service::{PROJECT, SOURCES, Service, is_terminal, words};
use crate::backends::daliuge::told;

/// A schema that no other test uses.
fn scratch() -> String {
    let server = told("BEAMPIPE_TEST_POSTGRES_URL");
    format!("{server}?schema=it_{}", &beampipe::clock::Clock::system().id().simple().to_string()[16..])
}

#[tokio::test]
async fn a_survey_runs_on_postgresql_is_killed_goes_on_and_is_verified() {
    let url = scratch();
    let mut service = Service::start(&[("BEAMPIPE_LOG__URL", &url)]).await;
    service.configure(|yaml| yaml).await;
    service.simulate(300).await;
    service.register(&SOURCES[..3]).await;
    let bound = Duration::from_secs(60);
    let ended = |wanted: usize| move |all: &[Value]| all.len() >= wanted && all.iter().all(is_terminal);
    service.until("some ended", bound, |all| all.iter().any(is_terminal)).await;
    service.kill();
    service.start_again(&[]).await;
    service.register(&SOURCES[3..]).await;
    let executions = service.until("all ended", bound, ended(4)).await;
    assert!(executions.iter().all(|execution| execution["status"] == "completed"), "{executions:#?}");

    let ready = service.get("/ready").await;
    assert_eq!((&ready["log"]["engine"], &ready["log"]["append"]), (&"postgres".into(), &"ok".into()));
    let (status, metrics) = service.text("/metrics", "text/plain").await;
    assert_eq!(status, 200, "{metrics}");
    assert!(metrics.contains("beampipe_log_head_position{engine=\"postgres\"}"), "{metrics}");
    let sources = service.get(&format!("/sources?project_module={PROJECT}")).await;
    assert_eq!(sources.as_array().unwrap().len(), SOURCES.len());

    // While it serves.
    service.verify_log();
    service.stop().await;
    for verb in [&["projections", "verify"][..], &["projections", "rebuild", "--all", "--offline"]] {
        let done = service.command(verb);
        assert!(done.status.success(), "{verb:?}: {}", words(&done));
    }
    let exported = service.command(&["log", "export"]);
    assert!(exported.status.success(), "{}", words(&exported));

    // Over an address of its own, and into a file: the same bytes.
    let copy = service.state_dir().join("copy.ndjson");
    std::fs::write(&copy, &exported.stdout).unwrap();
    for place in [scratch(), service.state_dir().join("copy.sqlite").display().to_string()] {
        for verb in ["import", "verify", "export"] {
            let mut arguments = vec!["log", verb, "--log", &place];
            if verb == "import" {
                arguments.push(copy.to_str().unwrap());
            }
            let done = service.command(&arguments);
            assert!(done.status.success(), "{verb} {place}: {}", words(&done));
            assert!(verb != "export" || done.stdout == exported.stdout, "{place} has other bytes");
        }
    }
    let recovered = service.command(&["account", "recover", "admin"]);
    assert!(recovered.status.success(), "{}", words(&recovered));
}
