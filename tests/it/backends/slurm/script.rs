//! The script of a job, as text and as bash runs it.

use std::path::Path;
use std::process::{Command, Output};

use beampipe::backends::slurm::check::check;
use beampipe::backends::slurm::script::{self, ScriptError, Session, render};
use beampipe_domain::profile::{ManagerTopology, SlurmRemote, SlurmResources};
use proptest::prelude::*;

use super::{SESSION, remote};

fn session(directory: &str) -> Session<'_> {
    Session { id: SESSION, directory, run: "HIPASS J1318-21" }
}

/// Reads directives as sbatch does: up to the first line that is no comment; between double quotes everything is ordinary,
/// but a quote behind a backslash; outside a space, a quote or `#` would end or begin something.
fn directives(script: &str) -> Vec<(String, Option<String>)> {
    let head = script.lines().take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let read = |line: &str| {
        let (name, given) = line.split_once('=').map_or((line, None), |(name, given)| (name, Some(given)));
        let given = given.map(|given| match given.strip_prefix('"') {
            Some(quoted) => {
                let quoted = quoted.strip_suffix('"').unwrap().replace("\\\"", "\0");
                assert!(!quoted.contains(['"', '\\']), "{line}");
                quoted.replace('\0', "\"")
            }
            None => {
                assert!(!given.contains(|c: char| c.is_whitespace() || "'\"#\\".contains(c)), "{line}");
                given.to_owned()
            }
        });
        (name.to_owned(), given)
    };
    head.filter_map(|line| line.strip_prefix("#SBATCH --")).map(read).collect()
}

fn value<'a>(directives: &'a [(String, Option<String>)], name: &str) -> Option<&'a str> {
    directives.iter().find(|(known, _)| known == name)?.1.as_deref()
}

#[test]
fn the_script_of_a_profile_is_what_was_agreed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/slurm/job.sh");
    let directory = script::directory(&remote(), SESSION);
    let text = render(&remote(), session(&directory)).unwrap();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap(), "UPDATE_REFERENCE=1 writes {path} anew");
    parses(&text);
}

fn parses(text: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("job.sh");
    std::fs::write(&file, text).unwrap();
    let done = Command::new("bash").arg("-n").arg(&file).output().unwrap();
    assert!(done.status.success(), "{}\n{text}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_profile_with_little_in_it_makes_a_script_too() {
    let little = SlurmRemote {
        login_node: "hpc".into(),
        account: "a".into(),
        home_dir: "/home/a".into(),
        log_dir: "/home/a/log".into(),
        dlg_root: "/home/a/dlg/".into(),
        exec_prefix: "env".into(),
        facility: "f".into(),
        job_duration_minutes: 5,
        ..SlurmRemote::default()
    };
    let directory = script::directory(&little, SESSION);
    assert_eq!(directory, format!("/home/a/dlg/workspace/{SESSION}"));
    let text = render(&little, session(&directory)).unwrap();
    let given = directives(&text);
    assert_eq!(
        (value(&given, "nodes"), value(&given, "ntasks"), value(&given, "time")),
        (Some("1"), Some("1"), Some("5"))
    );
    assert!(
        ["partition", "qos", "constraint", "mem", "cpus-per-task"]
            .iter()
            .all(|name| value(&given, name).is_none())
    );
    assert!(given.contains(&("no-requeue".into(), None)));
    assert!(!text.contains("--dim-alone") && !text.contains("--all-nics"));
}

#[test]
fn the_topology_reaches_the_launcher() {
    let apart = ManagerTopology { nodes: None, islands: None, co_host_dim: false };
    let apart = SlurmRemote { manager_topology: Some(apart), all_nics: true, ..remote() };
    assert!(render(&apart, session("/s")).unwrap().contains("--all-nics --dim-alone"));
}

#[test]
fn a_profile_that_is_wrong_has_no_script() {
    let wrong = SlurmRemote { account: "a\n#SBATCH --uid=0".into(), ..remote() };
    assert!(
        matches!(render(&wrong, session("/s")), Err(ScriptError::Profile(wrong)) if wrong[0].field == "account")
    );
    for directory in ["relative", "/a\nb", "/a\\b", ""] {
        assert!(matches!(render(&remote(), session(directory)), Err(ScriptError::Session("directory", _))));
    }
    let alone = SlurmRemote { exec_prefix: "env".into(), ..remote() };
    let error = render(&alone, session("/s")).unwrap_err().to_string();
    assert!(error.contains("exec_prefix does not start the launcher on every node"), "{error}");
    let odd = Session { id: "a b", ..session("/s") };
    assert!(matches!(render(&remote(), odd), Err(ScriptError::Session("id", _))));
}

/// Runs a script with bash, as slurmd would.
fn run(directory: &Path, prefix: &str, setup: &str) -> Output {
    let remote = SlurmRemote {
        exec_prefix: prefix.into(),
        modules: None,
        venv: None,
        environment_setup: Some(setup.into()),
        resources: None,
        ..remote()
    };
    let text = render(&remote, session(directory.to_str().unwrap())).unwrap();
    std::fs::write(directory.join("job.sh"), text).unwrap();
    Command::new("bash")
        .arg(directory.join("job.sh"))
        .current_dir("/")
        .env("SLURM_JOB_ID", "42")
        .output()
        .unwrap()
}

#[test]
fn a_session_is_run_by_one_job() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("a 'b' \"c\" $HOME `id` é;#&");
    std::fs::create_dir(&directory).unwrap();
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let first = run(&directory, "echo", "");
    assert_eq!(first.status.code(), Some(0), "{}", String::from_utf8_lossy(&first.stderr));
    let said = String::from_utf8(first.stdout).unwrap();
    assert!(
        said.starts_with(&format!("python3 -u launch.py --session {SESSION} --template graph.json")),
        "{said}"
    );
    assert_eq!((read("started/job").as_str(), read("ended").as_str()), ("42\n", "0\n"));
    std::fs::write(directory.join("ended"), "kept").unwrap();
    let second = run(&directory, "echo", "");
    assert_eq!(second.status.code(), Some(75));
    assert!(String::from_utf8(second.stderr).unwrap().contains("this session is taken by job 42"));
    assert_eq!(read("ended"), "kept", "who did not take the session says nothing of its end");
}

#[test]
fn the_end_of_the_script_is_marked_with_its_code() {
    for (prefix, setup, code) in [("false", "", 1), ("echo", "exit 7", 7), ("echo", "kill -KILL $$", -1)] {
        let directory = tempfile::tempdir().unwrap();
        let done = run(directory.path(), prefix, setup);
        assert_eq!(done.status.code().unwrap_or(-1), code, "{prefix} {setup}");
        let mark = std::fs::read_to_string(directory.path().join("ended")).ok();
        assert_eq!(mark, (code >= 0).then(|| format!("{code}\n")));
    }
}

#[test]
fn a_directory_that_is_not_there_is_said_by_the_code() {
    let root = tempfile::tempdir().unwrap();
    let text = render(&remote(), session(root.path().join("gone").to_str().unwrap())).unwrap();
    let done = Command::new("bash").args(["-c", &text]).output().unwrap();
    assert_eq!(done.status.code(), Some(73));
}

fn odd() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~\n\t]{0,24}",
        "\\PC{0,12}",
        Just("x\n#SBATCH --uid=0".to_owned()),
        Just("a #SBATCH --wrap=id".to_owned()),
        "[a-z0-9_.-]{1,12}",
        "[a-z0-9&|*()\\[\\],]{1,12}",
        "#SBATCH --[a-z-]{1,12}=[ -~]{0,9}",
    ]
}

proptest! {
    #[test]
    fn a_directory_of_any_name_stays_one_value(name in "[^\\p{Cc}\\\\/]{1,40}") {
        let directory = format!("/scratch/{name}");
        let text = render(&remote(), session(&directory)).unwrap();
        let given = directives(&text);
        let output = format!("{directory}/slurm.out").replace('%', "%%");
        prop_assert_eq!(value(&given, "output"), Some(output.as_str()));
        let shell = format!("cd() {{ printf %s \"$1\"; exit; }}; {}", &text[text.find("\ncd ").unwrap()..]);
        let done = Command::new("bash").args(["-c", &shell]).output().unwrap();
        prop_assert_eq!(String::from_utf8(done.stdout).unwrap(), directory);
        parses(&text);
    }

    #[test]
    fn nothing_that_passes_can_add_a_directive(
        (account, partition, constraint, qos) in (odd(), odd(), odd(), odd()),
        (memory, exec_prefix, template, modules, dlg_root) in (odd(), odd(), odd(), odd(), odd()),
    ) {
        let mut odd = SlurmRemote {
            resources: Some(SlurmResources {
                partition: Some(partition),
                constraint: Some(constraint),
                quality_of_service: Some(qos),
                memory: Some(memory),
                ..SlurmResources::default()
            }),
            account,
            ..remote()
        };
        // Each of these alone, so that some pass.
        (odd.exec_prefix, odd.dlg_root) = (exec_prefix, format!("/{dlg_root}"));
        (odd.slurm_template, odd.modules) = (Some(template), Some(modules));
        let mut known = vec![remote()];
        for change in [
            |to: &mut SlurmRemote, from: &SlurmRemote| to.account.clone_from(&from.account),
            |to: &mut SlurmRemote, from: &SlurmRemote| to.resources.clone_from(&from.resources),
            |to: &mut SlurmRemote, from: &SlurmRemote| to.exec_prefix.clone_from(&from.exec_prefix),
            |to: &mut SlurmRemote, from: &SlurmRemote| to.dlg_root.clone_from(&from.dlg_root),
            |to: &mut SlurmRemote, from: &SlurmRemote| to.slurm_template.clone_from(&from.slurm_template),
            |to: &mut SlurmRemote, from: &SlurmRemote| to.modules.clone_from(&from.modules),
        ] {
            let mut one = remote();
            change(&mut one, &odd);
            known.push(one);
        }
        for profile in known.into_iter().filter(|profile| check(profile).is_empty()) {
            let text = render(&profile, session("/s")).unwrap();
            let ours = ["job-name", "comment", "account", "partition", "qos", "constraint", "nodes", "ntasks", "cpus-per-task",
                "mem", "time", "output", "error", "open-mode", "no-requeue"];
            let names: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("#SBATCH --"))
                .map(|line| line.split('=').next().unwrap()).collect();
            for name in ours {
                prop_assert!(names.iter().filter(|given| **given == name).count() <= 1, "{name} twice in\n{text}");
            }
            let more = profile.slurm_template.as_deref().unwrap_or_default().lines().filter(|line| !line.trim().is_empty());
            let more: Vec<&str> = more.map(|line| line[10..].split('=').next().unwrap()).collect();
            prop_assert!(names.iter().all(|name| ours.contains(name) || more.contains(name)), "{names:?}");
            let first = format!("#SBATCH --job-name={SESSION}");
            prop_assert_eq!(text.lines().nth(1), Some(first.as_str()));
            // Reads every directive, so one that would be two is found.
            prop_assert_eq!(directives(&text).len(), names.len());
        }
    }
}
