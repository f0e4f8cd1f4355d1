//! `events follow`: a live tail. History first if asked for, then what happens, without a gap, a repeat or an end.

use chrono::{DateTime, Duration, Utc};
use clap::{ArgGroup, Args, Subcommand};
use uuid::Uuid;

use super::client::{Client, path};
use super::event::{Event, duration, shorten};
use super::out::{Out, remark, time};
use super::tail::{Next, Tail};
use super::{Context, Outcome, names};
use crate::clock::Clock;

/// How much of what was before is shown of a project or of everything.
const CONTEXT: usize = 20;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Follow events as they happen (API)
    Follow(Follow),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct Follow {
    /// Of one execution, from its beginning.
    #[arg(long, group = "what", value_name = "UUID")]
    execution: Option<Uuid>,
    /// Of one source, from its beginning.
    #[arg(long, group = "what", value_parser = names::source, value_name = "PROJECT/ID|UUID")]
    source: Option<Uuid>,
    /// Of one project, from now.
    #[arg(long, group = "what", value_name = "MODULE")]
    project: Option<String>,
    /// Of everything, from now.
    #[arg(long, group = "what")]
    all: bool,
    /// Only this type or family (`execution.*`); may be repeated.
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// From a time (RFC 3339), or so long ago (`90s`, `15m`, `2h`, `3d`).
    #[arg(long, value_parser = since, value_name = "TIME")]
    since: Option<Since>,
    /// From behind a position, or the id of an event; 0 is the beginning.
    #[arg(long, value_name = "POSITION", conflicts_with = "since")]
    after: Option<String>,
    /// End when the execution does.
    #[arg(long, requires = "execution")]
    until_terminal: bool,
    /// One line of JSON an event.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Since {
    At(DateTime<Utc>),
    Ago(Duration),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(Since::At(at.to_utc()));
    }
    let no = || "a time such as 2026-03-01T12:00:00Z, or a duration such as 15m".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(no)?;
    let number: i64 = number.parse().map_err(|_| no())?;
    let unit = match unit {
        "s" => Duration::try_seconds(number),
        "m" => Duration::try_minutes(number),
        "h" => Duration::try_hours(number),
        "d" => Duration::try_days(number),
        _ => None,
    };
    unit.filter(|_| number >= 0).map(Since::Ago).ok_or_else(no)
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let Self::Follow(follow) = self;
        follow.run(context).await
    }
}

impl Follow {
    fn path(&self) -> String {
        match (&self.execution, &self.source, &self.project) {
            (Some(id), ..) => path(["executions", &id.to_string(), "events"]),
            (_, Some(id), _) => path(["sources", &id.to_string(), "events"]),
            (.., Some(module)) => path(["projects", module, "events"]),
            _ => "/events".to_owned(),
        }
    }

    async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        let json = self.json || context.out.json();
        let mut query: Vec<(String, String)> = vec![];
        if !self.types.is_empty() {
            query.push(("type".into(), self.types.join(",")));
        }
        let mut last_id = None;
        match (&self.after, self.since) {
            (Some(after), _) => query.push(("after".into(), after.clone())),
            (None, Some(since)) => {
                let at = match since {
                    Since::At(at) => at,
                    Since::Ago(ago) => Clock::system().now() - ago,
                };
                query.push(("since".into(), at.to_rfc3339()));
            }
            (None, None) if self.project.is_some() || self.all => {
                for event in latest(&client, &self.path(), &query).await? {
                    last_id = Some(event.resume_id());
                    show(&context.out, &event, json)?;
                }
            }
            (None, None) => {}
        }
        if self.until_terminal {
            query.push(("until_terminal".into(), "true".into()));
        }
        let mut tail = Tail::new(client, self.path(), query, last_id);
        let mut broken = false;
        loop {
            match tail.next().await? {
                Next::Event(event) => show(&context.out, &event, json)?,
                Next::CaughtUp if std::mem::take(&mut broken) => {
                    remark("-- connected again, nothing was missed")
                }
                Next::CaughtUp => {
                    if context.out.terminal {
                        remark("-- caught up, following");
                    }
                }
                Next::Broken(cause) => {
                    if !std::mem::replace(&mut broken, true) {
                        remark(format!("-- {cause}; trying again"));
                    }
                }
                Next::Ended => return Ok(Outcome::Done),
            }
        }
    }
}

/// The last few events, oldest first.
async fn latest(client: &Client, path: &str, query: &[(String, String)]) -> anyhow::Result<Vec<Event>> {
    let mut page: Vec<(&str, String)> = query.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    page.extend([("order", "desc".to_owned()), ("limit", CONTEXT.to_string())]);
    let mut events = vec![];
    for raw in client.some(path, &page).await?.iter().rev() {
        events.push(Event::parse(raw.get())?);
    }
    Ok(events)
}

/// Writes one event: a line of JSON, or columns.
pub fn show(out: &Out, event: &Event, json: bool) -> std::io::Result<()> {
    if json {
        return out.line(&event.raw);
    }
    out.line(columns(out, event, None))
}

/// Time, stream, type, actor and the point, in columns; and how long after the event before.
pub fn columns(out: &Out, event: &Event, gap: Option<Duration>) -> String {
    let color = out.style().fg(event.tone().color());
    let dim = out.style().dim();
    let gap = gap.map(|gap| format!("{:>12}  ", format!("+{}", duration(gap)))).unwrap_or_default();
    let line = format!(
        "{}  {}{:<24}  {}  {:<22}  {}",
        dim.apply_to(time(event.occurred_at)),
        dim.apply_to(gap),
        shorten(&event.short_stream(), 24),
        color.apply_to(format!("{:<32}", event.event_type)),
        shorten(event.actor.as_deref().unwrap_or("-"), 22),
        event.point()
    );
    match out.terminal {
        true => {
            let width = usize::from(console::Term::stdout().size().1);
            console::truncate_str(line.trim_end(), width, "…").into_owned()
        }
        false => line.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_a_while_ago() {
        assert_eq!(since("15m"), Ok(Since::Ago(Duration::minutes(15))));
        let at = DateTime::parse_from_rfc3339("2026-03-01T12:00:00Z").unwrap().to_utc();
        assert_eq!(since("2026-03-01T14:00:00+02:00"), Ok(Since::At(at)));
        for text in ["", "m", "15", "-3h", "3y", "é", "99999999999999999d"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
