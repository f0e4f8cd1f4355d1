//! `slurm` against the real login node, and the slots as the API shows them.

use std::path::Path;

use beampipe::api::Settings;
use serde_json::json;

use super::run::{Ran, beampipe};
use super::served::Served;
use crate::ssh::login::{Slots, port, user};
use crate::support;

/// A configuration whose slots these are.
fn configured(slots: &Slots) -> String {
    let file = slots.directory.path().join("beampipe.toml");
    std::fs::write(&file, format!("[ssh]\ncredentials_dir = {:?}\n", slots.directory.path())).unwrap();
    file.display().to_string()
}

fn ping(directory: &Path, config: &str, more: &[&str]) -> Ran {
    let (port, user) = (port().to_string(), user());
    let arguments =
        ["-o", "json", "slurm", "ping", "--config", config, "--host", "127.0.0.1", "--port", &port];
    beampipe(directory, &[&arguments[..], &["--user", &user], more].concat())
}

#[test]
fn a_login_node_is_checked_line_by_line_up_to_slurm() {
    let slots = Slots::new();
    let config = configured(&slots);
    let there = ping(slots.directory.path(), &config, &[]);
    assert_eq!(there.status, 0, "{there:?}");
    let rows = there.json();
    let checks: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["check"].as_str().unwrap()).collect();
    let wanted = [
        "default: slot",
        "default: private key",
        "default: known_hosts",
        "connection",
        "files",
        "sbatch",
        "squeue",
        "sacct",
        "scancel",
    ];
    assert_eq!(checks, wanted);
    assert!(there.out.contains("SHA256:") && there.out.contains("answers"), "{there:?}");

    let jump = format!("{}@127.0.0.1:{}", user(), port());
    let through = ping(slots.directory.path(), &config, &["--jump", &jump]);
    assert!(through.status == 0 && through.out.contains(" through "), "{through:?}");

    std::fs::write(slots.path("default", "known_hosts"), "").unwrap();
    let unknown = ping(slots.directory.path(), &config, &[]);
    assert_eq!(unknown.status, 1, "{unknown:?}");
    let last = unknown.json().as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["check"], &last["result"]), (&json!("connection"), &json!("no")));
    assert!(last["detail"].as_str().unwrap().contains("is not known"), "{last}");
}

#[test]
fn the_login_node_of_a_profile_is_asked_for_by_the_profiles_name() {
    let (slots, served) = (Slots::new(), Served::start());
    let config = configured(&slots);
    let profile = json!({
        "name": "hpc",
        "translation": {"algo": "metis", "num_par": 1, "num_islands": 1, "tm_url": "http://127.0.0.1:9"},
        "deployment": {
            "kind": "slurm_remote", "login_node": "127.0.0.1", "ssh_port": port(), "remote_user": user(),
            "ssh_credential": null, "account": "survey", "home_dir": "/home/x", "log_dir": "/home/x/log",
            "dlg_root": "/home/x/dlg", "exec_prefix": "srun", "facility": "test", "job_duration_minutes": 5,
            "num_nodes": 1, "num_islands": 1, "verbose_level": 1, "max_threads": 0, "all_nics": false, "zerorun": false,
            "sleepncopy": false, "check_with_session": false,
        },
    });
    std::fs::write(served.path().join("hpc.json"), profile.to_string()).unwrap();
    served.ask(&["profile", "create", "hpc.json"]);
    let there = served.run(&["slurm", "ping", "hpc", "--config", &config]);
    assert!(there.status == 0 && there.out.contains("scancel"), "{there:?}");
    let unknown = served.run(&["slurm", "ping", "nothing", "--config", &config]);
    assert!(unknown.status == 1 && unknown.err.contains("no such deployment profile"), "{unknown:?}");
}

#[test]
fn slots_are_checked_with_what_puts_them_right() {
    let slots = Slots::new();
    let config = configured(&slots);
    let check = |more: &[&str]| {
        beampipe(
            slots.directory.path(),
            &[&["slurm", "credentials", "check", "--config", &config], more].concat(),
        )
    };
    assert_eq!(check(&[]).status, 0);
    slots.add("open", "ed25519", "");
    crate::ssh::login::mode(&slots.path("open", "private_key"), 0o644);
    let all = check(&[]);
    assert!(
        all.status == 1 && all.out.contains("chmod 600") && all.out.contains("default: private key"),
        "{all:?}"
    );
    assert_eq!(check(&["default"]).status, 0);
    let none = check(&["nowhere"]);
    assert!(none.status == 1 && none.out.contains("no credential slot nowhere"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_shows_which_parts_of_a_slot_are_there_and_nothing_of_them() {
    let slots = Slots::new();
    slots.write("default", "passphrase", "canary", 0o600);
    let service =
        support::service_with(Settings { credentials: slots.credentials(), ..Settings::default() }).await;
    let slot = json!({"name": "default", "private_key": true, "public_key": false, "passphrase": true, "known_hosts": true});
    assert_eq!(service.get("/slurm/credentials").await.is(200), json!({ "slots": [slot] }));
    assert_eq!(service.get("/slurm/credentials/default").await.is(200), slot);
    for name in ["none", "..%2Fssh", "%2e%2e"] {
        let unknown = service.get(&format!("/slurm/credentials/{name}")).await.is(404);
        assert!(!unknown.to_string().contains("canary"), "{unknown}");
    }
}
