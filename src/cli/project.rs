//! `project` and `admission`: configurations, offline and uploaded, and whether projects are worked on.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Wrong, path};
use super::{Context, Outcome, out};
use crate::project::{Diagnostic, Validation, explain, validate};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say everything that is wrong with a configuration (files)
    Validate { file: PathBuf },
    /// Say what a configuration would do for a source: queries, limits, patches (files)
    Explain {
        file: PathBuf,
        /// The source; an example if left out.
        #[arg(long, value_name = "ID", default_value = "EXAMPLE-1")]
        source: String,
    },
    /// Upload a configuration; it becomes the active one (API)
    Add { file: PathBuf },
    /// The projects and their active versions (API)
    List,
    /// Admit nothing of a project any more; what runs goes on (API)
    Pause {
        module: String,
        #[arg(long, default_value = "paused from the command line")]
        reason: String,
    },
    /// Admit again (API)
    Resume { module: String },
}

#[derive(Debug, Subcommand)]
pub enum Admission {
    /// Admit nothing of any project any more; what runs goes on (API)
    Pause {
        #[arg(long, default_value = "paused from the command line")]
        reason: String,
    },
    /// Admit again (API)
    Resume,
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Self::Validate { file } => {
                let report = read(&file)?.report;
                if context.out.json() {
                    context.out.value(&serde_json::to_value(&report)?)?;
                } else {
                    report.errors.iter().try_for_each(|found| say(context, "error", found))?;
                    report.warnings.iter().try_for_each(|found| say(context, "warning", found))?;
                    let (errors, warnings) = (report.errors.len(), report.warnings.len());
                    context.out.line(match report.valid {
                        true => format!(
                            "{}: valid, {warnings} warnings, sha256 {}",
                            report.project_id, report.spec_sha256
                        ),
                        false => {
                            format!("{}: not valid, {errors} errors, {warnings} warnings", file.display())
                        }
                    })?;
                }
                Ok(if report.valid { Outcome::Done } else { Outcome::No })
            }
            Self::Explain { file, source } => {
                let Validation { report, config, .. } = read(&file)?;
                let Some(config) = config.filter(|_| report.valid) else {
                    report.errors.iter().try_for_each(|found| say(context, "error", found))?;
                    return Ok(Outcome::No);
                };
                match context.out.json() {
                    true => context.out.value(&explain::explain(&config, &source)?)?,
                    false => context.out.line(explain::text(&config, &source)?.trim_end())?,
                }
                Ok(Outcome::Done)
            }
            Self::Add { file } => {
                let yaml = text(&file)?;
                let answer =
                    context.client()?.post_text("/project-configs", "application/x-yaml", yaml).await?;
                if context.out.json() {
                    context.out.value(&answer)?;
                } else {
                    for warning in answer["warnings"].as_array().into_iter().flatten() {
                        out::remark(format!("warning: {}", warning["message"].as_str().unwrap_or_default()));
                    }
                    let shown = |name: &str| out::text(answer.get(name));
                    context.out.line(format!(
                        "{} is active, sha256 {}",
                        shown("project_id"),
                        shown("spec_sha256")
                    ))?;
                }
                Ok(Outcome::Done)
            }
            Self::List => {
                let projects = context.client()?.get("/projects", &[]).await?;
                let columns = [
                    ("PROJECT", "project_id"),
                    ("VERSION", "version"),
                    ("ACTIVE", "active"),
                    ("PAUSED", "paused"),
                ];
                context.out.list(&projects, &columns)?;
                Ok(Outcome::Done)
            }
            Self::Pause { module, reason } => {
                switch(context, &path(["projects", &module, "pause"]), json!({"reason": reason})).await
            }
            Self::Resume { module } => {
                switch(context, &path(["projects", &module, "resume"]), json!({})).await
            }
        }
    }
}

impl Admission {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Self::Pause { reason } => switch(context, "/admission/pause", json!({"reason": reason})).await,
            Self::Resume => switch(context, "/admission/resume", json!({})).await,
        }
    }
}

async fn switch(context: &Context, path: &str, body: Value) -> anyhow::Result<Outcome> {
    let answer = context.client()?.post(path, &body).await?;
    context.out.thing(&answer)?;
    Ok(Outcome::Done)
}

fn text(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn read(file: &Path) -> anyhow::Result<Validation> {
    Ok(validate(&text(file)?))
}

fn say(context: &Context, severity: &str, found: &Diagnostic) -> std::io::Result<()> {
    let Diagnostic { path, code, message, hint, .. } = found.clone();
    let wrong = Wrong { place: path, code: Some(code), message, hint };
    context.out.line(format!("{severity}: {wrong}"))
}
