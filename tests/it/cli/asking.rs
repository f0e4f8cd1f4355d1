//! Verbs that ask a service, on one without any outside part.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::served::Served;

const NOWHERE: &str = "http://127.0.0.1:9/tap";

#[test]
fn projects_profiles_and_sources_are_managed_from_the_command_line() {
    let served = Served::start();
    let project = served.survey(NOWHERE, false);
    let added = served.run(&["project", "add", "project.yaml"]);
    assert!(added.status == 0 && added.out.starts_with("wallaby_demo is active, sha256 "), "{added:?}");
    assert_eq!(served.ask(&["project", "list"])[0]["project_id"], project);
    assert_eq!(served.ask(&["project", "pause", project, "--reason", "maintenance"])["paused"], true);
    assert_eq!(served.ask(&["project", "resume", project])["paused"], false);
    assert_eq!(served.ask(&["admission", "pause"])["paused"], true);
    assert_eq!(served.ask(&["admission", "resume"])["paused"], false);

    let profile = "# YAML\nname: sim\ntranslation: {algo: metis, num_par: 1, \
                   num_islands: 1, tm_url: 'http://127.0.0.1:9'}\ndeployment: {kind: simulated, latency_ms: 5, \
                   failure_probability: 0.0, loss_probability: 0.0, seed: 1}\n";
    std::fs::write(served.path().join("profile.yaml"), profile).unwrap();
    let created = served.ask(&["profile", "create", "profile.yaml"]);
    assert_eq!(served.ask(&["profile", "show", "sim"])["uuid"], created["uuid"]);
    assert!(served.run(&["profile", "list"]).out.contains("simulated"));
    served.ask(&["profile", "remove", "sim"]);
    assert_eq!(served.run(&["profile", "show", "sim"]).status, 1);
    std::fs::write(served.path().join("hpc.yaml"), super::SLURM_PROFILE).unwrap();
    served.ask(&["profile", "create", "hpc.yaml"]);
    let rendered = served.run(&["profile", "render", "hpc"]);
    assert_eq!((rendered.status, &rendered), (0, &served.run(&["profile", "render", "--file", "hpc.yaml"])));

    assert_eq!(served.ask(&["source", "add", project, "A", "B"])["total"], 2);
    let imported = served.with_input(&["source", "import", project, "-"], "# more\nC\nD # the last\n");
    assert_eq!(imported.out, "2 sources are registered in wallaby_demo\n", "{imported:?}");
    // Sources of one request are appended side by side, in any order.
    let names = |list: Value| -> Vec<String> {
        let listed = list.as_array().unwrap().iter();
        let mut names: Vec<String> =
            listed.map(|s| s["source_identifier"].as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(served.ask(&["source", "list", "--project", project])), ["A", "B", "C", "D"]);
    served.ask(&["source", "remove", "wallaby_demo/D"]);
    assert_eq!(names(served.ask(&["source", "list"])), ["A", "B", "C"]);
    assert_eq!(served.ask(&["source", "show", "wallaby_demo/A"])["source_identifier"], "A");
    assert_eq!(served.ask(&["source", "status", "wallaby_demo/A"])["ready_for_execution"], false);
    assert_eq!(served.ask(&["source", "discover", project, "A"])["marked_count"], 1);

    let refused = served.run(&["execution", "create", project, "--source", "A", "--source", "X"]);
    assert_eq!(refused.status, 1);
    for said in ["sources[0].source_identifier: ", "sources[1].source_identifier: ", "hint: "] {
        assert!(refused.err.contains(said), "{refused:?}");
    }
    let unknown = served.run(&["execution", "show", "0195e3a0-0000-7000-8000-0000000000ab"]);
    assert!(unknown.status == 1 && unknown.err.starts_with("error: no such execution"), "{unknown:?}");
}

#[test]
fn accounts_and_keys_are_made_without_a_secret_in_an_argument() {
    let mut served = Served::start();
    let created =
        served.with_input(&["account", "create", "ada", "--role", "operator"], "correct horse battery\n");
    assert!(created.status == 0 && !created.out.contains("horse"), "{created:?}");
    let short = served.with_input(&["account", "password", "ada"], "short\n");
    assert!(short.status == 1 && short.err.contains("at least"), "{short:?}");
    let drawn = served.ask(&["account", "password", "ada", "--generate"]);
    assert!(drawn["one_time_password"].as_str().unwrap().len() > 15);

    let issued = served.ask(&["account", "key", "issue", "scrape", "--scope", "viewer"]);
    let listed = served.run(&["account", "key", "list"]);
    let key = issued["api_key"].as_str().unwrap();
    assert!(listed.out.contains("scrape") && !listed.out.contains(key), "{listed:?}");

    let admin = std::mem::replace(&mut served.key, key.to_owned());
    assert_eq!(served.run(&["source", "list"]).status, 0);
    let forbidden = served.run(&["account", "list"]);
    assert!(forbidden.status == 1 && forbidden.err.starts_with("error: not with this role"), "{forbidden:?}");
    served.key = admin;
    served.ask(&["account", "key", "revoke", issued["uuid"].as_str().unwrap()]);
    served.key = key.to_owned();
    let revoked = served.run(&["source", "list"]);
    assert!(revoked.status == 1 && revoked.err.contains("hint: give an API key"), "{revoked:?}");
    assert!(!revoked.err.contains(key));
}

#[test]
fn read_models_are_listed_rebuilt_and_verified() {
    let mut served = Served::start();
    let project = served.survey(NOWHERE, false);
    served.ask(&["project", "add", "project.yaml"]);
    served.ask(&["source", "add", project, "A", "B"]);
    let all = served.ask(&["projections", "list"]);
    assert!(all.as_array().unwrap().iter().all(|one| one["lag_events"] == 0), "{all:#}");
    let rebuilt = served.ask(&["projections", "rebuild", "--all"]);
    assert_eq!(rebuilt.as_array().unwrap().len(), all.as_array().unwrap().len());
    assert_eq!(served.run(&["projections", "rebuild", "nothing"]).status, 1);

    let while_serving = served.run(&["projections", "verify", "--state-dir", "state"]);
    assert_eq!(while_serving.status, 0, "{while_serving:?}");
    served.kill();
    let file = served.path().join("state/read-models/sources.sqlite");
    let by_hand = rusqlite::Connection::open(file).unwrap();
    by_hand.execute("UPDATE sources SET enabled = 0 WHERE source_identifier = 'B'", []).unwrap();
    by_hand.close().unwrap();
    let found = served.run(&["projections", "verify", "--state-dir", "state"]);
    assert!(found.status == 1 && found.out.contains(" enabled: is 0, should be 1"), "{found:?}");
    assert_eq!(
        served.run(&["projections", "rebuild", "sources", "--offline", "--state-dir", "state"]).status,
        0
    );
    assert_eq!(served.run(&["projections", "verify", "--state-dir", "state"]).status, 0);
    assert_eq!(served.run(&["log", "verify", "--state-dir", "state"]).status, 0);
}

/// A verb that goes on, and its lines.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn new(served: &Served, arguments: &[&str]) -> Self {
        let mut child = served.verb(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (to, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { child, lines }
    }

    fn next(&self) -> Value {
        let line = self.lines.recv_timeout(Duration::from_secs(20)).expect("an event is shown in time");
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_follower_outlives_the_service_and_neither_misses_nor_repeats_an_event() {
    let mut served = Served::start();
    let project = served.survey(NOWHERE, false);
    served.ask(&["project", "add", "project.yaml"]);
    let following =
        Following::new(&served, &["events", "follow", "--project", project, "--type", "source.*", "--json"]);
    let mut positions = vec![];
    for round in 0..3 {
        let names: Vec<String> = (0..5).map(|n| format!("R{round}N{n}")).collect();
        served.ask(
            &[&["source", "add", project], names.iter().map(String::as_str).collect::<Vec<_>>().as_slice()]
                .concat(),
        );
        let mut seen: Vec<String> = (0..5)
            .map(|_| {
                let event = following.next();
                positions.push(event["position"].as_u64().unwrap());
                event["payload"]["source_identifier"].as_str().unwrap().to_owned()
            })
            .collect();
        seen.sort();
        assert_eq!(seen, names);
        served.kill();
        served.start_again();
    }
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    assert!(following.lines.recv_timeout(Duration::from_millis(500)).is_err(), "nothing is told twice");
}

#[test]
fn a_time_line_of_a_source_says_what_happened_to_it() {
    let served = Served::start();
    let project = served.survey(NOWHERE, false);
    served.ask(&["project", "add", "project.yaml"]);
    served.ask(&["source", "add", project, "A"]);
    served.ask(&["source", "discover", project]);
    let watched =
        served.run(&["timeline", "project", project, "--follow", "--until-settled", "1", "--timeout", "30"]);
    assert_eq!(watched.status, 0, "{watched:?}");
    assert!(
        watched.out.contains("discovery error") && watched.out.contains("1 of 1 sources settled"),
        "{watched:?}"
    );
    let late =
        served.run(&["timeline", "project", project, "--follow", "--until-settled", "2", "--timeout", "1"]);
    assert!(late.status == 1 && late.err.contains("of 2 sources are settled"), "{late:?}");

    let line = served.run(&["timeline", "source", "wallaby_demo/A"]);
    for said in ["─┬─ source.registered", "─ discovery.requested", "─ discovery.error", "the longest wait"]
    {
        assert!(line.out.contains(said), "{line:?}");
    }
    let events = served.ask(&["timeline", "source", "wallaby_demo/A"]);
    assert_eq!(events[0]["event_type"], "source.registered");
    assert_eq!(events[0]["payload"]["source_identifier"], json!("A"));
}
