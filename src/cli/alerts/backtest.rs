//! `alerts backtest`: what a rule would have said, with a bar while the log is read.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use clap::Args;
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{moment, rule};
use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::out::{Column, remark, text};

const MESSAGES: &[Column] =
    &[("AT", "at"), ("STATUS", "status"), ("TO", "to"), ("ALERTS", "many"), ("SUMMARY", "summary")];

#[derive(Debug, Args)]
pub struct Backtest {
    /// A rule that is there, by its name or UUID.
    #[arg(required_unless_present = "file")]
    rule: Option<String>,
    /// A rule that is not saved, or what is changed of the one that is named: JSON as for POST /alert-rules.
    #[arg(long)]
    file: Option<PathBuf>,
    /// From when on: a time (RFC 3339), or a span before now (7d).
    #[arg(long, default_value = "1d", value_parser = moment)]
    from: DateTime<Utc>,
    /// Until when; now unless told otherwise.
    #[arg(long, value_parser = moment)]
    to: Option<DateTime<Utc>>,
}

impl Backtest {
    pub async fn run(self, context: &Context, client: &Client) -> anyhow::Result<()> {
        let mut body = json!({"from": self.from, "to": self.to});
        if let Some(named) = &self.rule {
            body["rule_id"] = rule(client, named).await?["uuid"].clone();
        }
        if let Some(file) = &self.file {
            let read = tokio::fs::read_to_string(file).await.with_context(|| file.display().to_string())?;
            body["rule"] =
                serde_json::from_str(&read).with_context(|| format!("{} is no JSON", file.display()))?;
        }
        let report = followed(client, &body).await?;
        if context.out.json() {
            return Ok(context.out.value(&report)?);
        }
        let channels = client.get("/notification-channels", &[]).await?;
        let name = |id: &Value| {
            let found = channels.as_array().into_iter().flatten().find(|one| one["uuid"] == *id);
            found.map_or_else(|| id.clone(), |one| one["name"].clone())
        };
        let mut messages = report["messages"].clone();
        for message in messages.as_array_mut().into_iter().flatten() {
            message["to"] = name(&message["channel_id"]);
            message["many"] = json!(message["alerts"].as_array().map_or(0, Vec::len));
            message["summary"] = message["alerts"][0]["summary"].clone();
        }
        context.out.list(&messages, MESSAGES)?;
        let number = |field: &str| text(report.get(field));
        remark(format!(
            "fired {} times, over {} times; {} messages, {} held back; {} events and {} points in {} ms",
            number("fired"),
            number("resolved"),
            number("messages_total"),
            number("held_back_total"),
            number("events_read"),
            number("points"),
            number("took_ms")
        ));
        Ok(())
    }
}

/// Asks, and shows how far it is; answers the report.
async fn followed(client: &Client, body: &Value) -> anyhow::Result<Value> {
    let style = "{bar:30} {pos}/{len} events, at {msg}";
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(style)?);
    let answer = client.post_lines("/alert-rules/backtest", body).await?;
    let (mut bytes, mut rest) = (answer.bytes_stream(), Vec::<u8>::new());
    while let Some(chunk) = bytes.next().await {
        rest.extend_from_slice(&chunk.context("the answer broke off")?);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line).context("a line of the answer is no JSON")?;
            if let Some(problem) = line["problem"].as_str() {
                bail!("{problem}");
            }
            if !line["report"].is_null() {
                bar.finish_and_clear();
                return Ok(line["report"].clone());
            }
            bar.set_length(line["progress"]["head"].as_u64().unwrap_or_default());
            bar.set_position(line["progress"]["events_read"].as_u64().unwrap_or_default());
            bar.set_message(text(line["progress"].get("at")));
        }
    }
    bail!("the answer ended without a report")
}
