//! `projections`: read models, which are caches of the log: how far they are, folding them again, comparing them with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use beampipe_projections::{self as read_models, Decode, Difference, ModelCopy, Restored, Verified};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::client::{Client, path};
use super::files::{Files, LogFile};
use super::log::bar;
use super::out::{Column, plain, remark};
use super::{Context, Outcome};
use crate::clock::Clock;
use crate::codec;

const COLUMNS: &[Column] = &[
    ("NAME", "name"),
    ("VERSION", "version"),
    ("STATE", "state"),
    ("POSITION", "position"),
    ("LAG EVENTS", "lag_events"),
    ("LAG SECONDS", "lag_seconds"),
    ("REBUILD AT", "rebuild.position"),
    ("WHY", "why"),
    ("ALARM", "alarm"),
];
/// How often a rebuild is looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The read models of the service, and how far they are (API)
    List,
    /// Fold read models again, beside the old ones, which go on answering (API), or --offline (files)
    Rebuild(Rebuild),
    /// Copy the read models, for another process to start from; a service may be running (files)
    Snapshot {
        /// A directory that is made, or a file whose name ends in .tar.
        to: PathBuf,
        #[command(flatten)]
        files: Files,
    },
    /// Put a snapshot into the place of read models that are not there yet (files)
    Restore {
        /// What `snapshot` wrote.
        from: PathBuf,
        #[command(flatten)]
        files: Files,
    },
    /// Fold the log again and compare every row; a service may be running (files)
    Verify {
        #[command(flatten)]
        log: LogFile,
    },
}

#[derive(Debug, Args)]
pub struct Rebuild {
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// Do not wait for the end.
    #[arg(long, conflicts_with = "offline")]
    no_wait: bool,
    /// Work on the files of a service that is stopped.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    log: LogFile,
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Self::List => {
                context.out.list(&context.client()?.get("/projections", &[]).await?, COLUMNS)?;
                Ok(Outcome::Done)
            }
            Self::Rebuild(rebuild) if rebuild.offline => rebuild.on_files(context).await,
            Self::Rebuild(rebuild) => rebuild.at_service(context).await,
            Self::Snapshot { to, files } => snapshot(context, to, &files).await,
            Self::Restore { from, files } => restore(context, from, &files).await,
            Self::Verify { log } => verify(context, &log).await,
        }
    }
}

fn decode() -> Decode {
    Arc::new(|recorded| codec::decode(recorded).map_err(|error| error.to_string()))
}

impl Rebuild {
    async fn on_files(self, context: &Context) -> anyhow::Result<Outcome> {
        let directory = self.log.files.config()?.read_models_dir();
        let log = self.log.read_only().await?;
        let names: Vec<&str> = self.name.as_deref().into_iter().collect();
        let bar = bar(log.head().position, "folding");
        let mut progress = |at: read_models::Progress| {
            bar.set_length(at.until);
            bar.set_position(at.position);
        };
        read_models::rebuild(&directory, &names, log, decode(), &mut progress).await?;
        bar.finish_and_clear();
        let what = self.name.as_deref().unwrap_or("every read model");
        match context.out.json() {
            true => context.out.value(&json!({"rebuilt": what, "directory": directory}))?,
            false => context.out.line(format!("rebuilt {what} in {}", directory.display()))?,
        }
        Ok(Outcome::Done)
    }

    async fn at_service(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        let names = match self.name {
            Some(name) => vec![name],
            None => {
                let all = client.get("/projections", &[]).await?;
                let named = all.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str());
                named.map(str::to_owned).collect()
            }
        };
        for name in &names {
            client.post(&path(["projections", name, "rebuild"]), &json!({})).await?;
        }
        let mut failed = false;
        if !self.no_wait {
            let bar = bar(0, "folding");
            while let Some(wrong) = still(&client, &names, &bar).await? {
                if let Some(wrong) = wrong {
                    bar.suspend(|| remark(format!("error: {wrong}")));
                    failed = true;
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
            bar.finish_and_clear();
        }
        context.out.list(&status(&client, &names).await?.into(), COLUMNS)?;
        Ok(if failed { Outcome::No } else { Outcome::Done })
    }
}

/// How the named read models stand.
async fn status(client: &Client, names: &[String]) -> anyhow::Result<Vec<Value>> {
    let all = client.get("/projections", &[]).await?;
    let all = all.as_array().context("the service does not list its read models")?;
    let named =
        |one: &&Value| one["name"].as_str().is_some_and(|name| names.iter().any(|wanted| wanted == name));
    Ok(all.iter().filter(named).cloned().collect())
}

/// Whether a rebuild still goes on (`None`: no more), and what went wrong with one.
async fn still(
    client: &Client,
    names: &[String],
    bar: &ProgressBar,
) -> anyhow::Result<Option<Option<String>>> {
    let (mut going, mut position, mut head) = (false, 0, 0);
    for one in status(client, names).await? {
        let rebuild = &one["rebuild"];
        if let Some(why) = rebuild["failed"].as_str() {
            return Ok(Some(Some(format!("{}: {why}", one["name"].as_str().unwrap_or_default()))));
        }
        going |= !rebuild.is_null();
        position += rebuild["position"].as_u64().or(one["position"].as_u64()).unwrap_or(0);
        head += rebuild["head"].as_u64().or(one["position"].as_u64()).unwrap_or(0);
    }
    bar.set_length(head);
    bar.set_position(position);
    Ok(going.then_some(None))
}

async fn verify(context: &Context, file: &LogFile) -> anyhow::Result<Outcome> {
    let directory = file.files.config()?.read_models_dir();
    let log = file.read_only().await?;
    let bar = bar(log.head().position, "folding");
    let mut progress = |at: read_models::Progress| {
        bar.set_length(at.until);
        bar.set_position(at.position);
    };
    let mut report = read_models::verify(&directory, log, decode(), &mut progress).await?;
    bar.finish_and_clear();
    for model in &mut report.models {
        model.differences.iter_mut().for_each(veil);
    }
    if context.out.json() {
        context.out.value(&serde_json::to_value(&report)?)?;
    } else {
        for model in &report.models {
            say(context, model)?;
        }
    }
    Ok(if report.is_clean() { Outcome::Done } else { Outcome::No })
}

async fn snapshot(context: &Context, to: PathBuf, files: &Files) -> anyhow::Result<Outcome> {
    let directory = files.config()?.read_models_dir();
    let (bar, to_) = (bytes_bar("copying"), to.clone());
    let made =
        blocking(bar, move |tell| Ok(read_models::snapshot(&directory, &to_, Clock::system().now(), tell)?))
            .await?;
    if context.out.json() {
        context.out.value(&serde_json::to_value(&made)?)?;
    } else {
        for ModelCopy { name, position, bytes, .. } in &made.models {
            context.out.line(format!("{name}: position {position}, {bytes} bytes"))?;
        }
        context.out.line(format!(
            "a snapshot of {} read models is in {}",
            made.models.len(),
            to.display()
        ))?;
    }
    Ok(Outcome::Done)
}

async fn restore(context: &Context, from: PathBuf, files: &Files) -> anyhow::Result<Outcome> {
    let config = files.config()?;
    // As the service would make it: nobody else looks into it.
    crate::app::private_directory(&config.state_dir)?;
    let directory = config.read_models_dir();
    let place = directory.display().to_string();
    let bar = bytes_bar("restoring");
    let restored = blocking(bar, move |tell| Ok(read_models::restore(&from, &directory, tell)?)).await?;
    if context.out.json() {
        context.out.value(&json!({"directory": place, "models": restored}))?;
        return Ok(Outcome::Done);
    }
    for Restored { name, position, left_out } in &restored {
        match (position, left_out) {
            (Some(position), _) => context.out.line(format!("{name}: position {position}"))?,
            (None, why) => {
                let why = why.as_deref().unwrap_or("it was left out");
                context.out.line(plain(&format!("{name}: {why}; it is folded from the beginning")))?;
            }
        }
    }
    context.out.line(format!("restored into {place}; the next start follows the log from there"))?;
    Ok(Outcome::Done)
}

type Tell<'a> = &'a mut (dyn FnMut(read_models::Copying) + Send);

/// Copies off the async threads, under a progress bar.
async fn blocking<T: Send + 'static>(
    bar: ProgressBar,
    copy: impl FnOnce(Tell<'_>) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(move || {
        let copied = copy(&mut |at| {
            bar.set_length(at.of);
            bar.set_position(at.bytes);
        });
        bar.finish_and_clear();
        copied
    })
    .await?
}

fn bytes_bar(what: &'static str) -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_message(what)
}

/// Hashes of secrets are shown to nobody; that they differ is.
fn veil(difference: &mut Difference) {
    const PRIVATE: [&str; 4] = ["password_hash", "secret_sha256", "access_sha256", "refresh_sha256"];
    if difference.column.as_deref().is_some_and(|column| PRIVATE.contains(&column)) {
        difference.was = Some("(private)".to_owned());
        difference.should_be = Some("(private)".to_owned());
    }
}

fn say(context: &Context, model: &Verified) -> std::io::Result<()> {
    let Verified { name, position, rows, differences } = model;
    let Some(position) = position else {
        return context.out.line(format!("{name}: no file; it is folded at the next start"));
    };
    let differ = differences.len();
    context.out.line(format!("{name}: {rows} rows at position {position}, {differ} differences"))?;
    differences.iter().try_for_each(|difference| context.out.line(format!("  {}", told(difference))))
}

fn told(difference: &Difference) -> String {
    let Difference { table, key, column, was, should_be } = difference;
    let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
    let column = column.as_deref().map(|column| format!(" {column}")).unwrap_or_default();
    plain(&format!("{table} {key}{column}: is {}, should be {}", word(was), word(should_be)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(column: Option<&str>, was: Option<&str>, should_be: Option<&str>) -> Difference {
        Difference {
            table: "sources".into(),
            key: "id=1".into(),
            column: column.map(str::to_owned),
            was: was.map(str::to_owned),
            should_be: should_be.map(str::to_owned),
        }
    }

    #[test]
    fn a_difference_says_where_what_and_what_should_be() {
        let altered = difference(Some("enabled"), Some("0"), Some("1"));
        assert_eq!(told(&altered), "sources id=1 enabled: is 0, should be 1");
        assert_eq!(told(&difference(None, None, Some("a row"))), "sources id=1: is nothing, should be a row");
    }

    #[test]
    fn a_hash_of_a_secret_is_not_shown_when_it_differs() {
        let mut altered = difference(Some("password_hash"), Some("$argon2id$a"), Some("$argon2id$b"));
        veil(&mut altered);
        assert!(!told(&altered).contains("argon2"), "{altered:?}");
    }
}
