//! A survey from its configuration to its products with the command line alone, on a real TAP server and a real DALiuGE.

use serde_json::Value;

use super::served::Served;
use crate::backends::daliuge::{Own, told};

const SOURCES: &str = "source_identifier\nHIPASSJ1318-21\nHIPASSJ1245-00\nHIPASSJ1250-20\nHIPASSJ2359-59\n";

#[test]
fn a_survey_is_run_and_explained_from_the_command_line() {
    // The same survey has the same sessions wherever it runs, so it needs an island that has not seen them.
    let island = Own::island();
    let served = Served::start();
    let project = served.survey(&told("BEAMPIPE_TEST_TAP_URL"), true);
    let profile = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/realparts/demo/profile.json");
    let profile = std::fs::read_to_string(profile).unwrap();
    let profile = profile.replace("@TM_URL@", &told("BEAMPIPE_TEST_TM_URL"));
    let profile = profile.replace("@DIM_PORT@", &island.port().to_string());
    // A node manager has one working directory for all of its sessions; side by side they take each other's files.
    let profile = profile.replace("\"max_concurrent_executions\": 3", "\"max_concurrent_executions\": 1");
    std::fs::write(served.path().join("profile.json"), profile).unwrap();
    served.ask(&["project", "add", "project.yaml"]);
    served.ask(&["profile", "create", "profile.json"]);
    let imported = served.with_input(&["source", "import", project, "-"], SOURCES);
    assert_eq!(imported.status, 0, "{imported:?}");
    served.ask(&["source", "discover", project]);

    let rows =
        served.ask(&["timeline", "project", project, "--follow", "--until-settled", "4", "--timeout", "120"]);
    let state = |source: &str| -> &Value {
        rows.as_array().unwrap().iter().find(|row| row["source_identifier"] == source).unwrap()
    };
    assert_eq!(state("HIPASSJ1318-21")["state"], "completed", "{rows:#}");
    assert_eq!(state("HIPASSJ1245-00")["state"], "failed", "{rows:#}");
    assert_eq!(state("HIPASSJ1250-20")["state"], "discovery error", "{rows:#}");
    assert_eq!(state("HIPASSJ2359-59")["state"], "no datasets", "{rows:#}");

    let completed = state("HIPASSJ1318-21")["execution_id"].as_str().unwrap();
    let line = served.run(&["timeline", "execution", completed, "--follow"]);
    assert!(line.out.contains("─┴─ execution.completed"), "{line:?}");
    let followed = served.run(&["events", "follow", "--execution", completed, "--until-terminal", "--json"]);
    let page = served.ask(&["timeline", "execution", completed]);
    let streamed: Vec<Value> = followed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // After the end of the execution, its job still says that it is done.
    let until = streamed.len();
    assert!(until > 8, "{streamed:#?}");
    assert!(streamed == page.as_array().unwrap()[..until], "the stream is the page");

    let artifacts = served.ask(&["execution", "artifacts", completed]);
    let manifest =
        artifacts.as_array().unwrap().iter().find(|artifact| artifact["kind"] == "manifest").unwrap();
    let sha256 = manifest["sha256"].as_str().unwrap();
    let got = served.run(&["execution", "artifacts", completed, "--get", sha256, "--to", "manifest.json"]);
    assert_eq!(got.status, 0, "{got:?}");
    let bytes = std::fs::read(served.path().join("manifest.json")).unwrap();
    assert_eq!(beampipe::artifacts::digest(&bytes), sha256);
    let record = served.ask(&["execution", "run-record", completed]);
    assert_eq!(record["dim"]["terminal"]["ledger_status"], "completed", "{record:#}");

    let failed = state("HIPASSJ1245-00")["execution_id"].as_str().unwrap();
    assert_eq!(served.run(&["execution", "cancel", failed]).status, 1, "what has ended is not cancelled");
    let again = served.ask(&["execution", "retry", failed, "--reason", "once more"]);
    assert_eq!(again["retry_count"], 1, "{again:#}");
    let listed = served.run(&["execution", "list", "--status", "completed"]);
    assert!(listed.out.contains(completed) && !listed.out.contains(failed), "{listed:?}");
}
