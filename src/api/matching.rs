//! `ETag` and `If-Match` of what is versioned: the version in quotes.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};

use super::problem::Problem;

/// The version that the caller saw; absent: any.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen(pub Option<u64>);

impl Seen {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let version = version.and_then(|text| text.parse().ok());
        version.map(|version| Self(Some(version))).ok_or_else(|| {
            let hint = "the ETag of the answer that you saw, such as \"3\", or *";
            Problem::field("bad-header", "If-Match", "is no version", hint)
        })
    }

    /// Refuses when the present version is another one.
    pub fn check(self, present: u64) -> Result<(), Problem> {
        match self.0 {
            Some(seen) if seen != present => Err(Problem::new(
                "outdated",
                format!("it is at version {present} and not {seen}; look at it again"),
            )),
            _ => Ok(()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Seen {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(&parts.headers)
    }
}

/// The headers of an answer that shows a version.
pub fn tagged(version: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&format!("\"{version}\"")) {
        headers.insert(header::ETAG, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tagged_is_matched() {
        let sent = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, text.parse().unwrap());
            Seen::of(&headers)
        };
        let tag = tagged(7)[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(sent(&tag).unwrap(), Seen(Some(7)));
        assert_eq!((sent("*").unwrap(), Seen::of(&HeaderMap::new()).unwrap()), (Seen(None), Seen(None)));
        for wrong in ["7", "W/\"7\"", "\"x\"", "", "\"1\", \"2\""] {
            assert_eq!(sent(wrong).unwrap_err().slug(), "bad-header", "{wrong}");
        }
        assert_eq!(Seen(Some(7)).check(8).unwrap_err().status().as_u16(), 412);
        assert!(Seen(Some(8)).check(8).is_ok() && Seen(None).check(8).is_ok());
    }
}
