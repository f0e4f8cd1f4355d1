//! `log copy`: a log moves from one engine to another and back.

use std::path::Path;
use std::process::{Command, Output};

use crate::backends::daliuge::told;

fn beampipe(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beampipe"));
    command.args(arguments).env("BEAMPIPE_STATE_DIR", directory.join("state")).output().unwrap()
}

#[track_caller]
fn done(directory: &Path, arguments: &[&str]) -> String {
    let output = beampipe(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A log of some thousand events, in a file.
async fn written(path: &Path) {
    let clock = beampipe::clock::Clock::system();
    let now = clock.clone();
    let options = beampipe_log::SqliteOptions::new(std::sync::Arc::new(move || now.now()));
    let log: std::sync::Arc<dyn beampipe_log::Log> =
        std::sync::Arc::new(beampipe_log::SqliteLog::open(path, options).unwrap());
    let handle = beampipe::handle::Handle::new(log.clone(), clock.clone());
    let context = beampipe::handle::Context::system(&clock, "test");
    let see = |n: usize| {
        let dependency = format!("tap_{}", n % 7);
        match n / 7 % 2 {
            0 => beampipe_domain::dependency::Command::SeeUp { dependency, latency_ms: 3 },
            _ => beampipe_domain::dependency::Command::SeeDown { dependency, reason: "away".into() },
        }
    };
    for n in 0..2100 {
        let name = format!("tap_{}", n % 7);
        handle.handle::<beampipe_domain::dependency::Dependency>(&name, &context, see(n)).await.unwrap();
    }
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_moves_to_a_server_and_back_and_is_the_same_bytes() {
    let directory = tempfile::Builder::new().rand_bytes(12).tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (first, back) = (at("first.sqlite"), at("back.sqlite"));
    written(Path::new(&first)).await;
    let name = directory.path().file_name().unwrap().to_str().unwrap().to_lowercase();
    let schema: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let server = format!("{}?schema=copy_{schema}", told("BEAMPIPE_TEST_POSTGRES_URL"));

    // A beginning is there already, as after a copy that was broken off.
    let beginning = at("beginning.ndjson");
    done(directory.path(), &["log", "export", &beginning, "--log", &first]);
    let lines: Vec<String> =
        std::fs::read_to_string(&beginning).unwrap().lines().take(1234).map(str::to_owned).collect();
    std::fs::write(&beginning, lines.join("\n") + "\n").unwrap();
    done(directory.path(), &["log", "import", &beginning, "--log", &server]);

    let said = done(directory.path(), &["log", "copy", &first, &server]);
    assert!(said.starts_with("866 events copied") && said.contains("2,100 events are the same"), "{said}");
    let said = done(directory.path(), &["log", "copy", &server, &back]);
    assert!(said.starts_with("2,100 events copied"), "{said}");
    let again = done(directory.path(), &["log", "copy", &first, &server]);
    assert!(again.starts_with("0 events copied"), "{again}");
    let compared = done(directory.path(), &["log", "copy", "--compare", &first, &server]);
    assert!(compared.contains("2,100 events are the same"), "{compared}");
    done(directory.path(), &["log", "verify", "--log", &server]);
    let [one, other, remote] =
        [&first, &back, &server].map(|log| done(directory.path(), &["log", "export", "--log", log]));
    assert!(one == other && one == remote, "the exports differ");

    // What is no beginning of the source is left alone.
    let foreign = at("foreign.sqlite");
    written(Path::new(&foreign)).await;
    let refused = beampipe(directory.path(), &["log", "copy", &foreign, &back]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("no beginning of the source"), "{why}");
    let differs = beampipe(directory.path(), &["log", "copy", "--compare", &foreign, &back]);
    assert!(
        !differs.status.success() && String::from_utf8_lossy(&differs.stderr).contains("event 1 differs")
    );
}
