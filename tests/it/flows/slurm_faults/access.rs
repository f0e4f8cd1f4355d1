//! A login node that does not answer pauses its profiles and nothing else; one that does not let us in, or must not be
//! talked to, fails the execution with what a person has to put right.

use std::time::Duration;

use serde_json::Value;

use super::super::service::{Service, is_terminal};
use super::super::slurm::{GOOD, execute, until};
use super::{ENDS_AT_ONCE, add, all_ended, by_id, now, one_job_each, ready, told_of, within};
use crate::backends::slurm_site::Site;
use crate::ssh::login::{Slots, keygen, known_at, made, mode, port, scratch};
use crate::ssh::relay::Relay;

/// Whether the profile, readiness and the gauge all say so.
async fn says_down(service: &Service, profile: &str, down: bool) -> bool {
    let row = service.get(&format!("/deployment-profiles/{profile}")).await;
    let ready = service.get("/ready").await;
    let url = format!("http://127.0.0.1:{}/metrics", service.metrics_port);
    let metrics = reqwest::get(url).await.unwrap().text().await.unwrap();
    let dependency =
        ready["dependencies"].as_array().unwrap().iter().find(|d| d["name"] == "slurm_far").cloned();
    let gauge = format!("beampipe_dependency_up{{dependency=\"slurm_far\"}} {}", u8::from(!down));
    row["paused"] == down
        && row["paused_reason"].is_string() == down
        && dependency.is_some_and(|dependency| dependency["up"] != down)
        && (ready["status"] == "degraded") == down
        && metrics.contains(&gauge)
}

#[tokio::test]
async fn a_login_node_that_refuses_or_is_silent_pauses_its_profile_until_it_answers() {
    let (slots, root, mut relay) = (Slots::new(), scratch(), Relay::to(port()).await);
    slots.write("default", "known_hosts", &known_at(&[relay.port]), 0o644);
    let service = ready(
        &slots,
        &[
            ("BEAMPIPE_WORK__SLURM_PAUSE_AFTER_FAILURES", "2"),
            ("BEAMPIPE_SSH__CONNECT_TIMEOUT_SECONDS", "1"),
            ("BEAMPIPE_SSH__COMMAND_TIMEOUT_SECONDS", "2"),
        ],
    )
    .await;
    let through = |deployment: &mut Value| deployment["ssh_port"] = relay.port.into();
    let go = format!("{root}/go");
    let lasts = format!("while ! [ -e {go} ]; do sleep 0.5; done; exit 7");
    let profile = add(&service, &root, "far", &lasts, through).await;
    let running = execute(&service, GOOD, "far").await;
    until(&service, &running, "running", |e| e["scheduler_state"] == "running").await;
    within("up", Duration::from_secs(20), async || says_down(&service, &profile, false).await).await;
    let events = told_of(&service, &running).await;

    let bound = Duration::from_secs(40);
    for silent in [false, true] {
        if silent {
            relay.freeze(true)
        } else {
            relay.refuse().await
        }
        let paused = within("paused", bound, async || says_down(&service, &profile, true).await).await;
        let why = service.get(&format!("/deployment-profiles/{profile}")).await["paused_reason"].to_string();
        assert!(why.contains("the login node 127.0.0.1, or the Slurm behind it, does not answer"), "{why}");
        if silent {
            // What is asked for meanwhile waits.
            let waits = execute(&service, GOOD, "far").await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(!is_terminal(&now(&service, &waits).await));
        }
        assert_eq!(told_of(&service, &running).await, events, "nothing is said of what runs there");
        if silent {
            relay.freeze(false)
        } else {
            relay.serve().await
        }
        let resumed = within("resumed", bound, async || says_down(&service, &profile, false).await).await;
        eprintln!("silent: {silent}; paused after {paused:.1?}, resumed after {resumed:.1?}");
    }
    std::fs::write(go, "").unwrap();
    let all = all_ended(&service, 2, Duration::from_secs(120)).await;
    for execution in &all {
        assert_eq!(execution["failure_class"], "application_exit", "{execution:#?}");
    }
    let profile_events = service.get("/events?type=profile.paused&order=asc").await;
    assert_eq!(profile_events.as_array().unwrap().len(), 2, "{profile_events:#}");
    let automatic = |event: &Value| event["payload"]["automatic"] == true;
    assert!(profile_events.as_array().unwrap().iter().all(automatic), "{profile_events:#}");
    one_job_each(&service, &Site::shared().cluster(), &all).await;
    service.verify_log();
}

#[tokio::test]
async fn a_way_in_that_a_person_has_to_put_right_fails_the_execution_and_says_how() {
    let (slots, root) = (Slots::new(), scratch());
    let hosts = std::fs::read_to_string(made("known_hosts")).unwrap();
    for slot in ["denied", "impostor", "open", "locked"] {
        slots.add(slot, "ed25519", &hosts);
    }
    // A key that the login node does not know.
    std::fs::remove_file(slots.path("denied", "private_key")).unwrap();
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", slots.path("denied", "private_key").to_str().unwrap()]);
    // Another key than the login node's.
    let other = std::fs::read_to_string(slots.path("denied", "private_key.pub")).unwrap();
    let words: Vec<&str> = other.split(' ').take(2).collect();
    slots.write("impostor", "known_hosts", &format!("[127.0.0.1]:{} {}\n", port(), words.join(" ")), 0o644);
    mode(&slots.path("open", "private_key"), 0o644);
    slots.encrypt("locked", "a phrase for nobody");

    let service = ready(&slots, &[]).await;
    let expected = [
        ("denied", "authentication", "does not let us in with the key of slot denied"),
        ("impostor", "host_key", "shows another key than it had"),
        ("nowhere", "configuration", "there is no credential slot nowhere: make the directory"),
        ("open", "configuration", "has mode 0644, so others may read it: chmod 600"),
        ("locked", "configuration", "is encrypted, and its passphrase is missing: put it at"),
    ];
    let mut started = vec![];
    for (slot, ..) in expected {
        let with = |deployment: &mut Value| deployment["ssh_credential"] = slot.into();
        add(&service, &root, slot, ENDS_AT_ONCE, with).await;
        started.push(execute(&service, GOOD, slot).await);
    }
    let all = all_ended(&service, expected.len(), Duration::from_secs(60)).await;
    let all = by_id(&all);
    for (id, (slot, class, words)) in started.iter().zip(expected) {
        let execution = all[id.as_str()];
        assert_eq!((&execution["status"], &execution["failure_class"]), (&"failed".into(), &class.into()));
        let said = execution["last_error"].as_str().unwrap();
        assert!(said.contains(words), "{slot}: {said}");
    }
    // No line of any key, and no phrase, in anything that can be read.
    let mut said = service.said();
    for path in ["/events?limit=1000", "/executions", "/deployment-profiles", "/ready", "/jobs?limit=200"] {
        said += &service.text(path, "application/json").await.1;
    }
    for slot in ["denied", "impostor", "open", "locked"] {
        let key = std::fs::read_to_string(slots.path(slot, "private_key")).unwrap();
        let inside: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
        assert!(inside.len() > 2, "{slot} has no key");
        assert!(inside.iter().all(|line| !said.contains(line)), "a line of the key of {slot} is shown");
    }
    assert!(said.contains("chmod 600") && !said.contains("a phrase for nobody"));
    service.verify_log();
}
