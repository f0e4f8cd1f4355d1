//! `execution`: runs of a graph, from asking for one to its artifacts.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use super::client::{Client, path};
use super::out::{Column, remark};
use super::{Context, Outcome};

const COLUMNS: &[Column] = &[
    ("UUID", "uuid"),
    ("PROJECT", "project_module"),
    ("STATUS", "status"),
    ("PHASE", "control_phase"),
    ("SOURCES", "sources"),
    ("CREATED", "created_at"),
    ("ENDED", "completed_at"),
    ("WHY", "why"),
    ("ERROR", "last_error"),
];
const ARTIFACTS: &[Column] = &[
    ("KIND", "kind"),
    ("SHA256", "sha256"),
    ("BYTES", "size_bytes"),
    ("MEDIA TYPE", "media_type"),
    ("CREATED", "created_at"),
];

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The executions, newest first (API)
    List {
        #[arg(long)]
        project: Option<String>,
        #[arg(long)]
        status: Option<String>,
        #[arg(long, default_value_t = 1)]
        page: u64,
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=500))]
        items_per_page: u64,
    },
    /// One execution (API)
    Show { id: Uuid },
    /// Ask for an execution (API)
    Create(Create),
    /// Begin the work on an execution (API)
    Execute {
        id: Uuid,
        /// Do not build manifest and graph: they are there.
        #[arg(long)]
        no_stage: bool,
        /// Build manifest and graph and submit nothing.
        #[arg(long)]
        no_submit: bool,
    },
    /// Ask for the end of an execution (API)
    Cancel {
        id: Uuid,
        #[arg(long)]
        reason: Option<String>,
    },
    /// Open the next attempt of an execution that ended (API)
    Retry {
        id: Uuid,
        #[arg(long)]
        reason: String,
    },
    /// Give up an uncertain submission, whatever may run outside (API)
    Abandon(Abandon),
    /// The artifacts of an execution, or the bytes of one (API)
    Artifacts {
        id: Uuid,
        /// Write this artifact's bytes instead.
        #[arg(long, value_name = "SHA256")]
        get: Option<String>,
        /// Where to; standard output if left out.
        #[arg(long, value_name = "FILE", requires = "get")]
        to: Option<PathBuf>,
    },
    /// What the backends said of an execution: submission, observations, end (API)
    RunRecord { id: Uuid },
}

#[derive(Debug, Args)]
pub struct Create {
    project: String,
    /// A source, with SBIDs if not all of them are meant; may be repeated.
    #[arg(long = "source", required = true, value_name = "ID[=SBID,…]")]
    sources: Vec<String>,
    /// The archive; the project's if left out.
    #[arg(long, value_name = "NAME")]
    archive: Option<String>,
    /// A deployment profile; the project's default if left out.
    #[arg(long, value_name = "NAME|UUID")]
    profile: Option<String>,
    /// Begin the work at once.
    #[arg(long)]
    execute: bool,
    /// Say what it would be, and create nothing.
    #[arg(long, conflicts_with = "execute")]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Abandon {
    id: Uuid,
    #[arg(long)]
    reason: String,
    /// Say that you know: work may go on outside, and nobody will watch it.
    #[arg(long)]
    acknowledge_external_job_may_exist: bool,
}

fn of(id: Uuid, rest: &[&str]) -> String {
    let id = id.to_string();
    path(["executions", &id].into_iter().chain(rest.iter().copied()))
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match self {
            Self::List { project, status, page, items_per_page } => {
                let mut query =
                    vec![("page", page.to_string()), ("items_per_page", items_per_page.to_string())];
                query.extend(project.map(|module| ("project_module", module)));
                query.extend(status.map(|status| ("status", status)));
                let answer = client.get("/executions", &query).await?;
                context.out.list(&answer, COLUMNS)?;
                if let (false, Some(total)) = (context.out.json(), answer["total"].as_u64())
                    && total > items_per_page
                {
                    remark(format!("page {page} of {}, {total} in all", total.div_ceil(items_per_page)));
                }
            }
            Self::Show { id } => context.out.thing(&client.get(&of(id, &[]), &[]).await?)?,
            Self::Create(create) => return create.run(context, &client).await,
            Self::Execute { id, no_stage, no_submit } => {
                let flags = json!({"do_stage": !no_stage, "do_submit": !no_submit});
                context.out.thing(&client.post(&of(id, &["execute"]), &flags).await?)?;
            }
            Self::Cancel { id, reason } => {
                let body = json!({"status": "cancelled", "reason": reason});
                let answer = client.send(Method::PATCH, &of(id, &[]), &body).await?;
                brief(context, &answer)?;
            }
            Self::Retry { id, reason } => {
                context.out.thing(&client.post(&of(id, &["retry"]), &json!({"reason": reason})).await?)?;
            }
            Self::Abandon(abandon) => return abandon.run(context, &client).await,
            Self::Artifacts { id, get: None, .. } => {
                context.out.list(&client.get(&of(id, &["artifacts"]), &[]).await?, ARTIFACTS)?;
            }
            Self::Artifacts { id, get: Some(sha256), to } => {
                fetch(&client, &of(id, &["artifacts", &sha256]), to.as_deref()).await?;
            }
            Self::RunRecord { id } => {
                let execution = client.get(&of(id, &[]), &[]).await?;
                let record = &execution["beampipe_run_record"];
                anyhow::ensure!(
                    !record.is_null(),
                    "execution {id} has no run record: nothing was asked of a backend"
                );
                context.out.value(record)?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// The line of an execution that one looks for after changing it.
fn brief(context: &Context, execution: &Value) -> std::io::Result<()> {
    match context.out.json() {
        true => context.out.value(execution),
        false => context.out.list(&json!([execution]), COLUMNS),
    }
}

impl Create {
    async fn run(self, context: &Context, client: &Client) -> anyhow::Result<Outcome> {
        let mut body = json!({
            "project_module": self.project,
            "archive_name": self.archive,
            "sources": self.sources.iter().map(|text| requested(text)).collect::<Vec<_>>(),
        });
        match self.profile.as_deref().map(|text| (text, Uuid::try_parse(text))) {
            Some((_, Ok(id))) => body["deployment_profile_id"] = id.to_string().into(),
            Some((name, Err(_))) => body["deployment_profile_name"] = name.into(),
            None => {}
        }
        if self.dry_run {
            let answer = client.post("/executions/prepare", &body).await?;
            context.out.thing(&answer)?;
            return Ok(if answer["valid"] == false { Outcome::No } else { Outcome::Done });
        }
        let created = client.post("/executions", &body).await?;
        if !self.execute {
            brief(context, &created)?;
        } else {
            let id = created["uuid"].as_str().and_then(|text| text.parse().ok());
            let id = id.context("the service did not say what the execution is called")?;
            client.post(&of(id, &["execute"]), &json!({"do_stage": true, "do_submit": true})).await?;
            brief(context, &client.get(&of(id, &[]), &[]).await?)?;
            remark(format!("it begins; follow it with: beampipe timeline execution {id} --follow"));
        }
        Ok(Outcome::Done)
    }
}

impl Abandon {
    async fn run(self, context: &Context, client: &Client) -> anyhow::Result<Outcome> {
        // What is given up is the submission as it is seen now; if it moves on meanwhile, the service refuses.
        let seen = client.get(&of(self.id, &[]), &[]).await?;
        let body = json!({
            "reason": self.reason,
            "acknowledge_external_job_may_exist": self.acknowledge_external_job_may_exist,
            "expected_submission_state": seen["submission_state"],
            "expected_daliuge_session_id": seen["daliuge_session_id"],
            "expected_submission_deadline_at": seen["submission_deadline_at"],
        });
        brief(context, &client.post(&of(self.id, &["submission", "abandon"]), &body).await?)?;
        Ok(Outcome::Done)
    }
}

/// `ID` or `ID=SBID,SBID`.
fn requested(text: &str) -> Value {
    match text.split_once('=') {
        None => json!({"source_identifier": text}),
        Some((id, sbids)) => {
            let sbids: Vec<&str> = sbids.split(',').map(str::trim).filter(|sbid| !sbid.is_empty()).collect();
            json!({"source_identifier": id, "sbids": sbids})
        }
    }
}

async fn fetch(client: &Client, path: &str, to: Option<&Path>) -> anyhow::Result<()> {
    let mut answer = client.bytes(path).await?;
    let mut out: Box<dyn AsyncWrite + Unpin> = match to {
        None => Box::new(super::files::stdout()?),
        Some(file) => {
            let made = tokio::fs::File::create(file).await;
            Box::new(made.with_context(|| format!("cannot write {}", file.display()))?)
        }
    };
    while let Some(bytes) = answer.chunk().await.map_err(|error| client.unreachable(&error))? {
        out.write_all(&bytes).await?;
    }
    out.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sbids_are_asked_for_only_when_they_are_named() {
        assert_eq!(requested("J1"), json!({"source_identifier": "J1"}));
        assert_eq!(requested("J1=10, 11"), json!({"source_identifier": "J1", "sbids": ["10", "11"]}));
    }
}
