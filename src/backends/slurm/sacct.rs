//! **sacct**: what accounting has of jobs, ended ones above all. It lags behind the controller, and answers an unknown job
//! with nothing and exit 0: no row says nothing.
//!
//! Each job is a row, followed by rows for its steps (`6.batch`, `6.0`), of which the largest memory and the energy are
//! taken. A job that was requeued has a row for each time it was queued (`--duplicates`); the latest counts, the others are
//! its restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::job::{Id, State};
use super::quote::{Command, Nul};
use super::table::{self, Limit, PollError, Printed, SEPARATOR};

const NAME: &str = "sacct";
/// `man sacct`, in this order; the comment last because anybody may write it.
const FIELDS: &str = "JobID,State,ExitCode,DerivedExitCode,Reason,User,Cluster,Account,Partition,NodeList,Submit,Start,\
                      End,ElapsedRaw,TimelimitRaw,MaxRSS,TotalCPU,CPUTimeRAW,ConsumedEnergyRaw,AllocTRES,JobName,Comment";
const WIDTH: usize = 22;

/// How a program ended: with a code, or by a signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: u32,
    pub signal: u32,
}

/// One job as accounting has it, with its steps folded in.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: Id,
    pub state: State,
    pub exit: Exit,
    /// Why it waited last, also long after it ran.
    pub reason: Option<String>,
    pub user: Option<String>,
    pub cluster: Option<String>,
    pub account: Option<String>,
    pub partition: Option<String>,
    pub nodes: Option<String>,
    pub submitted_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub elapsed: Option<Duration>,
    pub limit: Option<Limit>,
    /// The most that any task of any step had at once, in bytes, as sampled.
    pub max_rss: Option<u64>,
    /// What its processors worked.
    pub cpu_time: Option<Duration>,
    /// What its processors were held: elapsed times their number, in seconds.
    pub cpu_held_seconds: Option<u64>,
    /// In joules, where nodes are measured.
    pub energy_joules: Option<u64>,
    /// What was allocated: `cpu`, `mem`, `node`, `billing`, `gres/…`, as Slurm writes them.
    pub allocated: BTreeMap<String, String>,
    /// How often it had been requeued before.
    pub restarts: u32,
    pub name: String,
    pub comment: Option<String>,
}

impl Row {
    /// Processors allocated.
    pub fn cpus(&self) -> Option<u64> {
        self.allocated.get("cpu")?.parse().ok()
    }

    /// Billing weight allocated; times the hours elapsed it is what many sites charge as service units.
    pub fn billing(&self) -> Option<u64> {
        self.allocated.get("billing")?.parse().ok()
    }
}

/// Asks for these jobs, whenever they ran; [`super::poll::MOST_JOBS`] at most.
pub fn by_id(jobs: &[u64]) -> Result<String, Nul> {
    let jobs: Vec<String> = jobs.iter().map(u64::to_string).collect();
    command().option("--jobs", &jobs.join(",")).line()
}

/// Asks for the jobs of this name, which is a session's id, in any state since then. Without a time sacct begins at
/// midnight.
pub fn by_name(name: &str, since: DateTime<Utc>) -> Result<String, Nul> {
    let since = since.format("%Y-%m-%dT%H:%M:%S").to_string();
    command().option("--name", name).option("--starttime", &since).line()
}

/// Plain C words; `TZ` makes the times that go in UTC, the format those that come out seconds since 1970.
fn command() -> Command {
    Command::new("env")
        .raw("-u SACCT_FEDERATION -u SACCT_LOCAL LC_ALL=C TZ=UTC0 SLURM_TIME_FORMAT=%s")
        .raw("sacct --parsable2 --noheader --noconvert --duplicates")
        .option("--delimiter", &SEPARATOR.to_string())
        .option("--format", FIELDS)
}

/// Reads the answer: one row a job. No row for a job says nothing about the job.
pub fn read(printed: Printed) -> Result<Vec<Row>, PollError> {
    let mut jobs: Vec<Row> = vec![];
    table::rows(NAME, printed, WIDTH, |fields| match fields[0].split_once('.') {
        None => {
            jobs.push(row(fields)?);
            Ok(())
        }
        Some((id, _)) => {
            let id: Id = id.parse()?;
            let job = jobs.last_mut().filter(|job| job.id == id);
            fold(job.ok_or("a step whose job is not above it")?, fields)
        }
    })?;
    Ok(latest(jobs))
}

fn row(fields: &[&str]) -> Result<Row, String> {
    let &[
        id,
        state,
        exit,
        _derived,
        reason,
        user,
        cluster,
        account,
        partition,
        nodes,
        submit,
        start,
        end,
        elapsed,
        limit,
        rss,
        cpu,
        held,
        energy,
        tres,
        name,
        comment,
    ] = fields
    else {
        return Err("the fields do not fit".to_owned());
    };
    Ok(Row {
        id: id.parse()?,
        state: state.parse()?,
        exit: exit_of(exit)?,
        reason: table::text(reason),
        user: table::text(user),
        cluster: table::text(cluster),
        account: table::text(account),
        partition: table::text(partition),
        nodes: table::text(nodes),
        submitted_at: table::time(submit)?,
        started_at: table::time(start)?,
        ended_at: table::time(end)?,
        elapsed: table::number(elapsed)?.map(Duration::from_secs),
        limit: minutes(limit)?,
        max_rss: table::bytes(rss)?,
        cpu_time: table::duration(cpu)?,
        cpu_held_seconds: table::number(held)?,
        energy_joules: joules(energy)?,
        allocated: allocated(tres)?,
        restarts: 0,
        name: name.to_owned(),
        comment: table::text(comment),
    })
}

/// Adds what a step tells: memory and energy are measured there.
fn fold(job: &mut Row, fields: &[&str]) -> Result<(), String> {
    // Every field of a step is read, so that what is odd in one is said too.
    let (_state, _exit): (State, Exit) = (fields[1].parse()?, exit_of(fields[2])?);
    job.max_rss = job.max_rss.max(table::bytes(fields[15])?);
    job.energy_joules = job.energy_joules.max(joules(fields[18])?);
    Ok(())
}

fn exit_of(field: &str) -> Result<Exit, String> {
    let read =
        |(code, signal): (&str, &str)| Some(Exit { code: code.parse().ok()?, signal: signal.parse().ok()? });
    field.split_once(':').and_then(read).ok_or_else(|| format!("{field:?} is no exit code with a signal"))
}

fn minutes(field: &str) -> Result<Option<Limit>, String> {
    match field {
        "UNLIMITED" | "INFINITE" => Ok(Some(Limit::Unlimited)),
        "Partition_Limit" => Ok(None),
        _ => Ok(table::number::<u32>(field)?
            .map(|minutes| Limit::Of(Duration::from_secs(u64::from(minutes) * 60)))),
    }
}

/// Nobody measures where it says 0.
fn joules(field: &str) -> Result<Option<u64>, String> {
    Ok(table::number(field)?.filter(|joules| *joules > 0))
}

fn allocated(field: &str) -> Result<BTreeMap<String, String>, String> {
    field
        .split(',')
        .filter(|one| !one.is_empty())
        .map(|one| {
            let (name, count) =
                one.split_once('=').ok_or_else(|| format!("{one:?} is no resource with a count"))?;
            Ok((name.to_owned(), count.to_owned()))
        })
        .collect()
}

/// Of the rows of one job the one that was queued last.
fn latest(jobs: Vec<Row>) -> Vec<Row> {
    let mut kept: Vec<Row> = vec![];
    for mut job in jobs {
        // An id may have been given to another job before: another name, another job.
        match kept.iter_mut().find(|other| other.id == job.id && other.name == job.name) {
            None => kept.push(job),
            Some(other) => {
                let restarts = other.restarts + 1;
                if job.submitted_at >= other.submitted_at {
                    std::mem::swap(other, &mut job);
                }
                other.restarts = restarts;
            }
        }
    }
    kept
}
