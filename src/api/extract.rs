//! Reads requests: JSON bodies, query parameters, path ids, the caller. What cannot be read is a [`Problem`] that names
//! the field and says what would be right.
//!
//! Unknown body fields and query parameters are refused: ignoring a misspelt one would answer something else than was asked.

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::Api;
use super::problem::{FieldError, Problem};

/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Receives a body of at most `limit` bytes.
pub async fn receive(request: Request, limit: usize) -> Result<Bytes, Problem> {
    let declared =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let too_large = || {
        Problem::new("body-too-large", format!("the body is over the limit of {limit} bytes for this route"))
    };
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(request.into_body(), limit);
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Err(_) => Err(Problem::new("request-timeout", "the body did not arrive within 30 seconds")),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Err(if cause.contains("length limit") {
                too_large()
            } else {
                Problem::new("bad-body", format!("the body broke off: {error}"))
            })
        }
    }
}

/// The media type of a body, lower case, without parameters.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// A JSON body. No body at all is read as `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let media = media_type(request.headers());
        let bytes = receive(request, api.settings.max_body_bytes).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        match media.as_deref() {
            Some(media) if media == "application/json" || media.ends_with("+json") => {}
            other => {
                return Err(Problem::new(
                    "unsupported-media-type",
                    format!(
                        "Content-Type is {}; this route takes application/json",
                        other.unwrap_or("not given")
                    ),
                ));
            }
        }
        parse(&bytes).map(Self)
    }
}

/// Reads JSON; says where it does not fit.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // An array would be taken for an object's fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            Ok(_) => Problem::field("invalid-body", "body", "is not an object", "a JSON object"),
            Err(error) => Problem::new("malformed-json", error.to_string()),
        });
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let inner = error.into_inner();
        unfit(&field, &inner)
    })?;
    reader.end().map_err(|error| Problem::new("malformed-json", error.to_string()))?;
    Ok(value)
}

/// The problem that a JSON error is, at `field`.
pub fn unfit(field: &str, error: &serde_json::Error) -> Problem {
    if error.classify() != serde_json::error::Category::Data {
        return Problem::new("malformed-json", error.to_string());
    }
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
    // serde names a missing or unknown field in the message; the path ends at the object around it.
    let named = message.split('`').nth(1).filter(|_| message.contains(" field `"));
    let field = match (field, named) {
        ("." | "", Some(named)) => named.to_owned(),
        ("." | "", None) => "body".to_owned(),
        (path, Some(named)) if !path.ends_with(named) => format!("{path}.{named}"),
        (path, _) => path.to_owned(),
    };
    let hint = if message.starts_with("missing field") {
        "add it".to_owned()
    } else if let Some((_, expected)) = message.split_once("expected ") {
        format!("expected {expected}")
    } else {
        "see docs/api.md for this route's fields".to_owned()
    };
    // serde repeats the value that does not fit.
    let secret = ["password", "token", "secret"].iter().any(|word| field.contains(word));
    let message = if secret && message.contains("expected ") { "does not fit".to_owned() } else { message };
    Problem::fields("invalid-body", vec![FieldError::new(field, message).hint(hint)])
}

/// Query parameters, taken one by one; [`Params::finish`] refuses what was not taken. An empty value is an absent one.
pub struct Params {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
    errors: Vec<FieldError>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self::of(parts.uri.query().unwrap_or_default()))
    }
}

impl Params {
    pub fn of(query: &str) -> Self {
        let pairs = url::form_urlencoded::parse(query.as_bytes())
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        Self { pairs, known: vec!["min_position"], errors: vec![] }
    }

    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let mut values = self.pairs.iter().filter(|(n, _)| n == name);
        let value = values.next().map(|(_, value)| value.clone());
        if values.next().is_some() {
            self.errors.push(FieldError::new(name, "is given more than once").hint("give it once"));
        }
        value
    }

    fn read<T>(
        &mut self,
        name: &'static str,
        hint: impl Fn() -> String,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let value = read(&text);
        if value.is_none() {
            let shown: String = text.chars().take(60).collect();
            self.errors.push(FieldError::new(name, format!("{shown:?} cannot be used")).hint(hint()));
        }
        value
    }

    pub fn number(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let hint = || match (range.start(), range.end()) {
            (start, &u64::MAX) => format!("a whole number from {start}"),
            (start, end) => format!("a whole number from {start} to {end}"),
        };
        self.read(name, hint, |text| text.parse().ok().filter(|n| range.contains(n)))
    }

    pub fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.read(
            name,
            || "true or false".into(),
            |text| match text {
                "true" | "1" | "True" => Some(true),
                "false" | "0" | "False" => Some(false),
                _ => None,
            },
        )
    }

    pub fn time(&mut self, name: &'static str) -> Option<DateTime<Utc>> {
        self.read(
            name,
            || "a time as in RFC 3339, such as 2026-03-01T12:00:00Z".into(),
            |text| {
                // A `+` of an offset that was not percent-encoded arrives as a space.
                let text = text.replace(' ', "+");
                DateTime::parse_from_rfc3339(&text).ok().map(|time| time.to_utc())
            },
        )
    }

    pub fn uuid(&mut self, name: &'static str) -> Option<Uuid> {
        self.read(name, || "a UUID".into(), |text| Uuid::try_parse(text).ok())
    }

    pub fn word(&mut self, name: &'static str, words: &[&str]) -> Option<String> {
        self.read(
            name,
            || format!("one of {}", words.join(", ")),
            |text| words.contains(&text).then(|| text.to_owned()),
        )
    }

    /// `limit` and `offset` of a list.
    pub fn window(&mut self, default: u64, most: u64) -> (u64, u64) {
        let limit = self.number("limit", 1..=most).unwrap_or(default);
        let offset = self.number("offset", 0..=1_000_000_000).unwrap_or(0);
        (limit, offset)
    }

    /// Says that `name` cannot be used, and why.
    pub fn refuse(&mut self, name: &str, message: &str, hint: &str) {
        self.errors.push(FieldError::new(name, message).hint(hint));
    }

    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in &self.pairs {
            if !self.known.contains(&name.as_str()) {
                let name: String = name.chars().take(60).collect();
                let hint = format!("this route takes {}", self.known.join(", "));
                self.errors.push(FieldError::new(name, "is not a parameter of this route").hint(hint));
            }
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::fields("bad-query", self.errors)) }
    }
}

/// A UUID in the path.
pub struct Id(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Name(text) = Name::from_request_parts(parts, state).await?;
        uuid_in_path(&text).map(Self)
    }
}

/// Reads a UUID that was part of a path.
pub fn uuid_in_path(text: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(text).map_err(|_| {
        let shown: String = text.chars().take(60).collect();
        Problem::field("bad-path", "id", format!("{shown:?} is not a UUID"), "take ids from a list's answer")
    })
}

/// The first name in the path, as it is.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let names = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::new("bad-path", error.body_text()))?;
        let first = names.0.into_iter().next().map(|(_, value)| value);
        first.map(Self).ok_or_else(|| Problem::internal("the route has no name in its path"))
    }
}

/// The two names in the path.
pub struct Names(pub String, pub String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let names = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::new("bad-path", error.body_text()))?;
        Ok(Self(names.0.0, names.0.1))
    }
}

/// A field that tells *absent* from *null*: `Some(None)` is a null that was sent.
pub fn nullable<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    serde::Deserialize::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        #[expect(dead_code, reason = "only read")]
        count: u8,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[expect(dead_code, reason = "only read")]
        items: Vec<Item>,
    }

    fn refused(body: &str) -> Problem {
        parse::<Order>(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_body_that_does_not_fit_names_the_field() {
        assert!(refused(r#"{"items":[{"count":1},{"count":"x"}]}"#).detail().starts_with("items[1].count"));
        assert!(refused(r#"{"items":[{"count":300}]}"#).detail().starts_with("items[0].count"));
        assert!(refused(r#"{"items":[{"count":1,"more":1}]}"#).detail().starts_with("items[0].more"));
        assert!(refused("{}").detail().starts_with("items"));
        assert!(refused("[]").detail().starts_with("body"));
        assert_eq!(refused(r#"{"items":["#).slug(), "malformed-json");
        assert_eq!(refused(r#"{"items":[]} {}"#).slug(), "malformed-json");
    }

    #[test]
    fn every_bad_parameter_is_named_at_once() {
        let mut params = Params::of("limit=0&since=yesterday&colour=red&type=");
        params.window(50, 100);
        params.time("since");
        assert_eq!(params.text("type"), None, "an empty value is an absent one");
        let problem = params.finish().unwrap_err();
        assert!(problem.detail().starts_with("limit") && problem.detail().ends_with("(and 2 more)"));
    }
}
