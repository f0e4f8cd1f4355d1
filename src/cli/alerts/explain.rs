//! `alerts explain`: why somebody was told, or was not.

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use super::{moment, rule};
use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::out::{remark, text};

#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    about: About,
    /// When: a time (RFC 3339), or a span before now (2h); now unless told otherwise.
    #[arg(long, value_parser = moment)]
    at: Option<DateTime<Utc>>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct About {
    /// Why was I (not) told of this execution?
    #[arg(long)]
    execution: Option<Uuid>,
    /// What does, or did, this rule see? By its name or UUID.
    #[arg(long)]
    rule: Option<String>,
}

impl Explain {
    pub async fn run(self, context: &Context, client: &Client) -> anyhow::Result<()> {
        let mut query = vec![];
        query.extend(self.about.execution.map(|id| ("execution", id.to_string())));
        if let Some(named) = &self.about.rule {
            // A rule that was removed is still explained by its UUID.
            let id = match named.parse::<Uuid>() {
                Ok(id) => id.to_string(),
                Err(_) => text(rule(client, named).await?.get("uuid")),
            };
            query.push(("rule", id));
        }
        query.extend(self.at.map(|at| ("at", at.to_rfc3339_opts(SecondsFormat::Micros, true))));
        let answer = client.get("/alerts/explain", &query).await?;
        if context.out.json() {
            return Ok(context.out.value(&answer)?);
        }
        if let Some(why) = answer["why"].as_str() {
            remark(why);
        }
        for one in answer["rules"].as_array().into_iter().flatten() {
            shown(context, one)?;
        }
        Ok(())
    }
}

/// A rule, then its alerts with their events and what became of the messages.
fn shown(context: &Context, one: &Value) -> std::io::Result<()> {
    let style = context.out.style();
    let verdict = text(one.get("verdict"));
    let coloured = match verdict.as_str() {
        "told" => style.green().apply_to(verdict),
        "held_back" | "waiting" | "pending" => style.yellow().apply_to(verdict),
        _ => style.dim().apply_to(verdict),
    };
    context.out.line(format!("{}  {coloured}  {}", text(one.get("name")), text(one.get("why"))))?;
    for instance in one["instances"].as_array().into_iter().flatten() {
        if !instance["condition"].is_null() {
            let fields = ["project_module", "dependency", "execution", "job_kind", "projection"];
            let of: Vec<String> = fields
                .iter()
                .filter_map(|field| instance["labels"][field].as_str().map(str::to_owned))
                .collect();
            context.out.line(format!(
                "  {} {}: {}",
                of.join(" "),
                text(instance.get("state")),
                text(instance.get(if instance["summary"].is_null() { "why" } else { "summary" }))
            ))?;
        }
        for waits in instance["waits"].as_array().into_iter().flatten() {
            context
                .out
                .line(format!("    decided {}, waits to be enqueued", text(waits.get("decided_at"))))?;
        }
    }
    for alert in one["alerts"].as_array().into_iter().flatten() {
        for event in alert["events"].as_array().into_iter().flatten() {
            let more = [&event["summary"], &event["held_back"]["by"], &event["reason"]];
            let more = more.into_iter().find_map(Value::as_str).unwrap_or_default();
            context.out.line(format!(
                "  {}  {}  {more}",
                text(event.get("at")),
                text(event.get("event_type"))
            ))?;
        }
        for delivery in alert["deliveries"].as_array().into_iter().flatten() {
            context.out.line(format!(
                "  → {} {}: {}{}",
                text(delivery.get("channel_name")),
                text(delivery.get("message")),
                text(delivery.get("status")),
                delivery["error"].as_str().map(|error| format!(", {error}")).unwrap_or_default()
            ))?;
            for attempt in delivery["attempts"].as_array().into_iter().flatten() {
                context.out.line(format!(
                    "      {}  attempt {}: {} after {} ms{}",
                    text(attempt.get("started_at")),
                    text(attempt.get("attempt")),
                    text(attempt.get("code")),
                    text(attempt.get("latency_ms")),
                    attempt["error"].as_str().map(|error| format!(", {error}")).unwrap_or_default()
                ))?;
            }
        }
    }
    Ok(())
}
