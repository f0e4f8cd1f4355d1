//! From an HTTP answer to a table or an error: pure, judged by content type and `QUERY_STATUS`.
//!
//! The status code alone says little: DaCHS answers a bad query with 200, others the same document with 400. An answer of
//! a type that is no table (a login page, a proxy's notice) is never taken for an empty table.

use std::time::Duration;

use super::{Table, TapError, csv, votable};

/// An answer that was read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub host: String,
    pub status: u16,
    pub content_type: String,
    /// What `Retry-After` asks for, if it gives seconds.
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

/// Longest part of an answer that an error quotes.
const MAX_QUOTE: usize = 300;

impl Answer {
    fn media_type(&self) -> String {
        self.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    fn is_xml(&self) -> bool {
        let media_type = self.media_type();
        media_type.contains("votable") || media_type == "text/xml" || media_type == "application/xml"
    }

    fn is_csv(&self) -> bool {
        self.media_type() == "text/csv"
    }

    /// The table of an answer to a query, complete.
    pub fn into_table(self, max_rows: usize) -> Result<Table, TapError> {
        if !(200..300).contains(&self.status) {
            return Err(self.into_refusal());
        }
        if self.is_csv() {
            return csv::read(&self.body, max_rows);
        }
        if !self.is_xml() {
            let kind = if self.content_type.is_empty() { "no content type" } else { &self.content_type };
            return Err(TapError::malformed(format!(
                "{} sent {kind} where a VOTable was asked for",
                self.host
            )));
        }
        let document = votable::read(&self.body, max_rows)?;
        match document.status {
            votable::Status::Error(message) => Err(TapError::Query { message }),
            votable::Status::Overflow => {
                Err(TapError::Overflow { rows: document.table.map_or(0, |table| table.rows.len()) })
            }
            votable::Status::Ok | votable::Status::Absent => {
                document.table.ok_or_else(|| TapError::malformed("a VOTable without a table"))
            }
        }
    }

    /// The error behind an answer that is not 2xx.
    pub fn into_refusal(self) -> TapError {
        let told = if self.is_xml() {
            votable::read(&self.body, 0).ok().map(|document| document.status)
        } else {
            None
        };
        match told {
            Some(votable::Status::Error(message))
                if (400..500).contains(&self.status) && !self.asks_to_wait() =>
            {
                TapError::Query { message }
            }
            Some(votable::Status::Error(message)) => self.refused(message),
            _ => {
                let quote = self.quote();
                self.refused(quote)
            }
        }
    }

    fn asks_to_wait(&self) -> bool {
        matches!(self.status, 401 | 403 | 404 | 408 | 429)
    }

    fn refused(self, message: String) -> TapError {
        TapError::Refused { host: self.host, status: self.status, message, retry_after: self.retry_after }
    }

    /// The first words of a text body; pages for people are not quoted.
    fn quote(&self) -> String {
        if self.media_type() != "text/plain" {
            return String::new();
        }
        let text = String::from_utf8_lossy(&self.body);
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_QUOTE).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, content_type: &str, body: &str) -> Answer {
        Answer {
            host: "archive".into(),
            status,
            content_type: content_type.into(),
            retry_after: None,
            body: body.as_bytes().to_vec(),
        }
    }

    const ERROR: &str = r#"<VOTABLE version="1.4"><RESOURCE type="results">
        <INFO name="QUERY_STATUS" value="ERROR">Field query: no such &lt;table&gt;</INFO></RESOURCE></VOTABLE>"#;

    #[test]
    fn an_error_within_200_is_an_error_also_when_it_comes_as_400() {
        for status in [200, 400, 422] {
            match answer(status, "text/xml", ERROR).into_table(10) {
                Err(TapError::Query { message }) => assert_eq!(message, "Field query: no such <table>"),
                other => panic!("{status}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_failing_service_is_refused_and_may_be_asked_again() {
        let error = answer(500, "text/xml", ERROR).into_table(10).unwrap_err();
        assert!(error.may_be_retried());
        assert_eq!(error.failure_class(), "dependency_unavailable");
        let error = answer(500, "text/html", "<html>the database is down</html>").into_table(10).unwrap_err();
        assert_eq!(error.to_string(), "archive answered 500");
        let error = answer(429, "text/plain", "slow\n down").into_table(10).unwrap_err();
        assert_eq!(error.to_string(), "archive answered 429: slow down");
        assert!(error.may_be_retried());
        let error = answer(403, "text/xml", ERROR).into_table(10).unwrap_err();
        assert_eq!((error.failure_class(), error.may_be_retried()), ("authorization", false));
    }

    #[test]
    fn a_page_for_people_is_not_an_empty_table() {
        for kind in ["text/html", "", "application/json"] {
            let error = answer(200, kind, "<html>please log in</html>").into_table(10).unwrap_err();
            assert!(matches!(error, TapError::Malformed { .. }), "{error}");
        }
        let error = answer(200, "text/xml", "<VOTABLE/>").into_table(10).unwrap_err();
        assert!(matches!(error, TapError::Malformed { .. }));
    }

    #[test]
    fn a_row_more_than_allowed_is_an_overflow_also_in_csv() {
        assert_eq!(answer(200, "text/csv;header=present", "a\n1\n2\n").into_table(2).unwrap().rows.len(), 2);
        let error = answer(200, "text/csv", "a\n1\n2\n3\n").into_table(2).unwrap_err();
        assert!(matches!(error, TapError::Overflow { rows: 2 }));
    }
}
