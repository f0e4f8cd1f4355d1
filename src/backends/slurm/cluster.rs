//! The remote side of a session: its directory on the cluster, and the marks in it that settle what was done.
//!
//! | in the session directory | made by | says |
//! |---|---|---|
//! | `job.sh` and the other files | [`Cluster::prepare`] | may be submitted |
//! | `submit/` | whoever comes first | the right to submit is taken, for ever |
//! | `submit/withheld` | [`Cluster::take`] | taken so that nobody submits |
//! | `submit/stdout`, `submit/stderr` | the shell, before sbatch starts | sbatch may have run |
//! | `submit/answer` | the shell, after sbatch has ended | its code and the time, in seconds since 1970 |
//! | `started/` | the job's first line, or [`Cluster::fence`] | the job runs; or no job of this session ever will |
//! | `ended` | the job's last line | the code it ended with |
//!
//! Invariant: a session is submitted at most once. `mkdir` is done by one only, also where many ask at once or long after.
//! So a session is declared not submitted by *taking* a mark, never by not seeing one: a file system may show what it
//! remembers, and a shell that was stopped before sbatch may go on at any time.
//!
//! A mark without an answer stays unclear until a job is found by the session's name, or [`Cluster::fence`] sees to it
//! that a job which still comes ends at once. The one who took the mark gives it back, if Slurm surely was not reached.

mod marks;
mod site;

use std::time::Duration;

use chrono::{DateTime, Utc};

pub use marks::{Ended, Marks, Submission};
pub use site::{Account, Reservation, Space};

use super::quote::quote;
use crate::ssh::{Command, Content, Error, Files, Late, Output, Part, Pool, Target};

/// Begins what a command prints, because a login may print lines of its own before.
const OUTPUT: &str = "beampipe-output";
/// Longer than sbatch waits for a controller that does not answer.
const SUBMIT: Duration = Duration::from_secs(180);
/// Session directories are for their user and, to look at, for the project's group.
const DIRECTORY_MODE: u32 = 0o750;

/// A login node, with the connection to it.
#[derive(Clone, Debug)]
pub struct Cluster {
    pool: Pool,
    target: Target,
}

/// A file of a session.
#[derive(Clone, Debug)]
pub struct Upload<'a> {
    /// Relative to the session directory.
    pub name: &'a str,
    pub bytes: &'a [u8],
    pub mode: u32,
}

/// What Slurm took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub job_id: String,
    /// Named where a site has several.
    pub cluster: Option<String>,
    /// By the login node's clock.
    pub submitted_at: Option<DateTime<Utc>>,
}

/// The answer to a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    Accepted(Accepted),
    /// Somebody has the mark: an earlier request whose answer was lost, or another worker. Nothing was submitted now.
    Taken,
    /// sbatch said no. The mark stays taken.
    Refused {
        code: u32,
        stderr: String,
    },
    /// The controller surely got nothing, and the mark is free again.
    NotReached {
        stderr: String,
    },
}

/// The answer to taking a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is ours: what it stands for has not happened and will not.
    Ours,
    Already,
}

impl Cluster {
    pub fn new(pool: Pool, target: Target) -> Self {
        Self { pool, target }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Makes the session's directory and puts its files there. May be repeated.
    pub async fn prepare(&self, directory: &str, uploads: &[Upload<'_>]) -> Result<(), Error> {
        let directory = absolute(directory)?;
        let paths: Result<Vec<String>, Error> =
            uploads.iter().map(|file| below(directory, file.name)).collect();
        let files = self.files().await?;
        files.make_dirs(directory, DIRECTORY_MODE).await?;
        for (upload, path) in uploads.iter().zip(paths?) {
            if let Some((parent, _)) = path.rsplit_once('/') {
                files.make_dirs(parent, DIRECTORY_MODE).await?;
            }
            files.upload(&path, upload.bytes, upload.mode).await?;
        }
        Ok(())
    }

    /// Takes the session's mark, and only then hands its `job.sh` to Slurm, in one command.
    ///
    /// After an [`Error`] of class `Unknown` the marks and Slurm say what became of it.
    pub async fn submit(&self, directory: &str, session: &str) -> Result<Submitted, Error> {
        let command = submission(absolute(directory)?, session)?;
        // Half a submission would be worse than a late one.
        let command = Command::new(command).within(SUBMIT).when_late(Late::Leave);
        let said = self.pool.run(&self.target, command).await?;
        marks::answer_of(&self.target, directory, &said)
    }

    /// What is in the session's directory.
    pub async fn marks(&self, directory: &str) -> Result<Marks, Error> {
        Marks::read(&self.files().await?, absolute(directory)?).await
    }

    /// Takes the right to submit without submitting: the proof that the session was not submitted.
    pub async fn take(&self, directory: &str) -> Result<Taken, Error> {
        let files = self.files().await?;
        // Where nothing was uploaded yet: whoever still comes must find the mark.
        files.make_dirs(absolute(directory)?, DIRECTORY_MODE).await?;
        if !files.make_new_dir(&format!("{directory}/submit"), DIRECTORY_MODE).await? {
            return Ok(Taken::Already);
        }
        files.upload(&format!("{directory}/submit/withheld"), b"", 0o640).await?;
        Ok(Taken::Ours)
    }

    /// Takes the right to start: a job of this session that is yet to start ends at once. For a submission of which
    /// nothing is found and whose shell may still be stopped before sbatch.
    pub async fn fence(&self, directory: &str) -> Result<Taken, Error> {
        let files = self.files().await?;
        files.make_dirs(absolute(directory)?, DIRECTORY_MODE).await?;
        let ours = files.make_new_dir(&format!("{directory}/started"), DIRECTORY_MODE).await?;
        Ok(if ours { Taken::Ours } else { Taken::Already })
    }

    /// Runs a command line, such as a squeue or a sacct, with the variables that make Slurm's output the same everywhere.
    pub async fn run(&self, line: &str) -> Result<Output, Error> {
        self.run_within(line, self.pool.settings().command).await
    }

    /// The same, with a bound of its own.
    pub async fn run_within(&self, line: &str, limit: Duration) -> Result<Output, Error> {
        let script = format!("LC_ALL=C; export LC_ALL; echo; echo {OUTPUT}; {line}");
        let said = self.pool.run(&self.target, Command::new(shell(&script)?).within(limit)).await?;
        behind_the_mark(&self.target, said)
    }

    /// Asks Slurm to end a job. That it said nothing is no proof: it is silent about jobs it does not know as well.
    pub async fn cancel(&self, job_id: &str) -> Result<Output, Error> {
        let plain = job_id.starts_with(|c: char| c.is_ascii_digit())
            && job_id.chars().all(|c| c.is_ascii_digit() || "_+".contains(c));
        if !plain {
            return Err(Error::Invalid(format!("{job_id:?} is no id of a Slurm job")));
        }
        self.run(&format!("scancel {job_id}")).await
    }

    /// Reads at most `limit` bytes of a file of the session.
    pub async fn fetch(
        &self,
        directory: &str,
        name: &str,
        part: Part,
        limit: usize,
    ) -> Result<Content, Error> {
        self.files().await?.read(&below(absolute(directory)?, name)?, part, limit).await
    }

    async fn files(&self) -> Result<Files, Error> {
        self.pool.files(&self.target).await
    }
}

/// The one command of a submission. What can be looked at before the mark is, and leaves it free.
fn submission(directory: &str, session: &str) -> Result<String, Error> {
    let plain = !session.is_empty()
        && session.len() <= 128
        && session.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !plain {
        return Err(Error::Invalid(format!("{session:?} is no name of a session")));
    }
    let (directory, job) = (word(directory)?, word(&format!("{directory}/job.sh"))?);
    let lost = marks::NOT_REACHED.map(|words| format!("-e '{words}'")).join(" ");
    // Whoever closes the connection, or this session with it, does not stop it half way.
    shell(&format!(
        "trap '' HUP INT TERM PIPE; LC_ALL=C; export LC_ALL; \
         cd {directory} || exit {no_directory}; \
         [ -f {job} ] || exit {no_directory}; \
         mkdir submit 2>/dev/null || {{ [ -d submit ] && exit {taken}; echo 'the mark cannot be made' >&2; exit {no_mark}; }}; \
         echo >submit/probe && [ -s submit/probe ] || {{ rm -f submit/probe; rmdir submit; exit {no_mark}; }}; \
         sbatch --parsable --job-name={session} --comment={session} {job} >submit/stdout 2>submit/stderr; code=$?; \
         if [ $code -ne 0 ] && [ -s submit/stderr ] && [ -f submit/stdout ] && [ ! -s submit/stdout ] && grep -q {lost} submit/stderr; \
         then cat submit/stderr >&2; mv submit \"submit.not-reached.$$.$(date +%s)\" && exit {not_reached}; fi; \
         echo \"$code $(date +%s)\" >submit/answer.part; mv submit/answer.part submit/answer; \
         echo; echo \"{line} $(cat submit/answer)\"; cat submit/stdout; cat submit/stderr >&2; exit 0",
        no_directory = marks::NO_DIRECTORY,
        taken = marks::TAKEN,
        no_mark = marks::NO_MARK,
        not_reached = marks::MARK_GIVEN_BACK,
        line = marks::ANSWER,
    ))
}

/// What was printed behind the mark. Without the mark, the command was not begun.
fn behind_the_mark(target: &Target, said: Output) -> Result<Output, Error> {
    let mark = format!("\n{OUTPUT}\n");
    let at = said.stdout.windows(mark.len()).position(|window| window == mark.as_bytes());
    match at {
        Some(at) => Ok(Output { stdout: said.stdout[at + mark.len()..].to_vec(), ..said }),
        None => Err(Error::Unknown {
            target: target.to_string(),
            detail: format!("its shell did not begin the command: {}", said.stderr_text().trim()),
            cause: None,
        }),
    }
}

/// The same words for whatever shell the user has.
fn shell(script: &str) -> Result<String, Error> {
    Ok(format!("exec sh -c {}", word(script)?))
}

/// A text as one word of a shell.
fn word(text: &str) -> Result<String, Error> {
    quote(text).map_err(|nul| Error::Invalid(nul.to_string()))
}

fn absolute(directory: &str) -> Result<&str, Error> {
    let fits = directory.starts_with('/') && !directory.ends_with('/') && !directory.contains('\0');
    if fits && !directory.split('/').any(|part| part == "..") {
        return Ok(directory);
    }
    Err(Error::Invalid(format!("{directory:?} is no absolute path of a session directory")))
}

fn below(directory: &str, name: &str) -> Result<String, Error> {
    let inside = !name.is_empty()
        && !name.contains('\0')
        && name.split('/').all(|part| !part.is_empty() && part != ".." && part != ".");
    if inside {
        Ok(format!("{directory}/{name}"))
    } else {
        Err(Error::Invalid(format!("{name:?} is no file of a session")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::Class;

    #[test]
    fn names_that_lead_out_of_a_session_are_refused() {
        for name in ["", "../x", "a/../b", "/etc/passwd", "a//b", "."] {
            assert_eq!(below("/s", name).unwrap_err().class(), Class::Invalid, "{name}");
        }
        assert_eq!(below("/s", "log/a b").unwrap(), "/s/log/a b");
        for directory in ["", "s", "/s/", "/s/../t"] {
            assert_eq!(absolute(directory).unwrap_err().class(), Class::Invalid, "{directory}");
        }
    }

    #[test]
    fn a_session_whose_name_is_more_than_a_word_is_not_submitted() {
        for session in ["", "a b", "x;rm", "$(x)", "a'b"] {
            assert_eq!(submission("/s", session).unwrap_err().class(), Class::Invalid, "{session}");
        }
    }

    #[test]
    fn what_a_login_prints_by_itself_is_no_part_of_an_answer() {
        let target = Target::new("h", 22, "u", "s").unwrap();
        let said = |stdout: &str| Output {
            code: Some(0),
            signal: None,
            stdout: stdout.into(),
            stderr: b"no".to_vec(),
            truncated: false,
        };
        let noisy = said("Welcome\n\nbeampipe-output\n6|x\n");
        assert_eq!(behind_the_mark(&target, noisy).unwrap().stdout, b"6|x\n");
        let empty = said("\nbeampipe-output\n");
        assert_eq!(behind_the_mark(&target, empty).unwrap().stdout, b"");
        assert_eq!(behind_the_mark(&target, said("Account expired\n")).unwrap_err().class(), Class::Unknown);
    }

    #[test]
    fn the_mark_is_taken_before_sbatch_runs() {
        let command = submission("/a b", "s-1").unwrap();
        assert!(command.find("mkdir submit").unwrap() < command.find("sbatch --parsable").unwrap());
        assert!(!command.contains('\n'), "one line for every shell");
    }
}
