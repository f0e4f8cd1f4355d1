//! Says everything that is **wrong** with a `slurm_remote` deployment, field by field.
//!
//! Invariant: a value that passes cannot become a directive, an option or a line of its own in the job's script
//! (`nothing_that_passes_can_add_a_directive`, in `script`). Shell lines of the profile are an administrator's and are taken
//! as they are; everything else is of a narrow alphabet or quoted.

use beampipe_domain::profile::{SlurmRemote, SlurmResources};

/// One thing that is wrong: the field below `deployment`, what is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub field: String,
    pub message: String,
    pub hint: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.field, self.message, self.hint)
    }
}

/// Minutes in 366 days.
const LONGEST_MINUTES: u32 = 366 * 24 * 60;
const LONGEST_SHELL: usize = 16 << 10;
const LONGEST_PATH: usize = 1024;

/// The options of sbatch that this service gives, so a template may not.
const OURS: &[&str] = &[
    "account",
    "array",
    "chdir",
    "clusters",
    "comment",
    "constraint",
    "cpus-per-task",
    "error",
    "gid",
    "help",
    "input",
    "job-name",
    "mem",
    "no-requeue",
    "nodes",
    "ntasks",
    "open-mode",
    "output",
    "parsable",
    "partition",
    "qos",
    "requeue",
    "test-only",
    "time",
    "uid",
    "usage",
    "version",
    "wait",
    "wrap",
];

struct Wrongs(Vec<Wrong>);

impl Wrongs {
    fn must(&mut self, fits: bool, field: &str, message: &str, hint: &str) {
        if !fits {
            self.0.push(Wrong { field: field.into(), message: message.into(), hint: hint.into() });
        }
    }

    /// A name as Slurm has them: it never begins with a dash.
    fn word(&mut self, value: &str, field: &str, more: &str, hint: &str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') || more.contains(c);
        let fits = (1..=256).contains(&value.len()) && !value.starts_with('-') && value.chars().all(fits);
        self.must(fits, field, if value.is_empty() { "is empty" } else { "cannot be used" }, hint);
    }

    fn directory(&mut self, value: &str, field: &str) {
        const HINT: &str = "a path that starts with /, without .., backslash and control characters";
        self.must(value.starts_with('/'), field, "is no absolute path", HINT);
        let odd = value.chars().any(|c| c.is_control() || c == '\\')
            || value.split('/').any(|part| part == "..")
            || value.len() > LONGEST_PATH;
        self.must(!odd, field, "cannot be used as a path", HINT);
    }

    /// Lines of shell, an administrator's.
    fn shell(&mut self, value: Option<&str>, field: &str) {
        let Some(value) = value else { return };
        let odd = value.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
        self.must(!odd, field, "has control characters", "lines of shell, ended by \\n");
        self.must(
            value.len() <= LONGEST_SHELL,
            field,
            "is too long",
            "at most 16 KiB; keep more in a file of the site",
        );
        let directive = value.lines().any(|line| line.trim_start().starts_with("#SBATCH"));
        self.must(
            !directive,
            field,
            "has a directive, which has no effect here",
            "put it into slurm_template",
        );
    }

    fn within(&mut self, value: Option<u32>, (least, most): (u32, u32), field: &str) {
        let fits = value.is_none_or(|value| (least..=most).contains(&value));
        self.must(fits, field, "is out of range", &format!("{least} to {most}, or null"));
    }
}

/// Everything that is wrong with it; nothing, and it can be run.
pub fn check(remote: &SlurmRemote) -> Vec<Wrong> {
    let mut wrong = Wrongs(vec![]);
    login(remote, &mut wrong);
    let word = "letters, digits and _ . - (ASCII), not a dash first";
    wrong.word(&remote.account, "account", "", &format!("the account that jobs are charged to: {word}"));
    wrong.word(&remote.facility, "facility", "", &format!("a name for people: {word}"));
    for (field, path) in
        [("home_dir", &remote.home_dir), ("log_dir", &remote.log_dir), ("dlg_root", &remote.dlg_root)]
    {
        wrong.directory(path, field);
    }
    wrong.must(
        !remote.dlg_root.trim_matches('/').is_empty(),
        "dlg_root",
        "is the root of the file system",
        "a directory of the remote user's that every node sees",
    );
    // DALiuGE writes paths below it into the commands of graphs as they are.
    let shell = |c: char| c.is_whitespace() || "'\"$`;&|<>()*?[]{}#!~".contains(c);
    wrong.must(
        !remote.dlg_root.contains(shell),
        "dlg_root",
        "has a character that a shell reads, and the commands of graphs hold it unquoted",
        "a path without spaces, quotes and $`;&|<>()*?[]{}#!~",
    );
    environment(remote, &mut wrong);
    wrong.within(Some(remote.verbose_level), (0, 5), "verbose_level");
    wrong.within(Some(remote.max_threads), (0, 4096), "max_threads");
    let resources = remote.resources.clone().unwrap_or_default();
    asked(&resources, &mut wrong);
    size(remote, &resources, &mut wrong);
    template(remote.slurm_template.as_deref(), &mut wrong);
    wrong.0
}

fn login(remote: &SlurmRemote, wrong: &mut Wrongs) {
    wrong.must(
        is_host(&remote.login_node),
        "login_node",
        "is no host",
        "a host name or address; IPv6 in brackets",
    );
    wrong.must(remote.ssh_port != Some(0), "ssh_port", "is 0", "1 to 65535, or null for 22");
    if let Some(user) = &remote.remote_user {
        wrong.must(is_user(user), "remote_user", "is no user name", USER);
    }
    slot(remote.ssh_credential.as_deref(), "ssh_credential", wrong);
    wrong.within(remote.poll_floor_seconds, (1, 86_400), "poll_floor_seconds");
    if let Some(jump) = &remote.jump {
        const HOST: &str = "a host name or address; IPv6 in brackets";
        wrong.must(is_host(&jump.host), "jump.host", "is no host", HOST);
        wrong.must(jump.ssh_port != Some(0), "jump.ssh_port", "is 0", "1 to 65535, or null for 22");
        if let Some(user) = &jump.remote_user {
            wrong.must(is_user(user), "jump.remote_user", "is no user name", USER);
        }
        slot(jump.ssh_credential.as_deref(), "jump.ssh_credential", wrong);
    }
}

const USER: &str = "small letters, digits, _ and -, a letter or _ first, at most 32";

fn is_user(user: &str) -> bool {
    let mut letters = user.chars();
    letters.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'))
        && user.len() <= 32
}

fn slot(name: Option<&str>, field: &str, wrong: &mut Wrongs) {
    let Some(name) = name else { return };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let fits = (1..=64).contains(&name.len())
        && name.chars().all(fits)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let hint = "a directory below credentials/ssh: letters, digits and _ . -, at most 64";
    wrong.must(fits, field, "is no name of a slot", hint);
}

fn environment(remote: &SlurmRemote, wrong: &mut Wrongs) {
    wrong.shell(remote.modules.as_deref(), "modules");
    wrong.shell(remote.venv.as_deref(), "venv");
    wrong.shell(remote.environment_setup.as_deref(), "environment_setup");
    let only_path = |line: &str| line.starts_with('/') && !line.contains(char::is_whitespace);
    wrong.must(
        !remote.venv.as_deref().is_some_and(|line| only_path(line.trim())),
        "venv",
        "is a path and no line of shell",
        "such as `source /path/to/venv/bin/activate`",
    );
    let prefix = &remote.exec_prefix;
    let starts = !matches!(prefix.trim().chars().next(), None | Some('#'));
    wrong.must(starts, "exec_prefix", "is empty", "what starts the launcher, such as `srun`");
    wrong.must(
        super::script::nodes(remote) == 1 || prefix.contains("srun"),
        "exec_prefix",
        "does not start the launcher on every node",
        "with several nodes one task a node by srun, such as `srun --ntasks-per-node=1`",
    );
    wrong.must(
        !prefix.chars().any(char::is_control) && prefix.len() <= LONGEST_PATH,
        "exec_prefix",
        "is not one line",
        "one command with its options, without line breaks",
    );
    let runtime = remote.container_runtime.as_deref();
    wrong.must(
        matches!(runtime, None | Some("" | "none")),
        "container_runtime",
        "is not supported",
        "null; a container is started by exec_prefix, such as `srun apptainer exec image.sif`",
    );
}

fn asked(resources: &SlurmResources, wrong: &mut Wrongs) {
    const NAMES: &str = "names as the site has them, or null";
    for (value, field, more) in [
        (&resources.partition, "resources.partition", ","),
        (&resources.quality_of_service, "resources.quality_of_service", ""),
        (&resources.constraint, "resources.constraint", ",&|*[]():="),
    ] {
        if let Some(value) = value {
            wrong.word(value, field, more, NAMES);
        }
    }
    wrong.within(resources.nodes, (1, 100_000), "resources.nodes");
    wrong.within(resources.tasks, (1, 10_000_000), "resources.tasks");
    wrong.within(resources.cpus_per_task, (1, 100_000), "resources.cpus_per_task");
    if let Some(memory) = &resources.memory {
        let digits = memory.trim_end_matches(['K', 'M', 'G', 'T']);
        let fits = memory.len() - digits.len() <= 1
            && (1..=12).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (!digits.starts_with('0') || memory == "0");
        wrong.must(
            fits,
            "resources.memory",
            "is no size",
            "a number with K, M, G or T for each node, such as 8G; 0 for all of it",
        );
    }
}

fn size(remote: &SlurmRemote, resources: &SlurmResources, wrong: &mut Wrongs) {
    let minutes = 1..=LONGEST_MINUTES;
    let hint = "1 minute to 366 days (527040)";
    match resources.wall_time_minutes {
        Some(time) => {
            wrong.must(minutes.contains(&time), "resources.wall_time_minutes", "is out of range", hint)
        }
        None => wrong.must(
            minutes.contains(&remote.job_duration_minutes),
            "job_duration_minutes",
            "is out of range",
            &format!("{hint}; or give resources.wall_time_minutes"),
        ),
    }
    wrong.must(remote.num_nodes <= 100_000, "num_nodes", "is out of range", "1 to 100000");
    let nodes = super::script::nodes(remote);
    let at_most = |count: u32| count <= nodes;
    let hint = format!("at most the {nodes} nodes that are asked for");
    wrong.must(at_most(remote.num_islands), "num_islands", "are more than there are nodes", &hint);
    if resources.tasks.is_some_and(|tasks| tasks < nodes) {
        let hint = format!("at least one for each of the {nodes} nodes");
        wrong.must(false, "resources.tasks", "are fewer than there are nodes", &hint);
    }
    if let Some(topology) = &remote.manager_topology {
        for (count, field) in
            [(topology.nodes, "manager_topology.nodes"), (topology.islands, "manager_topology.islands")]
        {
            wrong.must(count.is_none_or(at_most), field, "are more than there are nodes", &hint);
            wrong.must(count != Some(0), field, "is 0", "at least 1, or null");
        }
    }
}

/// More directives of the site's: `--gres`, `--reservation`, …
fn template(template: Option<&str>, wrong: &mut Wrongs) {
    let mut bad = |line: &str, why: &str| {
        let hint = "lines of the form `#SBATCH --option=value`, such as `#SBATCH --gres=gpu:1`";
        wrong.must(false, "slurm_template", &format!("has the line {line:?}, {why}"), hint);
    };
    for line in template.unwrap_or_default().lines().filter(|line| !line.trim().is_empty()) {
        let Some(option) = line.strip_prefix("#SBATCH --") else {
            bad(line, "which is no directive");
            continue;
        };
        let name = option.split('=').next().unwrap_or_default();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            bad(line, "whose option is not one word with its value behind =");
        } else if OURS.iter().any(|ours| ours.starts_with(name)) {
            // Slurm takes an option that is cut short, too.
            bad(line, "which is given by this service");
        } else if option.chars().any(|c| c.is_whitespace() || c.is_control() || "'\"\\#".contains(c)) {
            // What is behind a space would be an option of its own.
            bad(line, "which has a space, a quote, a backslash or # in its value");
        } else if line.len() > LONGEST_PATH {
            bad(line, "which is too long");
        }
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    (1..=253).contains(&host.len())
        && host.starts_with(|c: char| c.is_ascii_alphanumeric())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}
