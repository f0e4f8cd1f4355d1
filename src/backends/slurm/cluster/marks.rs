//! What the marks of a session directory say, and what sbatch said.
//!
//! Only what Slurm itself wrote makes a submission sure: an id is printed once the controller has taken the job, and a
//! refusal is believed unless it speaks of an answer that was lost.

use chrono::DateTime;

use super::{Accepted, Submitted};
use crate::ssh::{Error, Files, Output, Part, Target};

/// Codes of the submitting command itself; sbatch's own is in the answer.
pub(super) const NO_DIRECTORY: u32 = 90;
pub(super) const TAKEN: u32 = 91;
pub(super) const NO_MARK: u32 = 92;
pub(super) const MARK_GIVEN_BACK: u32 = 93;
/// Begins the line with the answer, because a login may print lines of its own.
pub(super) const ANSWER: &str = "beampipe-answer";

/// What sbatch says when the controller was never given the job: it could not connect, or could not sign the request.
pub(super) const NOT_REACHED: [&str; 2] = ["(connect failure)", "Munge encode failed"];

/// What sbatch says when the request left and the answer was lost.
const UNCLEAR: [&str; 6] =
    ["timed out", "zero bytes", "send/recv", "connection reset", "communication", "unexpected message"];

/// No answer of sbatch is this long.
const LIMIT: usize = 64 * 1024;

/// What is in a session directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    pub directory: bool,
    pub submission: Submission,
    /// The job's first line has run, or the session was fenced.
    pub started: bool,
    /// The job's last line has run.
    pub ended: Option<Ended>,
}

/// What a job left at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Absent when what is there is no number.
    pub code: Option<u32>,
}

/// What the marks say about a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// No mark is seen. Sure only once it is taken.
    NoMark,
    /// Somebody took the mark in order not to submit: surely not submitted.
    Withheld,
    /// Surely submitted.
    Accepted(Accepted),
    /// Surely not submitted, and why.
    Refused { code: u32, stderr: String },
    /// It may have been submitted: look the name up.
    Unclear {
        /// The shell came as far as sbatch.
        sbatch_began: bool,
        stderr: String,
    },
}

impl Marks {
    pub(super) async fn read(files: &Files, directory: &str) -> Result<Self, Error> {
        let has = async |name: &str| files.exists(&format!("{directory}/{name}")).await;
        let mut marks = Self {
            directory: files.exists(directory).await?,
            submission: Submission::NoMark,
            started: false,
            ended: None,
        };
        if !marks.directory {
            return Ok(marks);
        }
        if has("submit").await? {
            marks.submission = submission(files, directory).await?;
        }
        marks.started = has("started").await?;
        marks.ended =
            text(files, directory, "ended").await?.map(|text| Ended { code: text.trim().parse().ok() });
        Ok(marks)
    }
}

async fn submission(files: &Files, directory: &str) -> Result<Submission, Error> {
    if files.exists(&format!("{directory}/submit/withheld")).await? {
        return Ok(Submission::Withheld);
    }
    // The answer first: it is written last, so what is read after it is whole.
    let answer = text(files, directory, "submit/answer").await?;
    let stdout = text(files, directory, "submit/stdout").await?;
    let stderr = text(files, directory, "submit/stderr").await?.unwrap_or_default();
    Ok(judge(answer.as_deref(), stdout.as_deref(), stderr))
}

async fn text(files: &Files, directory: &str, name: &str) -> Result<Option<String>, Error> {
    match files.read(&format!("{directory}/{name}"), Part::Beginning, LIMIT).await {
        Ok(content) => Ok(Some(String::from_utf8_lossy(&content.bytes).into_owned())),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a shell left behind that may have been killed anywhere.
fn judge(answer: Option<&str>, stdout: Option<&str>, stderr: String) -> Submission {
    let (code, at) = answer.and_then(read_answer).unzip();
    if let Some(mut accepted) = stdout.and_then(job_id) {
        accepted.submitted_at = at.flatten();
        return Submission::Accepted(accepted);
    }
    match code {
        Some(code) if refused(code, &stderr) => Submission::Refused { code, stderr },
        _ => Submission::Unclear { sbatch_began: stdout.is_some(), stderr },
    }
}

/// `<code> <seconds since 1970>`
fn read_answer(text: &str) -> Option<(u32, Option<DateTime<chrono::Utc>>)> {
    let mut words = text.split_whitespace();
    let code = words.next()?.parse().ok()?;
    let at = words.next().and_then(|at| at.parse().ok()).and_then(|at| DateTime::from_timestamp(at, 0));
    Some((code, at))
}

/// The line of `sbatch --parsable`: `<id>` or `<id>;<cluster>`, and whole: half a line is half an id.
fn job_id(stdout: &str) -> Option<Accepted> {
    let whole = stdout.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole.map(str::trim).rev().find_map(|line| {
        let (id, cluster) = line.split_once(';').map_or((line, None), |(id, cluster)| (id, Some(cluster)));
        let numeric = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
        numeric.then(|| Accepted {
            job_id: id.to_owned(),
            cluster: cluster.filter(|name| !name.is_empty()).map(str::to_owned),
            submitted_at: None,
        })
    })
}

/// Whether sbatch ended by itself and says no, rather than that it heard nothing.
fn refused(code: u32, stderr: &str) -> bool {
    let lower = stderr.to_ascii_lowercase();
    (1..=127).contains(&code) && !UNCLEAR.iter().any(|words| lower.contains(words))
}

/// What the submitting command came back with.
pub(super) fn answer_of(target: &Target, directory: &str, said: &Output) -> Result<Submitted, Error> {
    let (stdout, stderr) = (said.stdout_text(), said.stderr_text());
    let unknown = |detail: String| Error::Unknown { target: target.to_string(), detail, cause: None };
    let refused = |what: &str| Error::Refused {
        target: target.to_string(),
        what: format!("to submit {directory:?}"),
        detail: if stderr.trim().is_empty() { what.to_owned() } else { format!("{what}: {}", stderr.trim()) },
        absent: false,
    };
    match said.code {
        Some(TAKEN) => return Ok(Submitted::Taken),
        Some(MARK_GIVEN_BACK) => return Ok(Submitted::NotReached { stderr }),
        Some(NO_DIRECTORY) => return Err(refused("there is no session directory with a job.sh")),
        Some(NO_MARK) => return Err(refused("the session directory cannot be written to")),
        Some(0) => {}
        _ => return Err(unknown(format!("the submitting command ended with {:?}: {stderr}", said.code))),
    }
    let answer = stdout.split_once(&format!("\n{ANSWER} ")).and_then(|(_, rest)| rest.split_once('\n'));
    let Some((answer, stdout)) = answer else {
        return Err(unknown("the submitting command gave no answer".into()));
    };
    match judge(Some(answer), Some(stdout), stderr) {
        Submission::Accepted(accepted) => Ok(Submitted::Accepted(accepted)),
        Submission::Refused { code, stderr } => Ok(Submitted::Refused { code, stderr }),
        Submission::Unclear { stderr, .. } => {
            Err(unknown(format!("sbatch does not know: {}", stderr.trim())))
        }
        Submission::NoMark | Submission::Withheld => Err(unknown("the answer cannot be read".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<(String, Option<String>)> {
        job_id(text).map(|accepted| (accepted.job_id, accepted.cluster))
    }

    #[test]
    fn an_id_is_read_with_its_cluster_and_only_from_a_whole_line() {
        assert_eq!(id("29\n"), Some(("29".into(), None)));
        assert_eq!(id("29;setonix\n"), Some(("29".into(), Some("setonix".into()))));
        assert_eq!(id("Welcome to 7\n1234\n"), Some(("1234".into(), None)));
        assert_eq!(id("12"), None, "the next digit may be missing");
        assert_eq!(id("Submitted batch job x\n"), None);
    }

    #[test]
    fn a_shell_killed_anywhere_leaves_marks_that_say_no_more_than_they_know() {
        let unclear = |sbatch_began| Submission::Unclear { sbatch_began, stderr: String::new() };
        assert_eq!(judge(None, None, String::new()), unclear(false), "between the mark and sbatch");
        assert_eq!(judge(None, Some(""), String::new()), unclear(true), "while sbatch ran");
        assert_eq!(judge(None, Some("4"), String::new()), unclear(true), "while the id was written");
        let known = judge(None, Some("42\n"), String::new());
        assert!(matches!(known, Submission::Accepted(accepted) if accepted.job_id == "42"));
        let whole = judge(Some("0 1800000000\n"), Some("42\n"), String::new());
        let Submission::Accepted(accepted) = whole else { panic!("{whole:?}") };
        assert_eq!(accepted.submitted_at.unwrap().timestamp(), 1_800_000_000);
    }

    #[test]
    fn a_refusal_is_believed_unless_it_speaks_of_a_lost_answer() {
        let no = "sbatch: error: invalid partition specified: nope\n";
        let refusal = judge(Some("1 1"), Some(""), no.into());
        assert_eq!(refusal, Submission::Refused { code: 1, stderr: no.into() });
        for (code, stderr) in [
            ("1", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
            ("1", "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received"),
            ("137", "Killed"),
            ("0", ""),
            ("x", ""),
        ] {
            let judged = judge(Some(code), Some(""), stderr.into());
            assert!(matches!(judged, Submission::Unclear { .. }), "{code} {stderr}: {judged:?}");
        }
    }
}
