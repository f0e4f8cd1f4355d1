//! The command line: verbs, what they answer, and what their exit status means.
//!
//! A verb either talks to the API of a running service or works on files; its help says which. Exit status: 0 done; 1 the
//! answer is no (a problem, an invalid file, damage); 2 nobody was asked (no service there, or a usage error). `anyhow` is
//! used here and nowhere else. Deliberately absent: rules. A verb asks, the service decides.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;

pub mod board;
pub mod client;
pub mod event;
pub mod out;
pub mod sse;
pub mod tail;

mod account;
mod alerts;
mod checks;
mod config;
mod doctor;
mod events;
mod execution;
mod files;
mod log;
mod names;
mod profile;
mod project;
mod projections;
mod serve;
mod slurm;
mod source;
mod timeline;
mod work;

use client::{Client, ClientError};
use out::{Format, Out, remark};

/// Runs a radio-astronomy survey's workflows and proves what happened.
///
/// Verbs marked (API) talk to a running service (BEAMPIPE_URL, BEAMPIPE_KEY); verbs marked (files) work on files and need
/// none.
#[derive(Debug, Parser)]
#[command(name = "beampipe", version, disable_help_subcommand = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Global {
    /// The service, for verbs marked (API).
    #[arg(
        long,
        global = true,
        env = "BEAMPIPE_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    url: String,
    /// An API key or access token, for verbs marked (API).
    #[arg(long, global = true, env = "BEAMPIPE_KEY", hide_env_values = true, value_parser = secret)]
    key: Option<SecretString>,
    /// What answers are written as.
    #[arg(long, short, global = true, value_enum, default_value = "table")]
    output: Format,
}

fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text.trim().to_owned()))
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the service: API, scheduler and worker in one process, or the roles that are named (files)
    Serve(serve::Serve),
    /// Project configurations, and whether projects are worked on
    #[command(subcommand)]
    Project(project::Verb),
    /// Pause and resume the admission of every project (API)
    #[command(subcommand)]
    Admission(project::Admission),
    /// Deployment profiles (API)
    #[command(subcommand)]
    Profile(profile::Verb),
    /// Login nodes, and the keys for them
    #[command(subcommand)]
    Slurm(slurm::Verb),
    /// Whether an execution on a profile would get through: one line a check, and what puts it right (API)
    Doctor(doctor::Doctor),
    /// Sources (API)
    #[command(subcommand)]
    Source(source::Verb),
    /// Executions (API)
    #[command(subcommand)]
    Execution(execution::Verb),
    /// The queue (API)
    #[command(subcommand)]
    Job(work::Job),
    /// Worker processes (API)
    #[command(subcommand)]
    Worker(work::Worker),
    /// Alerts: what fires, who was told and why, silences, rules and what they would have said (API)
    #[command(subcommand)]
    Alerts(alerts::Verb),
    /// Events as they happen (API)
    #[command(subcommand)]
    Events(events::Verb),
    /// What happened to one thing, as a table and a time line (API)
    #[command(subcommand)]
    Timeline(timeline::Verb),
    /// Read models
    #[command(subcommand)]
    Projections(projections::Verb),
    /// The event log itself (files)
    #[command(subcommand)]
    Log(log::Verb),
    /// The configuration (files)
    #[command(subcommand)]
    Config(config::Verb),
    /// Accounts and API keys (API)
    #[command(subcommand)]
    Account(account::Verb),
}

/// What a verb has at hand.
struct Context {
    out: Out,
    url: String,
    key: Option<SecretString>,
}

impl Context {
    /// The way to the service.
    fn client(&self) -> Result<Client, ClientError> {
        Client::new(&self.url, self.key.clone())
    }
}

/// What a verb came to, when it did not fail.
enum Outcome {
    Done,
    /// The answer is no, and it was said.
    No,
}

/// Runs the verb that the arguments say.
pub fn main() -> ExitCode {
    // Two providers are in the tree; whoever makes a TLS client later needs one of them chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The log has hashes of passwords: what this process writes is its user's alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    run(std::env::args_os())
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Cli { global: Global { url, key, output }, verb } = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(usage) => usage.exit(),
    };
    let context = Context { out: Out::new(output), url, key };
    let runtime = match verb {
        Verb::Serve(_) => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(&context, verb)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::FAILURE,
        Err(error) => report(&error),
    }
}

async fn dispatch(context: &Context, verb: Verb) -> anyhow::Result<Outcome> {
    match verb {
        Verb::Serve(serve) => serve.run().await,
        Verb::Project(verb) => verb.run(context).await,
        Verb::Admission(verb) => verb.run(context).await,
        Verb::Profile(verb) => verb.run(context).await,
        Verb::Slurm(verb) => verb.run(context).await,
        Verb::Doctor(doctor) => doctor.run(context).await,
        Verb::Source(verb) => verb.run(context).await,
        Verb::Execution(verb) => verb.run(context).await,
        Verb::Job(verb) => verb.run(context).await,
        Verb::Worker(verb) => verb.run(context).await,
        Verb::Alerts(verb) => verb.run(context).await,
        Verb::Events(verb) => verb.run(context).await,
        Verb::Timeline(verb) => verb.run(context).await,
        Verb::Projections(verb) => verb.run(context).await,
        Verb::Log(verb) => verb.run(context).await,
        Verb::Config(verb) => verb.run(context),
        Verb::Account(verb) => verb.run(context).await,
    }
}

/// Says what went wrong, and which exit status it is.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(io) = error.downcast_ref::<std::io::Error>()
        && io.kind() == std::io::ErrorKind::BrokenPipe
    {
        // Whoever read has seen enough.
        return ExitCode::SUCCESS;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()) {
        Some(ClientError::Problem(problem)) => {
            remark(format!("error: {}", problem.title));
            // With a list of what is wrong, the detail only repeats its beginning.
            if problem.errors.is_empty() && !problem.detail.is_empty() && problem.detail != problem.title {
                remark(format!("  {}", problem.detail.replace('\n', "\n  ")));
            }
            for wrong in &problem.errors {
                remark(format!("  {}", wrong.to_string().replace('\n', "\n  ")));
            }
            if problem.status == 401 {
                remark(
                    "  hint: give an API key with --key or BEAMPIPE_KEY; the first start of the service prints one",
                );
            }
            if let Some(seconds) = problem.retry_after {
                remark(format!("  hint: try again in {seconds} s"));
            }
            ExitCode::FAILURE
        }
        Some(unreachable @ ClientError::Unreachable { .. }) => {
            remark(format!("error: {unreachable}"));
            remark(
                "  check that `beampipe serve` runs there, that the address is right (--url or BEAMPIPE_URL),",
            );
            remark("  and that no firewall or proxy is between");
            ExitCode::from(2)
        }
        Some(ClientError::Address(_)) => {
            remark(format!("error: {error:#}"));
            ExitCode::from(2)
        }
        _ => {
            remark(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_of_every_verb_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_argument_of_a_verb_takes_the_place_of_a_global_one() {
        fn look(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                for argument in sub.get_arguments() {
                    let id = argument.get_id().as_str();
                    assert!(!["url", "key", "output"].contains(&id), "{path} has an argument called {id}");
                }
                look(sub, &path);
            }
        }
        look(&Cli::command(), "beampipe");
    }

    #[test]
    fn every_verb_says_whether_it_talks_to_the_service() {
        fn look(command: &clap::Command, said: bool) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let said = said || about.contains("(API)") || about.contains("(files)");
            if command.get_subcommands().next().is_none() {
                assert!(said, "{} does not say (API) or (files)", command.get_name());
            }
            command.get_subcommands().for_each(|sub| look(sub, said));
        }
        Cli::command().get_subcommands().for_each(|verb| look(verb, false));
    }

    #[test]
    fn the_manual_has_every_verb_and_no_other() {
        fn verbs(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                match sub.get_subcommands().next() {
                    Some(_) => verbs(sub, &path, found),
                    None => found.push(path),
                }
            }
        }
        let mut known = vec![];
        verbs(&Cli::command(), "beampipe", &mut known);
        let manual = include_str!("../docs/cli.md");
        let told: Vec<&str> =
            manual.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let told: Vec<&str> = told.into_iter().filter(|told| told.starts_with("beampipe ")).collect();
        let is = |told: &str, verb: &str| told == verb || told.starts_with(&format!("{verb} "));
        for verb in &known {
            assert!(told.iter().any(|told| is(told, verb)), "docs/cli.md does not have `{verb}`");
        }
        for told in told {
            assert!(known.iter().any(|verb| is(told, verb)), "there is no `{told}`");
        }
    }

    #[test]
    fn the_key_is_not_shown_by_help_or_debug() {
        let cli = Cli::try_parse_from(["beampipe", "--key", "bpk_canary", "job", "list"]).unwrap();
        assert!(!format!("{cli:?}").contains("canary"));
    }
}
