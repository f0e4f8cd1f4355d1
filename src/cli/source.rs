//! `source`: what a survey observes. A source is its UUID or `PROJECT/IDENTIFIER`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::path;
use super::out::Column;
use super::{Context, Outcome, names};

const COLUMNS: &[Column] = &[
    ("PROJECT", "project_module"),
    ("IDENTIFIER", "source_identifier"),
    ("ENABLED", "enabled"),
    ("CHECKED", "last_checked_at"),
    ("PENDING", "workflow_run_pending"),
    ("WHY", "why"),
    ("UUID", "uuid"),
];
/// How many sources one request registers.
const BULK: usize = 1000;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The sources, newest first (API)
    List {
        #[arg(long)]
        project: Option<String>,
        #[arg(long, default_value_t = 100)]
        limit: u64,
        #[arg(long, default_value_t = 0)]
        offset: u64,
    },
    /// Register sources (API)
    Add {
        project: String,
        #[arg(required = true, value_name = "ID")]
        identifiers: Vec<String>,
        /// Register them, but leave them alone.
        #[arg(long)]
        disabled: bool,
    },
    /// Register the sources of a file: one identifier a line, or CSV with a column source_identifier (API)
    Import {
        project: String,
        /// The file, or `-` for standard input.
        file: PathBuf,
    },
    /// One source (API)
    Show {
        #[arg(value_parser = names::source, value_name = "PROJECT/ID|UUID")]
        source: Uuid,
    },
    /// Ask for discovery: of the sources that are named, or of the whole project (API)
    Discover {
        project: String,
        #[arg(value_name = "ID")]
        identifiers: Vec<String>,
    },
    /// Remove a source; its events stay (API)
    Remove {
        #[arg(value_parser = names::source, value_name = "PROJECT/ID|UUID")]
        source: Uuid,
    },
    /// Whether a source is ready to be run, and what is in the way (API)
    Status {
        #[arg(value_parser = names::source, value_name = "PROJECT/ID|UUID")]
        source: Uuid,
    },
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match self {
            Self::List { project, limit, offset } => {
                let mut query = vec![("limit", limit.to_string()), ("offset", offset.to_string())];
                query.extend(project.map(|module| ("project_module", module)));
                context.out.list(&client.get("/sources", &query).await?, COLUMNS)?;
            }
            Self::Add { project, identifiers, disabled } => {
                let items = items(&project, identifiers.into_iter().map(|id| (id, !disabled)));
                let answer = client.post("/sources/bulk", &json!({"items": items})).await?;
                context.out.list(&answer, COLUMNS)?;
            }
            Self::Import { project, file } => {
                let items = items(&project, read(&file)?);
                let style = ProgressStyle::with_template("registering {wide_bar} {human_pos}/{human_len}");
                let bar = ProgressBar::new(items.len() as u64)
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                for chunk in items.chunks(BULK) {
                    // One request is all or nothing; asking again for what is known changes nothing.
                    client.post("/sources/bulk", &json!({"items": chunk})).await.with_context(|| {
                        format!("{} of {} sources were registered before", bar.position(), items.len())
                    })?;
                    bar.inc(chunk.len() as u64);
                }
                bar.finish_and_clear();
                match context.out.json() {
                    true => context.out.value(&json!({"total": items.len()}))?,
                    false => {
                        context.out.line(format!("{} sources are registered in {project}", items.len()))?
                    }
                }
            }
            Self::Show { source } => {
                context.out.thing(&client.get(&path(["sources", &source.to_string()]), &[]).await?)?;
            }
            Self::Discover { project, identifiers } => {
                let mut body = json!({"project_module": project});
                if !identifiers.is_empty() {
                    body["source_identifiers"] = identifiers.into();
                }
                let answer = client.post("/sources/discover", &body).await?;
                match context.out.json() {
                    true => context.out.value(&answer)?,
                    false => context.out.line(super::out::text(answer.get("message")))?,
                }
            }
            Self::Remove { source } => {
                client.delete(&path(["sources", &source.to_string()])).await?;
            }
            Self::Status { source } => {
                let path = path(["sources", &source.to_string(), "status"]);
                context.out.thing(&client.get(&path, &[]).await?)?;
            }
        }
        Ok(Outcome::Done)
    }
}

fn items(project: &str, sources: impl IntoIterator<Item = (String, bool)>) -> Vec<Value> {
    let item =
        |(id, enabled)| json!({"project_module": project, "source_identifier": id, "enabled": enabled});
    sources.into_iter().map(item).collect()
}

fn read(file: &Path) -> anyhow::Result<Vec<(String, bool)>> {
    let text = match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin())?,
        false => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
    };
    let sources = parse(&text).with_context(|| format!("cannot use {}", file.display()))?;
    anyhow::ensure!(!sources.is_empty(), "{} names no source", file.display());
    Ok(sources)
}

/// One identifier a line (`#` begins a remark), or CSV whose header has `source_identifier` and perhaps `enabled`.
fn parse(text: &str) -> anyhow::Result<Vec<(String, bool)>> {
    let header = text.lines().next().unwrap_or_default();
    if !header.split(',').any(|column| column.trim() == "source_identifier") {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        return Ok(lines.filter(|line| !line.is_empty()).map(|line| (line.to_owned(), true)).collect());
    }
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let place = |name: &str, columns: &csv::StringRecord| columns.iter().position(|column| column == name);
    let columns = reader.headers()?.clone();
    let (identifier, enabled) = (place("source_identifier", &columns), place("enabled", &columns));
    let mut sources = vec![];
    for record in reader.records() {
        let record = record?;
        let field = |place: Option<usize>| record.get(place?).filter(|text| !text.is_empty());
        let Some(id) = field(identifier) else { continue };
        let enabled = match field(enabled) {
            None | Some("true" | "1" | "yes") => true,
            Some("false" | "0" | "no") => false,
            Some(other) => anyhow::bail!("enabled of {id} is {other:?}: true or false"),
        };
        sources.push((id.to_owned(), enabled));
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<(String, bool)> {
        parse(text).unwrap()
    }

    #[test]
    fn a_file_is_lines_or_csv() {
        let expected = [("A".to_owned(), true), ("B 1".to_owned(), true)];
        assert_eq!(ids("# survey\nA\n\n B 1  # the second\n"), expected);
        assert_eq!(ids("n,source_identifier\n1,A\n2,\"B 1\"\n3,\n"), expected);
        assert_eq!(ids("source_identifier,enabled\nA,no\n"), [("A".to_owned(), false)]);
        assert!(parse("source_identifier,enabled\nA,perhaps\n").is_err());
    }
}
