//! `alerts`: what fires, who was told and why, rules and what they would have said.

use anyhow::{Context as _, bail};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Client, path};
use super::out::{Column, remark, text};
use super::{Context, Outcome};

mod backtest;
mod explain;
mod install;

const ALERTS: &[Column] = &[
    ("STATE", "state"),
    ("SEVERITY", "severity"),
    ("RULE", "rule_name"),
    ("PROJECT", "project_module"),
    ("SINCE", "since"),
    ("SEEN TO BY", "acknowledged_by"),
    ("HELD BACK BY", "held_back.by"),
    ("SUMMARY", "summary"),
    ("ID", "id"),
];
const SILENCES: &[Column] = &[
    ("UUID", "uuid"),
    ("STATE", "state"),
    ("UNTIL", "ends_at"),
    ("AUTHOR", "author"),
    ("OF", "of"),
    ("COMMENT", "comment"),
];
const RULES: &[Column] = &[
    ("NAME", "name"),
    ("ENABLED", "enabled"),
    ("SEVERITY", "severity"),
    ("TRIGGER", "trigger_kind"),
    ("PROJECT", "project_module"),
    ("LAST FIRED", "last_fired_at"),
    ("WARNINGS", "warnings"),
    ("UUID", "uuid"),
];
const CHANNELS: &[Column] = &[
    ("NAME", "name"),
    ("KIND", "kind"),
    ("ENABLED", "enabled"),
    ("LAST TEST", "last_test_at"),
    ("RESULT", "last_test_status"),
    ("DISABLED BECAUSE", "disabled_reason"),
    ("UUID", "uuid"),
];
const DELIVERIES: &[Column] = &[
    ("CREATED", "created_at"),
    ("STATUS", "status"),
    ("ATTEMPTS", "attempts"),
    ("NEXT", "next_attempt_at"),
    ("SUMMARY", "payload.summary"),
    ("ERROR", "error"),
    ("UUID", "uuid"),
];

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// What fires and what is about to, newest first; --all: also what is over or was told once (API)
    List {
        #[arg(long)]
        all: bool,
        #[arg(long, value_parser = ["pending", "firing", "resolved", "told"], conflicts_with = "all")]
        state: Option<String>,
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// One alert, field by field (API)
    Show { id: String },
    /// Say that you see to it: it is not said again while it fires, and not escalated (API)
    Ack {
        id: String,
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Tell nobody for some time: of one alert, or of everything that has certain labels (API)
    Silence {
        /// The alert; everything with its labels is silenced.
        #[arg(required_unless_present = "matching")]
        id: Option<String>,
        /// A label instead: name=value, name!=value, name=~expression or name!~expression; may be given again.
        #[arg(long = "match", value_name = "MATCHER", conflicts_with = "id", id = "matching", value_parser = matcher)]
        matching: Vec<Value>,
        /// For how long: 30m, 2h, 3d.
        #[arg(long = "for", value_name = "SPAN", default_value = "2h", value_parser = span)]
        span: TimeDelta,
        #[arg(long, default_value = "silenced from the command line")]
        comment: String,
    },
    /// The silences that hold back now or will (API)
    Silences,
    /// End a silence before its time (API)
    Unsilence { id: Uuid },
    /// The rules, with what keeps them from telling anybody (API)
    Rules,
    /// Install the starter set of rules, or what of it is not there yet (API)
    Install(install::Install),
    /// The channels (API)
    Channels,
    /// Send a test message to a channel now, and say what its receiver answered (API)
    Test {
        /// The channel, by its name or UUID.
        channel: String,
    },
    /// Messages and what became of them, newest first (API)
    Deliveries {
        #[arg(long, value_parser = ["pending", "retrying", "sent", "failed"])]
        status: Option<String>,
        #[arg(long, default_value_t = 50)]
        limit: u64,
    },
    /// Try a message again that has ended (API)
    Redeliver { id: Uuid },
    /// What a rule would have said between two times, to whom, and when it would have been over (API)
    Backtest(backtest::Backtest),
    /// Why somebody was told of an execution, or by a rule, or was not (API)
    Explain(explain::Explain),
}

/// A span such as `90s`, `30m`, `2h` or `3d`.
fn span(text: &str) -> Result<TimeDelta, String> {
    let wrong = || format!("{text:?} is no span: 90s, 30m, 2h or 3d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: i64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let span = number.checked_mul(seconds).and_then(TimeDelta::try_seconds).ok_or_else(wrong)?;
    if span > TimeDelta::zero() { Ok(span) } else { Err(wrong()) }
}

/// A time as RFC 3339, or a span before now.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let before = span(text)
        .map_err(|_| format!("{text:?} is neither a time (RFC 3339) nor a span before now (2h)"))?;
    Ok(crate::clock::Clock::system().now() - before)
}

fn matcher(text: &str) -> Result<Value, String> {
    let place = text.find(['=', '!']).ok_or_else(|| format!("{text:?} is no matcher: rule=backlog"))?;
    let (name, rest) = text.split_at(place);
    let op = ["=~", "!~", "!=", "="].into_iter().find(|op| rest.starts_with(op));
    let op =
        op.filter(|_| !name.is_empty()).ok_or_else(|| format!("{text:?} is no matcher: rule=backlog"))?;
    Ok(json!({"name": name, "op": op, "value": &rest[op.len()..]}))
}

/// The channel of a name or UUID.
async fn channel(client: &Client, named: &str) -> anyhow::Result<Value> {
    let all = client.get("/notification-channels", &[]).await?;
    let mut found =
        all.as_array().into_iter().flatten().filter(|one| one["name"] == named || one["uuid"] == named);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(_), Some(_)) => bail!("several channels are called {named:?}; name one by its UUID"),
        (None, _) => bail!("there is no channel {named:?}; `beampipe alerts channels` lists them"),
    }
}

/// The rule of a name or UUID.
async fn rule(client: &Client, named: &str) -> anyhow::Result<Value> {
    let all = client.get("/alert-rules", &[]).await?;
    let mut found =
        all.as_array().into_iter().flatten().filter(|one| one["name"] == named || one["uuid"] == named);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(_), Some(_)) => bail!("several rules are called {named:?}; name one by its UUID"),
        (None, _) => bail!("there is no alert rule {named:?}; `beampipe alerts rules` lists them"),
    }
}

/// Silences with what they are of in words.
fn in_words(silences: &mut Value) {
    for silence in silences.as_array_mut().into_iter().flatten() {
        let of = silence["matchers"].as_array().into_iter().flatten().map(|matcher| {
            format!("{}{}{}", text(matcher.get("name")), text(matcher.get("op")), text(matcher.get("value")))
        });
        silence["of"] = of.collect::<Vec<_>>().join(" ").into();
    }
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        match self {
            Self::List { all, state, limit } => {
                let states = match (&state, all) {
                    (Some(state), _) => vec![Some(state.as_str())],
                    (None, true) => vec![None],
                    (None, false) => vec![Some("firing"), Some("pending")],
                };
                let mut found = vec![];
                for state in states {
                    let mut query = vec![("limit", limit.to_string())];
                    query.extend(state.map(|state| ("state", state.to_owned())));
                    let page = client.get("/alerts", &query).await?;
                    found.extend(page.as_array().cloned().unwrap_or_default());
                }
                let none = found.is_empty();
                context.out.list(&Value::Array(found), ALERTS)?;
                if none && !context.out.json() {
                    remark("nothing fires");
                }
            }
            Self::Show { id } => context.out.thing(&client.get(&path(["alerts", &id]), &[]).await?)?,
            Self::Ack { id, comment } => {
                let path = path(["alerts", &id, "acknowledge"]);
                context.out.thing(&client.post(&path, &json!({"comment": comment})).await?)?;
            }
            Self::Silence { id, matching, span, comment } => {
                let minutes = (span.num_seconds() + 59) / 60;
                let mut body = json!({"comment": comment, "duration_minutes": minutes});
                let path = match id {
                    Some(id) => path(["alerts", &id, "silence"]),
                    None => {
                        body["matchers"] = matching.into();
                        "/silences".to_owned()
                    }
                };
                let silence = client.post(&path, &body).await?;
                if context.out.json() {
                    context.out.value(&silence)?;
                } else {
                    let mut one = Value::Array(vec![silence]);
                    in_words(&mut one);
                    context.out.list(&one, SILENCES)?;
                }
            }
            Self::Silences => {
                let mut silences = client.get("/silences", &[]).await?;
                if !context.out.json() {
                    in_words(&mut silences);
                }
                context.out.list(&silences, SILENCES)?;
            }
            Self::Unsilence { id } => {
                client.delete(&path(["silences", &id.to_string()])).await?;
                remark("the silence has ended");
            }
            Self::Rules => context.out.list(&client.get("/alert-rules", &[]).await?, RULES)?,
            Self::Install(install) => install.run(context, &client).await?,
            Self::Channels => {
                context.out.list(&client.get("/notification-channels", &[]).await?, CHANNELS)?
            }
            Self::Test { channel: named } => {
                let channel = channel(&client, &named).await?;
                let id = channel["uuid"].as_str().context("the channel has no UUID")?;
                let answer = client.post(&path(["notification-channels", id, "test"]), &json!({})).await?;
                context.out.thing(&answer)?;
                if answer["status"] != "sent" {
                    return Ok(Outcome::No);
                }
            }
            Self::Deliveries { status, limit } => {
                let mut query = vec![("limit", limit.to_string())];
                query.extend(status.map(|status| ("status", status)));
                context.out.list(&client.get("/alert-deliveries", &query).await?, DELIVERIES)?;
            }
            Self::Redeliver { id } => {
                let path = path(["alert-deliveries", &id.to_string(), "redeliver"]);
                context.out.thing(&client.post(&path, &json!({})).await?)?;
            }
            Self::Backtest(backtest) => backtest.run(context, &client).await?,
            Self::Explain(explain) => explain.run(context, &client).await?,
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_number_and_a_unit() {
        assert_eq!(span("90s"), Ok(TimeDelta::seconds(90)));
        assert_eq!(span("3d"), Ok(TimeDelta::days(3)));
        for wrong in ["", "h", "2", "-2h", "0m", "2é", "99999999999999999d"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
        assert!(
            moment("2026-11-23T04:00:00Z").is_ok() && moment("2h").is_ok() && moment("yesterday").is_err()
        );
    }

    #[test]
    fn a_matcher_is_a_label_how_it_is_compared_and_with_what() {
        assert_eq!(matcher("rule=a=b"), Ok(json!({"name": "rule", "op": "=", "value": "a=b"})));
        assert_eq!(matcher("rule!~a.*"), Ok(json!({"name": "rule", "op": "!~", "value": "a.*"})));
        assert_eq!(matcher("rule=~a"), Ok(json!({"name": "rule", "op": "=~", "value": "a"})));
        assert!(matcher("rule").is_err() && matcher("=x").is_err() && matcher("a!b").is_err());
    }
}
