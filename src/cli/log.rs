//! `log`: the event log as a file. Verification and export read it while a service writes; import and redaction need to be
//! the only writer and are refused while there is another.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use beampipe_domain::{Event, INSTALLATION, LogRedacted};
use beampipe_log::verify::VerifyProgress;
use beampipe_log::{Log, NewEvent, copy, ndjson};
use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::io::{AsyncWriteExt, BufReader};
use uuid::Uuid;

use super::files::{Files, LogFile, stdin, stdout};
use super::{Context, Outcome, out};
use crate::clock::Clock;
use crate::codec;
use crate::config;
use crate::engine::{Engine, Place};
use crate::secrets::SecretRef;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Check every hash, chain, position and redaction (files)
    Verify {
        #[command(flatten)]
        log: LogFile,
    },
    /// Write every event as a line of JSON, private fields and all (files)
    Export {
        /// The file to write, or `-` for standard output.
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        log: LogFile,
        /// Only what comes after this position.
        #[arg(long, default_value_t = 0, value_name = "POSITION")]
        after: u64,
    },
    /// Take an export over into a log that is empty or a beginning of it (files)
    Import {
        /// The file to read, or `-` for standard input.
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        log: LogFile,
    },
    /// Copy a log to another engine and compare the two; a copy that was broken off goes on (files)
    Copy(CopyTo),
    /// Remove the data of one event for ever; its proof stays (files)
    Redact(Redact),
}

#[derive(Debug, Args)]
pub struct CopyTo {
    /// The log to copy: a file, or the address of a server. It may be in use.
    from: String,
    /// Where to: a log that is empty, or a beginning of the other. Nobody else may append to it meanwhile.
    to: String,
    /// Where the password of the first is: env:NAME or file:PATH. Absent: log.password of the configuration.
    #[arg(long, value_name = "REFERENCE")]
    from_password: Option<SecretRef>,
    /// The same of the second.
    #[arg(long, value_name = "REFERENCE")]
    to_password: Option<SecretRef>,
    /// Copy nothing: only compare them.
    #[arg(long)]
    compare: bool,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
pub struct Redact {
    event_id: Uuid,
    /// Why: it is kept in the log.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    log: LogFile,
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Self::Verify { log } => verify(context, &log).await,
            Self::Export { file, log, after } => export(context, &file, &log, after).await,
            Self::Import { file, log } => import(context, &file, &log).await,
            Self::Copy(copy) => copy.run(context).await,
            Self::Redact(redact) => redact.run(context).await,
        }
    }
}

/// A bar on standard error; nothing is drawn when that is no terminal.
pub fn bar(of: u64, what: &'static str) -> ProgressBar {
    let template = "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(of).with_style(style).with_message(what)
}

async fn verify(context: &Context, file: &LogFile) -> anyhow::Result<Outcome> {
    let log = file.read_only().await?;
    let bar = bar(log.head().position, "verifying");
    let mut progress = |at: VerifyProgress| {
        bar.set_length(at.of);
        bar.set_position(at.position);
    };
    let report = log.check(&mut progress).await?;
    bar.finish_and_clear();
    if context.out.json() {
        let faults: Vec<_> =
            report.faults.iter().map(|f| json!({"place": f.place, "what": f.what})).collect();
        context.out.value(&json!({
            "events": report.events, "streams": report.streams, "redacted": report.redacted,
            "head": {"position": report.head.position, "hash": report.head.hash.to_hex()},
            "faults": faults,
        }))?;
    } else {
        for fault in &report.faults {
            context.out.line(format!("fault: {}: {}", fault.place, fault.what))?;
        }
        let counted = format!(
            "{} events in {} streams, {} redacted, head {} {}",
            HumanCount(report.events),
            HumanCount(report.streams),
            report.redacted,
            report.head.position,
            report.head.hash
        );
        let faults = report.faults.len();
        context.out.line(if faults == 0 {
            format!("whole: {counted}")
        } else {
            format!("{faults} faults: {counted}")
        })?;
    }
    Ok(if report.faults.is_empty() { Outcome::Done } else { Outcome::No })
}

async fn export(context: &Context, file: &Path, log: &LogFile, after: u64) -> anyhow::Result<Outcome> {
    let log = log.read_only().await?;
    let bar = bar(log.head().position.saturating_sub(after), "exporting");
    let mut progress = |p: ndjson::Progress| bar.set_position(p.written);
    let done = if file == Path::new("-") {
        let mut out = stdout()?;
        let done = ndjson::export(&*log, after, &mut out, &mut progress).await?;
        out.flush().await?;
        done
    } else {
        let cannot = || format!("cannot write {}", file.display());
        // Hashes of passwords are in it.
        let mut options = tokio::fs::OpenOptions::new();
        let mut out =
            options.write(true).create_new(true).mode(0o600).open(file).await.with_context(cannot)?;
        let done = ndjson::export(&*log, after, &mut out, &mut progress).await?;
        out.sync_all().await.with_context(cannot)?;
        done
    };
    bar.finish_and_clear();
    let said = json!({"written": done.written, "position": done.position});
    match (file == Path::new("-"), context.out.json()) {
        (true, _) => out::remark(format!("{} events, up to position {}", done.written, done.position)),
        (false, true) => context.out.value(&said)?,
        (false, false) => {
            context.out.line(format!(
                "{} events, up to position {}",
                HumanCount(done.written),
                done.position
            ))?;
        }
    }
    Ok(Outcome::Done)
}

async fn import(context: &Context, file: &Path, log: &LogFile) -> anyhow::Result<Outcome> {
    let log = log.writable().await?;
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("importing {human_pos} events {per_sec} {spinner}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let mut progress = |p: ndjson::Progress| bar.set_position(p.written + p.skipped);
    let imported = if file == Path::new("-") {
        ndjson::import(&*log, &mut BufReader::with_capacity(1 << 20, stdin()?), &mut progress).await
    } else {
        let opened =
            tokio::fs::File::open(file).await.with_context(|| format!("cannot read {}", file.display()))?;
        ndjson::import(&*log, &mut BufReader::with_capacity(1 << 20, opened), &mut progress).await
    };
    log.close().await;
    bar.finish_and_clear();
    let done = imported
        .context("the import ended early; what came before stays, and the same import goes on from there")?;
    if context.out.json() {
        let said = json!({"written": done.written, "skipped": done.skipped, "position": done.position});
        context.out.value(&said)?;
    } else {
        context.out.line(format!(
            "{} events written, {} were there, up to position {}",
            HumanCount(done.written),
            HumanCount(done.skipped),
            done.position
        ))?;
    }
    Ok(Outcome::Done)
}

impl CopyTo {
    async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let (config, clock) = (self.files.config()?, Clock::system());
        let [from, to] =
            [&self.from, &self.to].map(|address| Place::parse(address).map_err(anyhow::Error::msg));
        let (from, to) = (from?, to?);
        anyhow::ensure!(from != to, "a log is copied to another place, not onto itself");
        let with = |password: &Option<SecretRef>| {
            let password = password.clone().or(config.log.password.clone());
            config::Log { password, ..config.log.clone() }
        };
        let (of_source, of_target) = (with(&self.from_password), with(&self.to_password));
        let source = from.open_read_only(&of_source, &clock).await.context("the source cannot be opened")?;
        let target = match self.compare {
            true => to.open_read_only(&of_target, &clock).await,
            false => to.open(&of_target, &clock).await,
        };
        let target = target.context("the target cannot be opened")?;
        let compared = self.carry_out(&*source, &*target).await;
        target.close().await;
        let (copied, seconds, same) = compared?;
        if context.out.json() {
            context.out.value(&json!({
                "copied": copied, "copy_seconds": seconds, "events": same.events, "digest": same.digest.to_hex(),
            }))?;
        } else {
            let rate = if seconds > 0.0 { (copied as f64 / seconds) as u64 } else { 0 };
            context.out.line(format!(
                "{} events copied in {seconds:.1} s ({}/s); {} events are the same on both sides, leaves {}",
                HumanCount(copied),
                HumanCount(rate),
                HumanCount(same.events),
                same.digest
            ))?;
        }
        Ok(Outcome::Done)
    }

    /// Copies, unless only a comparison was asked for, then compares; answers how much was copied and in what time.
    async fn carry_out(
        &self,
        source: &dyn Engine,
        target: &dyn Engine,
    ) -> anyhow::Result<(u64, f64, copy::Same)> {
        let of = source.head().position;
        let (mut copied, began) = (0, std::time::Instant::now());
        if !self.compare {
            let bar = bar(of, "copying");
            let mut progress = |at: copy::Progress| bar.set_position(at.position);
            let done = copy::copy(source, target, &mut progress).await;
            bar.finish_and_clear();
            copied = done
                .map_err(|error| match error {
                    copy::CopyError::Foreign { .. } => {
                        anyhow::Error::new(error).context("nothing was copied")
                    }
                    error => anyhow::Error::new(error).context(
                        "the copy ended early; what arrived stays, and the same copy goes on from there",
                    ),
                })?
                .events;
        }
        let seconds = began.elapsed().as_secs_f64();
        let bar = bar(of, "comparing");
        let mut progress = |at: copy::Progress| bar.set_position(at.position);
        let same =
            copy::compare(source, target, &mut progress).await.context("the two logs are not the same")?;
        bar.finish_and_clear();
        Ok((copied, seconds, same))
    }
}

impl Redact {
    async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        anyhow::ensure!(!self.reason.trim().is_empty(), "--reason has to say why: it is all that stays");
        let log = self.log.writable().await?;
        let outcome = self.redact(&*log).await;
        log.close().await;
        let said = outcome?;
        context.out.thing(&said)?;
        Ok(Outcome::Done)
    }

    async fn redact(&self, log: &dyn Log) -> anyhow::Result<serde_json::Value> {
        let event = log.event(self.event_id).await?;
        let event = event.with_context(|| format!("no event {} is in the log", self.event_id))?;
        let clock = Clock::system();
        let record = LogRedacted {
            event_id: event.id,
            event_type: event.event_type.to_string(),
            stream: event.stream.to_string(),
            reason: self.reason.clone(),
        };
        let encoded = codec::encode(&Event::LogRedacted(record));
        let record = NewEvent {
            id: clock.id(),
            event_type: encoded.event_type.to_owned(),
            schema_version: encoded.schema_version,
            occurred_at: clock.now(),
            actor: "system:cli/redact".to_owned(),
            correlation_id: clock.id(),
            causation_id: Some(event.id),
            tags: vec![
                event.tag("project:").map_or_else(|| INSTALLATION.to_owned(), |p| format!("project:{p}")),
            ],
            data: encoded.data,
            salt: clock.random(),
        };
        let appended = log.redact(event.id, record).await?;
        Ok(json!({
            "event_id": event.id, "event_type": &*event.event_type, "stream": &*event.stream,
            "redacted_at_position": appended.position, "was_redacted_before": appended.repeated,
        }))
    }
}
