//! The **script** of a job: directives, the marks of the session's directory, the site's environment, the launcher.
//!
//! Invariants:
//! - Whatever the session's directory is called, it stays one value (`a_directory_of_any_name_stays_one_value`).
//! - A session is run by at most one job: the first thing a job does is to make the directory `started`, and who finds it
//!   there ends with [`ALREADY_STARTED`]. So a requeued job could only end at once, and `--no-requeue` says so to Slurm: a job
//!   that lost its node ends as NODE_FAIL, and the next attempt is another session.
//! - The mark `ended` is written by the job that took `started`, and by no other.

use std::fmt::Write;

use beampipe_domain::profile::SlurmRemote;

use super::check::{Wrong, check};
use super::quote::{Nul, quote};

/// The launcher, uploaded beside the script.
pub const LAUNCHER: &str = include_str!("launch.py");

/// The files of a session's directory.
pub const SCRIPT_FILE: &str = "job.sh";
pub const LAUNCHER_FILE: &str = "launch.py";
/// The partitioned graph, not mapped onto nodes.
pub const TEMPLATE_FILE: &str = "graph.json";
pub const OUTPUT_FILE: &str = "slurm.out";
pub const ERROR_FILE: &str = "slurm.err";
/// A directory with a file `job`, which holds the id of the job that runs the session.
pub const STARTED_MARK: &str = "started";
/// A file with the exit code of the script.
pub const ENDED_MARK: &str = "ended";

/// Exit codes of the script beside those of the launcher: another job runs this session (`EX_TEMPFAIL`); the mark could not
/// be taken (`EX_CANTCREAT`).
pub const ALREADY_STARTED: u32 = 75;
pub const NO_MARK: u32 = 73;

/// What a job is for.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// The name that was taken; the job's name and comment too.
    pub id: &'a str,
    /// Its directory on the login node and on every node.
    pub directory: &'a str,
    /// What people call the run.
    pub run: &'a str,
}

/// Why there is no script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    #[error("the profile cannot be run: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Profile(Vec<Wrong>),
    #[error("the session's {0} cannot be used: {1:?}")]
    Session(&'static str, String),
    #[error(transparent)]
    Nul(#[from] Nul),
}

/// Where a session's files are: where DALiuGE keeps what its drops write.
pub fn directory(remote: &SlurmRemote, session: &str) -> String {
    format!("{}/workspace/{session}", remote.dlg_root.trim_end_matches('/'))
}

/// How many nodes are asked for.
pub fn nodes(remote: &SlurmRemote) -> u32 {
    remote.resources.as_ref().and_then(|resources| resources.nodes).unwrap_or(remote.num_nodes).max(1)
}

/// How long the job may run, in minutes.
pub fn wall_time_minutes(remote: &SlurmRemote) -> u32 {
    let asked = remote.resources.as_ref().and_then(|resources| resources.wall_time_minutes);
    asked.unwrap_or(remote.job_duration_minutes)
}

/// The exact text of the script. The same profile and session, the same text.
pub fn render(remote: &SlurmRemote, session: Session) -> Result<String, ScriptError> {
    let wrong = check(remote);
    if !wrong.is_empty() {
        return Err(ScriptError::Profile(wrong));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if session.id.is_empty() || session.id.starts_with('-') || !session.id.chars().all(plain) {
        return Err(ScriptError::Session("id", session.id.to_owned()));
    }
    let odd = |c: char| c.is_control() || c == '\\';
    if !session.directory.starts_with('/') || session.directory.contains(odd) {
        return Err(ScriptError::Session("directory", session.directory.to_owned()));
    }
    Ok([directives(remote, session), marks(session)?, environment(remote)?, launch(remote, session)?]
        .concat())
}

fn directives(remote: &SlurmRemote, session: Session) -> String {
    let resources = remote.resources.clone().unwrap_or_default();
    let (nodes, minutes) = (nodes(remote), wall_time_minutes(remote));
    let at = |file: &str| Some(format!("{}/{file}", session.directory).replace('%', "%%"));
    let of = |number: Option<u32>| number.map(|number| number.to_string());
    let mut text = String::from("#!/bin/bash --login\n");
    for (name, value) in [
        ("job-name", Some(session.id.to_owned())),
        ("comment", Some(session.id.to_owned())),
        ("account", Some(remote.account.clone())),
        ("partition", resources.partition),
        ("qos", resources.quality_of_service),
        ("constraint", resources.constraint),
        ("nodes", Some(nodes.to_string())),
        ("ntasks", Some(resources.tasks.unwrap_or(nodes).to_string())),
        ("cpus-per-task", of(resources.cpus_per_task)),
        ("mem", resources.memory),
        ("time", Some(minutes.to_string())),
        ("output", at(OUTPUT_FILE)),
        ("error", at(ERROR_FILE)),
        ("open-mode", Some("append".to_owned())),
    ] {
        if let Some(value) = value {
            let _ = writeln!(text, "#SBATCH --{name}={}", directive(&value));
        }
    }
    text.push_str("#SBATCH --no-requeue\n");
    for line in
        remote.slurm_template.as_deref().unwrap_or_default().lines().filter(|line| !line.trim().is_empty())
    {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// A value as sbatch reads directives: in double quotes spaces and `#` are ordinary, and a backslash makes a quote so.
/// Outside of quotes it does not help a space. Control characters and backslashes have been refused.
fn directive(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./,:=@+%".contains(c);
    if value.chars().all(plain) { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\\\"")) }
}

fn marks(session: Session) -> Result<String, ScriptError> {
    let directory = quote(session.directory)?;
    Ok(format!(
        r#"
# One job a session: who comes second finds the mark and ends.
cd {directory} || exit {NO_MARK}
mkdir {STARTED_MARK} || {{
    [ -d {STARTED_MARK} ] || exit {NO_MARK}
    echo "this session is taken by job $(cat {STARTED_MARK}/job || echo '(none)')" >&2
    exit {ALREADY_STARTED}
}}
echo "$SLURM_JOB_ID" >{STARTED_MARK}/job
trap 'code=$?; echo "$code" >{ENDED_MARK}.part && mv {ENDED_MARK}.part {ENDED_MARK}' EXIT
"#
    ))
}

fn environment(remote: &SlurmRemote) -> Result<String, ScriptError> {
    let mut text = format!(
        "\n# The site's environment, as the profile gives it.\nexport DLG_ROOT={}\n",
        quote(&remote.dlg_root)?
    );
    for lines in [&remote.modules, &remote.venv, &remote.environment_setup].into_iter().flatten() {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let _ = writeln!(text, "{line}");
        }
    }
    Ok(text)
}

fn launch(remote: &SlurmRemote, session: Session) -> Result<String, ScriptError> {
    let directory = quote(session.directory)?;
    let mut options =
        format!("--session {} --template {TEMPLATE_FILE} --run={}", quote(session.id)?, quote(session.run)?);
    let _ = write!(options, " --max-threads {} --verbose-level {}", remote.max_threads, remote.verbose_level);
    if remote.all_nics {
        options.push_str(" --all-nics");
    }
    let alone = remote.manager_topology.as_ref().is_some_and(|topology| !topology.co_host_dim);
    if alone && nodes(remote) > 1 {
        options.push_str(" --dim-alone");
    }
    let prefix = remote.exec_prefix.trim();
    Ok(format!(
        r#"
# The launcher decides the exit code; what the job is told, it is told too.
cd {directory} || exit {NO_MARK}
{prefix} python3 -u {LAUNCHER_FILE} \
    {options} &
launcher=$!
told=
trap 'told=1; kill -TERM "$launcher" 2>/dev/null' TERM INT
while :; do
    wait "$launcher"
    code=$?
    [ -n "$told" ] || break
    told=
done
exit "$code"
"#
    ))
}
