//! The page behind the link of a message that silences. A GET changes nothing: mail scanners open links.

use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use beampipe_domain::id::requested;
use beampipe_domain::silence::{Command, Created, Silence};
use chrono::TimeDelta;
use serde_json::Value;

use super::Api;
use super::alerts::matchers;
use super::extract::{Name, Params};
use super::problem::Problem;
use super::route::{Access, Route};
use crate::alerts::silencing;
use crate::handle::Context;

/// For how long one may silence, in hours.
const HOURS: &[i64] = &[1, 4, 12, 24];

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/silence/{token}", Access::Open, ask),
        Route::post("/silence/{token}", Access::Open, silence),
    ]
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// A page that loads nothing and sends nothing anywhere but here.
fn page(title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}</title><style>body{{font:16px/1.5 sans-serif;max-width:40em;margin:2em auto;padding:0 1em}}\
         button{{font:inherit;padding:.5em 1em;margin:.25em}}</style><h1>{0}</h1>{body}</html>",
        escaped(title)
    );
    let headers: [(HeaderName, HeaderValue); 3] = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (
            CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
            ),
        ),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, html).into_response()
}

impl Api {
    /// The alert of a link, as it is shown.
    async fn linked(&self, token: &str) -> Result<Value, Problem> {
        let alert = silencing::alert(&self.sender.sealing, token, self.clock().now());
        let alert = alert.ok_or_else(|| {
            Problem::new("alert-unknown", "the link is not one of this service, or works no longer (7 days)")
        })?;
        self.shown_alert(&alert).await
    }
}

async fn ask(State(api): State<Api>, Name(token): Name, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let alert = api.linked(&token).await?;
    let said = |field: &str| escaped(alert[field].as_str().unwrap_or_default());
    let labels = matchers(&alert).into_iter().map(|one| format!("{}={}", one.name, one.value));
    let labels = escaped(&labels.collect::<Vec<_>>().join(", "));
    let then = if alert["state"] == "told" {
        "What happens meanwhile is not told afterwards either; <code>beampipe alerts list --all</code> has it."
    } else {
        "It goes on firing, and is said when the time is over if it still does."
    };
    let buttons: String = HOURS
        .iter()
        .map(|hours| format!("<button name=\"hours\" value=\"{hours}\">{hours} h</button>"))
        .collect();
    let body = format!(
        "<p>{}</p><p>State: {}. For some time nobody is told of this, nor of anything else with the labels \
         <code>{labels}</code>. {then}</p>\
         <form method=\"post\"><p>Silence it for {buttons}</p></form>",
        said("summary"),
        said("state"),
    );
    Ok(page(&format!("Silence {}", alert["rule_name"].as_str().unwrap_or_default()), &body))
}

async fn silence(State(api): State<Api>, Name(token): Name, body: String) -> Result<Response, Problem> {
    let alert = api.linked(&token).await?;
    let hours = url::form_urlencoded::parse(body.as_bytes()).find(|(name, _)| name == "hours");
    let hours = hours.and_then(|(_, value)| value.parse::<i64>().ok()).filter(|hours| HOURS.contains(hours));
    let Some(hours) = hours else {
        return Err(Problem::field("invalid-body", "hours", "cannot be used", "1, 4, 12 or 24"));
    };
    let now = api.clock().now();
    let set = Created {
        matchers: matchers(&alert),
        comment: "by the link in a message".into(),
        starts_at: now,
        ends_at: now + TimeDelta::hours(hours),
    };
    let context = Context::system(api.clock(), "silence-link/message");
    // Who presses twice means the same silence, as long as it lasts.
    let mut id = requested("/silence", &token, &hours.to_string()).to_string();
    let there = api.handle.load::<Silence>(&id).await?.state;
    let mut until = set.ends_at;
    if let Silence::Set(there) = &there
        && there.ends_at > now
    {
        until = there.ends_at;
    } else {
        if there != Silence::Absent {
            id = api.clock().id().to_string();
        }
        let done = api.handle.handle::<Silence>(&id, &context, Command::Create(set)).await?;
        api.settle(done.position).await;
    }
    let body = format!(
        "<p>Nobody is told of it until {} UTC. <code>beampipe alerts unsilence {id}</code> ends that earlier.</p>",
        until.format("%Y-%m-%d %H:%M")
    );
    Ok(page(&format!("{} is silenced", alert["rule_name"].as_str().unwrap_or_default()), &body))
}
