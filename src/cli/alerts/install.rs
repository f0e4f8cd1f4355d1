//! `alerts install`: the starter set of rules.

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::Context;
use crate::cli::client::{Client, ClientError};
use crate::cli::out::{Column, remark};

/// The rules, as they are sent to the API but for their channels.
const STARTER: &str = include_str!("starter.json");
const SHOWN: &[Column] =
    &[("NAME", "name"), ("TRIGGER", "trigger_kind"), ("SEVERITY", "severity"), ("WHAT", "what")];

#[derive(Debug, Args)]
pub struct Install {
    /// The channel, by its name or UUID, that is told; may be given again.
    #[arg(long = "channel", required = true, value_name = "CHANNEL")]
    channels: Vec<String>,
    /// The channel of the heartbeat: a receiver that alarms when it falls silent. Without it there is no heartbeat rule.
    #[arg(long, value_name = "CHANNEL")]
    heartbeat_channel: Option<String>,
    /// Where people reach the API: what links to runbooks begin with. --url unless told otherwise.
    #[arg(long)]
    public_url: Option<String>,
    /// Say what would be installed, and install nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The rules of the starter set. `dependencies` has those that are watched: there is a rule for each.
fn starter(dependencies: &[String], base: &str) -> Result<Vec<Map<String, Value>>, serde_json::Error> {
    let rules: Vec<Map<String, Value>> = serde_json::from_str(STARTER)?;
    let mut all = vec![];
    for mut rule in rules {
        let name = rule["name"].as_str().unwrap_or_default().to_owned();
        let base = base.trim_end_matches('/');
        rule.insert("annotations".into(), json!({"runbook_url": format!("{base}/docs/runbooks/{name}")}));
        if name != "dependency-down" {
            all.push(rule);
            continue;
        }
        for dependency in dependencies {
            let mut one = rule.clone();
            one.insert("name".into(), format!("{name}-{dependency}").into());
            one.insert("trigger_config".into(), json!({"dependency": dependency}));
            all.push(one);
        }
    }
    Ok(all)
}

async fn ids(client: &Client, named: &[String]) -> anyhow::Result<Vec<Value>> {
    let mut ids = vec![];
    for name in named {
        ids.push(super::channel(client, name).await?["uuid"].clone());
    }
    Ok(ids)
}

impl Install {
    pub async fn run(self, context: &Context, client: &Client) -> anyhow::Result<()> {
        let channels = ids(client, &self.channels).await?;
        let heartbeat = ids(client, self.heartbeat_channel.as_slice()).await?;
        let present = client.get("/alert-rules", &[]).await?;
        let known = |name: &Value| present.as_array().into_iter().flatten().any(|rule| rule["name"] == *name);
        let base = self.public_url.unwrap_or_else(|| client.base().trim_end_matches("/api/v2").to_owned());
        let mut shown = vec![];
        for mut rule in starter(&watched(client).await?, &base).context("the starter set cannot be read")? {
            let is_heartbeat = rule["trigger_kind"] == "heartbeat";
            let to = if is_heartbeat { &heartbeat } else { &channels };
            rule.insert("channel_ids".into(), to.clone().into());
            let what = match () {
                () if known(&rule["name"]) => "is there",
                () if is_heartbeat && heartbeat.is_empty() => "left out: no --heartbeat-channel",
                () if self.dry_run => "would be installed",
                () => {
                    client.post("/alert-rules", &Value::Object(rule.clone())).await?;
                    "installed"
                }
            };
            rule.insert("what".into(), what.into());
            shown.push(Value::Object(rule));
        }
        context.out.list(&Value::Array(shown), SHOWN)?;
        if !context.out.json() {
            remark("`beampipe alerts rules` lists them with what keeps them from telling anybody");
        }
        Ok(())
    }
}

/// The dependencies that are looked at.
async fn watched(client: &Client) -> anyhow::Result<Vec<String>> {
    let ready = match client.get("/ready", &[]).await {
        Ok(ready) => ready,
        // A service that cannot do its job answers with what is wrong, and not with what it watches.
        Err(ClientError::Problem(_)) => {
            remark("the service is not ready: what it depends on is not known, and gets no rule");
            Value::Null
        }
        Err(error) => return Err(error.into()),
    };
    let named = ready["dependencies"].as_array().into_iter().flatten();
    Ok(named.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_of_the_starter_set_has_a_runbook_and_there_is_one_for_each_dependency() {
        let rules = starter(&["tap_casda".into(), "dim".into()], "https://b/").unwrap();
        let names: Vec<_> = rules.iter().map(|rule| rule["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"dependency-down-tap_casda") && names.contains(&"dependency-down-dim"));
        assert!(names.contains(&"heartbeat"));
        for rule in rules {
            let url = rule["annotations"]["runbook_url"].as_str().unwrap();
            let page = url.strip_prefix("https://b/docs/runbooks/").unwrap();
            assert!(crate::api::runbook(page).is_some(), "{page} is not served");
        }
    }
}
