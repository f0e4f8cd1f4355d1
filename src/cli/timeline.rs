//! `timeline`: what happened to one execution, source or project, as a table and as a line in time; live if asked for.

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::client::path;
use super::event::Event;
use super::events::{columns, show};
use super::out::remark;
use super::tail::{Next, Tail};
use super::{Context, Outcome, names};

mod draw;
mod live;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Of an execution (API)
    Execution {
        id: Uuid,
        #[command(flatten)]
        how: How,
    },
    /// Of a source (API)
    Source {
        #[arg(value_parser = names::source, value_name = "PROJECT/ID|UUID")]
        id: Uuid,
        #[command(flatten)]
        how: How,
    },
    /// Of all sources of a project: what each is doing, and how far it is (API)
    Project(live::Project),
}

#[derive(Debug, Args)]
pub struct How {
    /// Go on as it happens; an execution's ends with it.
    #[arg(long)]
    follow: bool,
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Self::Execution { id, how } => {
                one(context, &path(["executions", &id.to_string(), "events"]), "execution", &how).await
            }
            Self::Source { id, how } => {
                one(context, &path(["sources", &id.to_string(), "events"]), "source", &how).await
            }
            Self::Project(project) => project.run(context).await,
        }
    }
}

async fn one(context: &Context, path: &str, kind: &str, how: &How) -> anyhow::Result<Outcome> {
    let client = context.client()?;
    let mut events: Vec<Event> = vec![];
    if how.follow {
        let until = (kind == "execution").then(|| ("until_terminal".to_owned(), "true".to_owned()));
        let mut tail = Tail::new(client, path.to_owned(), until.into_iter().collect(), None);
        // A source has no end: whoever looks says when it was enough (Ctrl-C), and then the line is drawn.
        loop {
            let next = tokio::select! {
                next = tail.next() => next?,
                _ = tokio::signal::ctrl_c() => break,
            };
            match next {
                Next::Event(event) => {
                    if context.out.json() {
                        show(&context.out, &event, true)?;
                    } else {
                        let gap = events.last().map(|before| event.occurred_at - before.occurred_at);
                        context.out.line(columns(
                            &context.out,
                            &event,
                            gap.or(Some(chrono::Duration::zero())),
                        ))?;
                    }
                    events.push(*event);
                }
                Next::CaughtUp if std::io::stderr().is_terminal() => remark("-- caught up, following"),
                Next::CaughtUp => {}
                Next::Broken(cause) => remark(format!("-- {cause}; trying again")),
                Next::Ended => break,
            }
        }
        if context.out.json() {
            return Ok(Outcome::Done);
        }
    } else {
        for raw in client.all(path, &[("order", "asc".to_owned()), ("limit", "1000".to_owned())]).await? {
            events.push(Event::parse(raw.get())?);
        }
        if context.out.json() {
            let raw: Vec<&str> = events.iter().map(|event| event.raw.as_str()).collect();
            context.out.line(format!("[{}]", raw.join(",\n")))?;
            return Ok(Outcome::Done);
        }
        let mut before = None;
        for event in &events {
            let gap = event.occurred_at - before.unwrap_or(event.occurred_at);
            context.out.line(columns(&context.out, event, Some(gap)))?;
            before = Some(event.occurred_at);
        }
    }
    context.out.line("")?;
    for line in draw::draw(&events) {
        let style = match line.tone {
            Some(tone) => context.out.style().fg(tone.color()),
            None => context.out.style().dim(),
        };
        context.out.line(style.apply_to(line.text).to_string())?;
    }
    context.out.line(format!("\n{}", draw::summary(&events)))?;
    Ok(Outcome::Done)
}
