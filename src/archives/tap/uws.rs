//! UWS jobs (Universal Worker Service 1.1) as `TAP/async` has them: phases and the job document.
//!
//! Pure: reads what [`super::client`] fetched. A phase we do not know is [`Phase::Other`], which neither ends a job nor
//! is taken for progress: the client's deadline ends the wait.

use quick_xml::XmlVersion;
use quick_xml::events::Event;

use super::TapError;

/// Execution phase of a job (UWS 1.1, section 2.1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Queued,
    Executing,
    Completed,
    Error,
    Aborted,
    Held,
    Suspended,
    Archived,
    Unknown,
    Other(String),
}

impl Phase {
    pub fn parse(word: &str) -> Self {
        match word.trim().to_ascii_uppercase().as_str() {
            "PENDING" => Self::Pending,
            "QUEUED" => Self::Queued,
            "EXECUTING" => Self::Executing,
            "COMPLETED" => Self::Completed,
            "ERROR" => Self::Error,
            "ABORTED" => Self::Aborted,
            "HELD" => Self::Held,
            "SUSPENDED" => Self::Suspended,
            "ARCHIVED" => Self::Archived,
            "UNKNOWN" => Self::Unknown,
            _ => Self::Other(word.trim().chars().take(64).collect()),
        }
    }

    /// What to do about a job in this phase.
    pub fn next(&self) -> Next {
        match self {
            Self::Queued | Self::Executing | Self::Suspended | Self::Unknown | Self::Other(_) => Next::Wait,
            // PENDING after RUN: the service has not got to it. HELD: it waits to be told again.
            Self::Pending | Self::Held => Next::Run,
            Self::Completed => Next::Fetch,
            Self::Error => Next::AskWhy,
            // The results of an archived job are gone.
            Self::Aborted | Self::Archived => Next::GiveUp,
        }
    }

    pub fn word(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Queued => "QUEUED",
            Self::Executing => "EXECUTING",
            Self::Completed => "COMPLETED",
            Self::Error => "ERROR",
            Self::Aborted => "ABORTED",
            Self::Held => "HELD",
            Self::Suspended => "SUSPENDED",
            Self::Archived => "ARCHIVED",
            Self::Unknown => "UNKNOWN",
            Self::Other(word) => word,
        }
    }
}

/// The client's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Wait,
    /// Post `PHASE=RUN`, then wait.
    Run,
    Fetch,
    AskWhy,
    GiveUp,
}

/// What a job document says that the client needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    pub phase: Option<String>,
    /// Identifier and address (perhaps relative) of each result.
    pub results: Vec<(String, String)>,
    pub error: Option<String>,
}

impl Job {
    /// The address of the table: the result called `result` (TAP 1.1, section 5.2), else the first.
    pub fn result(&self) -> Option<&str> {
        let named = self.results.iter().find(|(id, _)| id == "result");
        named.or(self.results.first()).map(|(_, href)| href.as_str())
    }
}

/// Reads a `uws:job` document.
pub fn read_job(bytes: &[u8]) -> Result<Job, TapError> {
    let text = std::str::from_utf8(bytes).map_err(|error| TapError::malformed(error.to_string()))?;
    let mut reader = quick_xml::Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut job = Job::default();
    let mut open: Vec<String> = Vec::new();
    let mut buffer = String::new();
    let malformed = |error: quick_xml::Error| TapError::malformed(error.to_string());
    loop {
        match reader.read_event().map_err(malformed)? {
            Event::Start(element) => {
                let name = element.local_name().into_inner().to_owned();
                if open.is_empty() && name != "job" || open.len() == 64 {
                    return Err(TapError::malformed(format!("`{name}` is not a UWS job")));
                }
                if name == "result" {
                    let (mut id, mut href) = (String::new(), String::new());
                    for attribute in element.attributes() {
                        let attribute = attribute.map_err(|error| TapError::malformed(error.to_string()))?;
                        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(malformed)?;
                        match attribute.key.local_name().into_inner() {
                            "id" => id = value.into_owned(),
                            "href" => href = value.into_owned(),
                            _ => {}
                        }
                    }
                    if !href.is_empty() {
                        job.results.push((id, href));
                    }
                }
                buffer.clear();
                open.push(name);
            }
            Event::Text(text) => buffer.push_str(&text.xml10_content()),
            Event::CData(text) => buffer.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().map_err(malformed)? {
                Some(c) => buffer.push(c),
                None => {
                    let name = reference.into_inner();
                    let known = quick_xml::escape::resolve_xml_entity(&name)
                        .ok_or_else(|| TapError::malformed(format!("unknown entity `&{name};`")))?;
                    buffer.push_str(known);
                }
            },
            Event::End(_) => {
                let name = open.pop().unwrap_or_default();
                let parent = open.last().map_or("", String::as_str);
                match (parent, name.as_str()) {
                    ("job", "phase") => job.phase = Some(buffer.trim().to_owned()),
                    ("errorSummary", "message") => job.error = Some(buffer.trim().to_owned()),
                    _ => {}
                }
                buffer.clear();
            }
            Event::DocType(_) => return Err(TapError::malformed("a document type is not accepted")),
            Event::Eof => break,
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
    if open.is_empty() { Ok(job) } else { Err(TapError::malformed("the job document is cut")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_known_and_no_other_word_ends_a_job() {
        for (word, next) in [
            ("PENDING", Next::Run),
            ("QUEUED", Next::Wait),
            ("EXECUTING", Next::Wait),
            ("COMPLETED", Next::Fetch),
            ("ERROR", Next::AskWhy),
            ("ABORTED", Next::GiveUp),
            ("HELD", Next::Run),
            ("SUSPENDED", Next::Wait),
            ("ARCHIVED", Next::GiveUp),
            ("UNKNOWN", Next::Wait),
        ] {
            let phase = Phase::parse(&format!("{word}\n"));
            assert_eq!((phase.word(), phase.next()), (word, next));
        }
        assert_eq!(Phase::parse("MIGRATING"), Phase::Other("MIGRATING".into()));
        assert_eq!(Phase::parse("MIGRATING").next(), Next::Wait);
    }

    #[test]
    fn a_job_document_gives_results_and_the_error() {
        let done = read_job(
            br#"<?xml version="1.0"?><uws:job xmlns:uws="u" xmlns:xlink="x" version="1.1"><uws:jobId>a</uws:jobId>
            <uws:phase>COMPLETED</uws:phase><uws:results><uws:result id="log" xlink:href="l"/><uws:result id="result"
            xlink:href="http://h/tap/async/a/results/result"/></uws:results></uws:job>"#,
        )
        .unwrap();
        assert_eq!(done.result(), Some("http://h/tap/async/a/results/result"));
        assert_eq!(done.phase.as_deref(), Some("COMPLETED"));
        let failed = read_job(
            br#"<job><phase>ERROR</phase><errorSummary type="fatal"><message>a &lt; b</message></errorSummary></job>"#,
        )
        .unwrap();
        assert_eq!(failed.error.as_deref(), Some("a < b"));
        assert_eq!(failed.result(), None);
        assert!(read_job(b"<html/>").is_err());
        assert!(read_job(b"<job><phase>").is_err());
    }
}
