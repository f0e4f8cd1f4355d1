//! The command line's side of the HTTP API: one request, one answer, and what its failures mean to the person who asked.
//!
//! Owns the address and the key. It repeats nothing: whether to ask again is for the caller to say. The key is never
//! printed.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LINK};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

/// What stays as it is in a path segment (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A stream sends a comment now and then; one that is silent for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The service answered no.
    #[error("{}", .0.title)]
    Problem(Box<Problem>),
    #[error("cannot reach the service at {base}: {cause}")]
    Unreachable { base: String, cause: String },
    /// Something answered that does not speak this API.
    #[error("{url} answered what this API does not say: {what}")]
    Foreign { url: String, what: String },
    #[error("{0:?} is no address: it has to be like http://127.0.0.1:8080")]
    Address(String),
    #[error("the HTTP client cannot be made")]
    Setup(#[source] reqwest::Error),
}

/// An RFC 9457 answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    pub status: u16,
    pub kind: String,
    pub title: String,
    pub detail: String,
    pub errors: Vec<Wrong>,
    /// Seconds, from `Retry-After`.
    pub retry_after: Option<u64>,
}

/// One thing that is wrong with what was sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wrong {
    pub place: String,
    pub code: Option<String>,
    pub message: String,
    pub hint: Option<String>,
}

impl Problem {
    /// Reads a problem; an answer without the standard's fields still says its status and its text.
    pub fn read(status: u16, retry_after: Option<u64>, body: &str) -> Self {
        let value: Value = serde_json::from_str(body).unwrap_or_default();
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("no");
        let title = text("title").or_else(|| text("error")).unwrap_or_else(|| format!("{status} {reason}"));
        let detail = text("detail").or_else(|| text("message")).unwrap_or_else(|| {
            if value.is_null() { body.chars().take(300).collect() } else { String::new() }
        });
        let lists = ["errors", "diagnostics", "warnings"].map(|name| value[name].as_array());
        let errors = lists.into_iter().flatten().flatten().map(Wrong::read).collect();
        let kind = text("type").unwrap_or_default();
        Self { status, kind, title, detail, errors, retry_after }
    }
}

impl Wrong {
    fn read(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        if let Value::String(message) = value {
            return Self { message: message.clone(), ..Self::default() };
        }
        Self {
            place: text("field").or_else(|| text("path")).unwrap_or_default(),
            code: text("code"),
            message: text("message").or_else(|| text("detail")).unwrap_or_default(),
            hint: text("hint"),
        }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.place.is_empty() { "(whole)" } else { &self.place };
        write!(f, "{place}: {}", self.message)?;
        if let Some(code) = &self.code {
            write!(f, " [{code}]")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n    hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The items of a list as they came.
type Raw = Vec<Box<RawValue>>;

/// The way to the service.
#[derive(Clone)]
pub struct Client {
    base: String,
    key: Option<SecretString>,
    http: reqwest::Client,
}

impl Client {
    /// A client of the service at `url` (with or without `/api/v2`).
    pub fn new(url: &str, key: Option<SecretString>) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/').trim_end_matches("/api/v2").to_owned();
        let parsed = url::Url::parse(&base).ok().filter(|u| matches!(u.scheme(), "http" | "https"));
        let parsed = parsed.filter(url::Url::has_host).ok_or_else(|| ClientError::Address(url.to_owned()))?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        if parsed.scheme() == "http" {
            // No certificate is looked at, so a machine without a store of them is fine.
            builder = builder.tls_certs_only([]);
        }
        if matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(ClientError::Setup)?;
        Ok(Self { base, key, http })
    }

    /// Where the service is.
    pub fn base(&self) -> &str {
        &self.base
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v2{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
        }
    }

    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, ClientError> {
        Ok(self.page(path, query).await?.0)
    }

    /// One page, and the query of the next one.
    async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<(T, Option<String>), ClientError> {
        let request = self.request(Method::GET, path).query(query).header(ACCEPT, "application/json");
        let answer = self.answer(request.timeout(ANSWER_TIMEOUT)).await?;
        let next = next_link(answer.headers());
        Ok((self.json(answer).await?, next))
    }

    /// The items of one page, as they came.
    pub async fn some(&self, path: &str, query: &[(&str, String)]) -> Result<Raw, ClientError> {
        Ok(self.page::<Raw>(path, query).await?.0)
    }

    /// Every item of a list that has pages, as they came.
    pub async fn all(&self, path: &str, query: &[(&str, String)]) -> Result<Raw, ClientError> {
        let (mut items, mut next) = self.page::<Raw>(path, query).await?;
        while let Some(query) = next {
            let pairs: Vec<(String, String)> =
                url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
            let pairs: Vec<(&str, String)> = pairs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
            let page = self.page::<Raw>(path, &pairs).await?;
            items.extend(page.0);
            next = page.1;
        }
        Ok(items)
    }

    /// Sends JSON.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, ClientError> {
        let request = self.request(method, path).json(body).timeout(ANSWER_TIMEOUT);
        let answer = self.answer(request).await?;
        self.json(answer).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send(Method::POST, path, body).await
    }

    /// Sends JSON; the answer's lines are taken as they come.
    pub async fn post_lines(&self, path: &str, body: &Value) -> Result<Response, ClientError> {
        let request = self.request(Method::POST, path).header(ACCEPT, "application/x-ndjson").json(body);
        self.answer(request).await
    }

    /// Sends text of a media type.
    pub async fn post_text(&self, path: &str, media: &str, body: String) -> Result<Value, ClientError> {
        let request = self.request(Method::POST, path).header(CONTENT_TYPE, media).body(body);
        let answer = self.answer(request.timeout(ANSWER_TIMEOUT)).await?;
        self.json(answer).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        let answer = self.answer(self.request(Method::DELETE, path).timeout(ANSWER_TIMEOUT)).await?;
        self.json(answer).await
    }

    /// An answer whose bytes are taken as they come.
    pub async fn bytes(&self, path: &str) -> Result<Response, ClientError> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// Opens an event stream after `last_id`.
    pub async fn stream(
        &self,
        path: &str,
        query: &[(String, String)],
        last_id: Option<&str>,
    ) -> Result<Response, ClientError> {
        let mut request = self.request(Method::GET, path).query(query).header(ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        self.answer(request).await
    }

    /// Whether anything answers there.
    pub async fn reachable(&self) -> bool {
        let request = self.request(Method::GET, "/health").timeout(CONNECT_TIMEOUT);
        self.answer(request).await.is_ok()
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if status.is_redirection() {
            let url = answer.url().to_string();
            return Err(ClientError::Foreign { url, what: format!("{status}") });
        }
        let header = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        let retry_after = header("retry-after").and_then(|text| text.parse().ok());
        let body = answer.text().await.unwrap_or_default();
        Err(ClientError::Problem(Box::new(Problem::read(status.as_u16(), retry_after, &body))))
    }

    async fn json<T: DeserializeOwned>(&self, answer: Response) -> Result<T, ClientError> {
        let url = answer.url().to_string();
        let body = answer.text().await.map_err(|error| self.unreachable(&error))?;
        // An answer without a body says nothing more than its status.
        let json = if body.is_empty() { "null" } else { &body };
        serde_json::from_str(json).map_err(|error| {
            let start: String = body.chars().take(80).collect();
            ClientError::Foreign { url, what: format!("{error} in {start:?}") }
        })
    }

    /// What a failed exchange means, with the cause at the end of the chain.
    pub fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let cause = if error.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() };
        ClientError::Unreachable { base: self.base.clone(), cause }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

/// The query of the page that `Link: <…?query>; rel="next"` names (RFC 8288).
fn next_link(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.split(';').skip(1).any(|p| matches!(p.trim(), "rel=next" | "rel=\"next\"")))?;
    let target = next.split_once('<')?.1.split_once('>')?.0;
    Some(target.split_once('?')?.1.to_owned())
}

/// A path of the API from its parts, each escaped.
pub fn path<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    parts
        .into_iter()
        .fold(String::new(), |path, part| path + "/" + &utf8_percent_encode(part, SEGMENT).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_every_field_with_its_hint() {
        let problem = Problem::read(
            422,
            None,
            r#"{"type":"/docs/problems/invalid-body","title":"the body says something that cannot be","detail":"2 fields",
                "errors":[{"field":"items[2].source_identifier","message":"is empty","hint":"give it a name"},
                          {"path":"graph.sha256","code":"missing","message":"has to be given"}]}"#,
        );
        assert_eq!(
            problem.errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "items[2].source_identifier: is empty\n    hint: give it a name",
                "graph.sha256: has to be given [missing]"
            ]
        );
    }

    #[test]
    fn an_answer_that_is_no_problem_still_says_something() {
        let problem = Problem::read(502, None, "<html>bad gateway</html>");
        assert_eq!(
            (problem.title.as_str(), problem.detail.as_str()),
            ("502 Bad Gateway", "<html>bad gateway</html>")
        );
    }

    #[test]
    fn a_part_of_a_path_cannot_leave_its_place() {
        assert_eq!(path(["sources", "a/../b c?#"]), "/sources/a%2F..%2Fb%20c%3F%23");
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        let mut headers = HeaderMap::new();
        let links = "</x?a=0>; rel=\"prev\", </api/v2/events?after=7&limit=2>; rel=\"next\"";
        headers.insert(LINK, links.parse().unwrap());
        assert_eq!(next_link(&headers).as_deref(), Some("after=7&limit=2"));
        headers.insert(LINK, "</x?a=0>; rel=\"prev\"".parse().unwrap());
        assert_eq!(next_link(&headers), None);
    }

    #[test]
    fn an_address_without_a_scheme_is_refused_and_the_base_path_is_optional() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert!(matches!(Client::new("localhost:8080", None), Err(ClientError::Address(_))));
        assert_eq!(Client::new("http://h:1/api/v2/", None).unwrap().base(), "http://h:1");
    }
}
