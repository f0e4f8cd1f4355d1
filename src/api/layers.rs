//! What every request goes through: an id, a count, a guard; and what answers when no route does.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use beampipe_domain::id;
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::events::page::POSITION;
use super::extract::Params;
use super::idempotency::Key;
use super::known;
use super::problem::Problem;
use super::route::{Access, label};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long a read waits for the position that it asked for.
const MIN_POSITION_PATIENCE: Duration = Duration::from_secs(1);

/// The correlation id of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestId(pub Uuid);

/// A foreign id that may be repeated in an answer.
fn foreign_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(REQUEST_ID).filter(|value| {
        (1..=128).contains(&value.len()) && value.as_bytes().iter().all(|b| (0x21..=0x7e).contains(b))
    })
}

/// Gives every request an id, and every answer the same.
pub async fn identify(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let (shown, correlation) = match foreign_id(request.headers()) {
        Some(foreign) => {
            let text = foreign.to_str().unwrap_or_default();
            let correlation = Uuid::try_parse(text).unwrap_or_else(|_| id::correlation(text));
            (foreign.clone(), correlation)
        }
        None => {
            let drawn = api.clock().id();
            (HeaderValue::from_str(&drawn.to_string()).unwrap_or(HeaderValue::from_static("-")), drawn)
        }
    };
    request.extensions_mut().insert(RequestId(correlation));
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, shown);
    response
}

/// Counts every answer by its matched route; what matched none is counted together.
pub async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = method_word(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), start.elapsed());
    match matched {
        // A method that a path does not take matches nothing either.
        Some(matched) if status != 405 => {
            api.metrics.answered(method, &label(matched.as_str()), status, took);
        }
        _ => api.metrics.unmatched(status, took),
    }
    response
}

fn method_word(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

/// What the guard of a route knows.
#[derive(Clone)]
pub struct Guard {
    pub api: Api,
    pub access: Access,
}

/// Lets in who may use the route, waits for the position that a read asks for, and answers a repeated request.
pub async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.pass(request, next).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

impl Guard {
    async fn pass(self, mut request: Request, next: Next) -> Result<Response, Problem> {
        let Self { api, access } = self;
        let key = Key::of(request.headers())?;
        let Some(needed) = access.role(api.settings.metrics_public) else {
            return Ok(next.run(request).await);
        };
        let (principal, shown) = api.authenticate(request.headers()).await?;
        if principal.role < needed {
            api.metrics.refused("role");
            let role = principal.role;
            return Err(Problem::new(
                "forbidden",
                format!("this needs role {needed}; the caller has {role}"),
            ));
        }
        let correlation_id =
            request.extensions().get::<RequestId>().map_or_else(|| api.clock().id(), |id| id.0);
        let actor = principal.actor();
        request.extensions_mut().insert(Caller { principal, shown, correlation_id, key: key.clone() });

        if *request.method() == Method::POST
            && let Some(key) = key
        {
            let answered = api.answers.pass(&key, &actor, api.settings.max_bulk_bytes, request, next).await;
            return answered.map(|response| with_position(&api, response));
        }
        if *request.method() != Method::GET {
            return Ok(with_position(&api, next.run(request).await));
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        wait_for_position(&api, &query).await?;
        let (position, now, age) = (api.models.position(), api.clock().now(), api.age());
        let mut response = next.run(request).await;
        if access != Access::Metrics && response.status().is_success() {
            response.headers_mut().entry(POSITION).or_insert(HeaderValue::from(position));
            known::say(response.headers_mut(), now, age);
        }
        Ok(response)
    }
}

/// Says where this process's read models are after a write: another replica that is asked for the same has it, too.
fn with_position(api: &Api, mut response: Response) -> Response {
    if response.status().is_success() {
        response.headers_mut().entry(POSITION).or_insert(HeaderValue::from(api.models.position()));
    }
    response
}

async fn wait_for_position(api: &Api, query: &str) -> Result<(), Problem> {
    if !query.contains("min_position=") {
        return Ok(());
    }
    let mut params = Params::of(query);
    let Some(position) = params.number("min_position", 0..=u64::MAX) else {
        return Err(Problem::field("bad-query", "min_position", "cannot be used", "a position of the log"));
    };
    if api.models.wait_for(position, MIN_POSITION_PATIENCE).await {
        return Ok(());
    }
    let now = api.models.position();
    Err(Problem::new(
        "read-model-behind",
        format!("this process's read models are at position {now}, not yet at {position}"),
    )
    .retry_after(1))
}

/// No route has the path.
pub async fn unknown_route(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::new("unknown-route", format!("there is nothing at {path:?}; docs/api.md lists the routes"))
}

/// The path has no such method; `Allow` is added by the router.
pub async fn method_not_allowed(request: Request) -> Problem {
    Problem::new("method-not-allowed", format!("this path does not take {}", request.method()))
}

/// A handler panicked: the request ends, the process does not.
pub fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Problem::internal(format!("a handler panicked: {said}")).into_response()
}
