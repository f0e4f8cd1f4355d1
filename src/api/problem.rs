//! **Problems**: every answer that is not what was asked for, as RFC 9457 `application/problem+json`.
//!
//! `type` is `/docs/problems/<slug>`, a page that this service serves itself. Beside it stay `error` (short) and `code`,
//! which older consoles look for. A [`Rejection`] of a decider keeps its code as the slug. The table below is the whole
//! list: a slug without a page does not compile.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use beampipe_domain::Rejection;
use beampipe_log::{AppendError, ReadError};
use serde::Serialize;

use crate::handle::HandleError;

/// A kind of problem: what does not change from one occurrence to the next.
#[derive(Debug)]
pub struct Kind {
    /// The last part of `type`; stable.
    pub slug: &'static str,
    pub status: u16,
    pub title: &'static str,
    /// Its page, Markdown.
    pub page: &'static str,
}

macro_rules! kinds {
    ($($slug:literal $status:literal $title:literal),* $(,)?) => {
        /// Every kind of problem.
        pub const KINDS: &[Kind] = &[$(Kind {
            slug: $slug,
            status: $status,
            title: $title,
            page: include_str!(concat!("../../docs/problems/", $slug, ".md")),
        }),*];
    };
}

kinds! {
    // What was sent cannot be read.
    "malformed-json" 400 "the body is not JSON",
    "malformed-yaml" 400 "the body is not text",
    "bad-query" 400 "a query parameter cannot be used",
    "bad-path" 400 "a part of the path cannot be used",
    "bad-header" 400 "a header cannot be used",
    "bad-body" 400 "the body could not be received",
    "request-timeout" 408 "the body did not arrive in time",
    "body-too-large" 413 "the body is too large",
    "unsupported-media-type" 415 "the body's media type is not accepted here",
    "not-acceptable" 406 "no offered media type is acceptable",
    "invalid-body" 422 "the body says something that cannot be",
    "invalid-config" 422 "the project configuration is not valid",
    "invalid-profile" 422 "the deployment profile is not valid",
    "invalid-channel" 422 "the notification channel is not valid",
    "invalid-rule" 422 "the alert rule is not valid",
    "invalid-silence" 422 "the silence is not valid",
    // Who asks, and whether they may.
    "unauthenticated" 401 "who are you",
    "invalid-token" 401 "the token is unknown or has expired",
    "invalid-login" 401 "user name and password do not fit",
    "token-expired" 401 "the refresh token has expired",
    "session-closed" 401 "the session is closed",
    "forbidden" 403 "not with this role",
    "too-many-requests" 429 "too many attempts",
    // What does not exist.
    "unknown-route" 404 "there is nothing at this path",
    "method-not-allowed" 405 "the path does not take this method",
    "account-unknown" 404 "no such account",
    "key-unknown" 404 "no such API key",
    "execution-unknown" 404 "no such execution",
    "source-unknown" 404 "no such source",
    "source-not-registered" 404 "the source is not registered",
    "project-unknown" 404 "no such project",
    "config-unknown" 404 "no such project configuration",
    "profile-unknown" 404 "no such deployment profile",
    "credential-unknown" 404 "no such credential slot",
    "job-unknown" 404 "no such job",
    "worker-unknown" 404 "no such worker",
    "artifact-unknown" 404 "no such artifact",
    "projection-unknown" 404 "no such read model",
    "channel-unknown" 404 "no such notification channel",
    "rule-unknown" 404 "no such alert rule",
    "silence-unknown" 404 "no such silence",
    "alert-unknown" 404 "no such alert",
    "delivery-unknown" 404 "no such delivery",
    // What cannot be now.
    "log-changed" 410 "the log behind the event id has changed",
    "idempotency-conflict" 409 "the idempotency key was used for something else",
    "outdated" 412 "somebody else was quicker",
    "account-exists" 409 "the user name is taken",
    "account-disabled" 409 "the account is disabled",
    "scope-too-wide" 409 "a key cannot grant more than its account",
    "execution-exists" 409 "the execution exists already",
    "execution-ended" 409 "the execution has ended",
    "may-be-running" 409 "external work may exist",
    "not-now" 409 "it does not fit the present state",
    "other-flags" 409 "it is being executed with other flags",
    "cancel-requested" 409 "its cancellation was asked for",
    "not-to-be-submitted" 409 "it is not to be submitted",
    "nothing-to-abandon" 409 "there is no submission to abandon",
    "nothing-to-retry" 409 "there is nothing to retry",
    "not-acknowledged" 409 "the risk was not acknowledged",
    "abandonment-outdated" 409 "the submission is not as expected",
    "not-this-session" 409 "it is about another session",
    "job-claimed" 409 "another worker has the job",
    "job-ended" 409 "the job has ended",
    "lease-lost" 409 "the lease was lost",
    "not-a-dead-letter" 409 "only a dead letter can be requeued",
    "profile-exists" 409 "the profile exists already",
    "profile-name-fixed" 409 "a profile keeps its name",
    "profile-in-use" 409 "the profile is in use",
    "session-exists" 409 "the session exists already",
    "source-disabled" 409 "the source is disabled",
    "source-not-pending" 409 "the source has nothing new",
    "signature-outdated" 409 "the source was discovered anew",
    "worker-ended" 409 "the worker has stopped",
    "worker-exists" 409 "the worker has started before",
    "channel-exists" 409 "the channel was created before",
    "channel-kind-fixed" 409 "a channel keeps its kind",
    "channel-in-use" 409 "the channel is in use",
    "rule-exists" 409 "the rule was created before",
    "silence-exists" 409 "the silence was created before",
    "alert-not-firing" 409 "the alert does not fire",
    "delivery-waits" 409 "the delivery is still being tried",
    "rejected" 409 "the command was rejected",
    // What this process cannot do at the moment.
    "log-busy" 503 "the log's writer is busy",
    "log-unavailable" 503 "the log does not take or give events",
    "read-model-behind" 503 "the read model has not got there yet",
    "read-model-unavailable" 503 "the read model cannot be read",
    "artifacts-unavailable" 503 "the artifact store cannot be reached",
    "overloaded" 503 "too much at once",
    "internal" 500 "a fault of the service",
}

/// The kind of `slug`; what is not in the table is a plain rejection.
fn kind(slug: &str) -> &'static Kind {
    let find = |slug: &str| KINDS.iter().find(|kind| kind.slug == slug);
    find(slug).or_else(|| find("rejected")).expect("the table has it")
}

/// One thing that is wrong with what was sent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldError {
    /// Where: a path such as `items[2].source_identifier`, or a parameter's name.
    pub field: String,
    pub message: String,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl FieldError {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), hint: None }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// An answer that is not what was asked for.
#[derive(Debug)]
pub struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: &'static Kind,
    detail: String,
    errors: Vec<serde_json::Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    more: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    pub fn new(slug: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind: kind(slug),
            detail: detail.into(),
            errors: vec![],
            headers: vec![],
            more: serde_json::Map::new(),
        }))
    }

    /// A problem with several causes; the detail names the first and says how many there are.
    pub fn fields(slug: &str, errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [] => "it is not valid".to_owned(),
            [one] => format!("{}: {}", one.field, one.message),
            [first, rest @ ..] => format!("{}: {} (and {} more)", first.field, first.message, rest.len()),
        };
        Self::new(slug, detail).errors(errors)
    }

    pub fn errors(mut self, errors: impl IntoIterator<Item = impl Serialize>) -> Self {
        self.0.errors.extend(errors.into_iter().filter_map(|error| serde_json::to_value(error).ok()));
        self
    }

    /// One field that is wrong, and what would be right.
    pub fn field(slug: &str, field: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::fields(slug, vec![FieldError::new(field, message).hint(hint)])
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        self.header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// A member of its own.
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.0.more.insert(name.to_owned(), value);
        }
        self
    }

    pub fn slug(&self) -> &'static str {
        self.0.kind.slug
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// A fault of ours: logged here, once, and not shown.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "a request ended in a fault of the service");
        Self::new("internal", "the service failed at this; its log says more under the request's id")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Inner { kind, detail, errors, headers, more } = *self.0;
        let mut body = serde_json::json!({
            "type": format!("/docs/problems/{}", kind.slug),
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "error": kind.title,
            "code": kind.slug,
            "errors": errors,
        });
        if let Some(object) = body.as_object_mut() {
            object.extend(more);
        }
        let status = StatusCode::from_u16(kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(name, value);
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        Self::new(rejection.code, rejection.detail)
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        // That it is away the log says itself, once.
        match &error {
            ReadError::Unavailable(_) => tracing::debug!(%error, "the log could not be read"),
            _ => tracing::error!(%error, "the log could not be read"),
        }
        Self::new("log-unavailable", error.to_string()).retry_after(5)
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match &error {
            AppendError::Busy => Self::new("log-busy", error.to_string()).retry_after(1),
            AppendError::Unacceptable { reason, .. } => {
                Self::new("invalid-body", format!("what was sent is too much for one event: {reason}"))
            }
            AppendError::Conflict { .. } => Self::new("outdated", error.to_string()),
            AppendError::Unavailable(_) | AppendError::Unknown(_) => {
                match &error {
                    AppendError::Unavailable(_) => tracing::debug!(%error, "the log did not take an append"),
                    _ => tracing::error!(%error, "the log did not take an append"),
                }
                Self::new("log-unavailable", error.to_string()).retry_after(5)
            }
        }
    }
}

impl From<HandleError> for Problem {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::Rejected(rejection) => rejection.into(),
            HandleError::Outdated { .. } => Self::new("outdated", error.to_string()).retry_after(1),
            HandleError::Append(error) => error.into(),
            HandleError::Read(error) => error.into(),
            HandleError::Decode(error) => {
                tracing::error!(%error, "an event of the log cannot be read by this release");
                Self::new("log-unavailable", error.to_string()).retry_after(60)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_slug_is_named_once_and_has_a_page_that_says_what_to_do() {
        let slugs: BTreeSet<_> = KINDS.iter().map(|kind| kind.slug).collect();
        assert_eq!(slugs.len(), KINDS.len());
        for kind in KINDS {
            assert!(kind.page.starts_with(&format!("# {}", kind.slug)), "{}", kind.slug);
            assert!(kind.page.contains(&kind.status.to_string()), "{} names its status", kind.slug);
            assert!(kind.page.contains("What to do"), "{}", kind.slug);
        }
    }

    #[test]
    fn every_page_belongs_to_a_slug() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/problems");
        for file in std::fs::read_dir(pages).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let slug = name.trim_end_matches(".md");
            assert!(KINDS.iter().any(|kind| kind.slug == slug), "{name} is the page of no problem");
        }
    }

    #[test]
    fn every_rejection_of_a_decider_is_in_the_table() {
        let domain = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain");
        let new = regex::Regex::new(r#"Rejection::new\(\s*"([a-z-]+)""#).unwrap();
        let mut seen = 0;
        for file in std::fs::read_dir(domain).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            for found in new.captures_iter(&std::fs::read_to_string(&path).unwrap()) {
                seen += 1;
                assert!(
                    KINDS.iter().any(|kind| kind.slug == &found[1]),
                    "{} in {}",
                    &found[1],
                    path.display()
                );
            }
        }
        assert!(seen > 20);
    }
}
