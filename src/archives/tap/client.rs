//! A client of one TAP service: synchronous queries, UWS jobs, and a probe of its health.
//!
//! Owns time limits, the size limit, pacing and retries. Everything it sends is a read, or a job it removes again, so
//! requests that failed on the way are sent again; a job is created once, as creating it twice would leave one behind.
//! Invariant: no call outlives its deadline, whatever the service does. VOTable is asked for because CSV does not say
//! when rows are missing.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::StreamExt as _;
use governor::{DefaultDirectRateLimiter, Quota};
use reqwest::{Method, RequestBuilder, Response, Url};
use tokio::time::Instant;

use super::answer::Answer;
use super::uws::{self, Next, Phase};
use super::{Table, TapError};

/// What a client allows a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// For one request, from connecting to the last byte.
    pub timeout: Duration,
    /// Of one answer.
    pub max_bytes: usize,
    /// Most rows of an answer; one more is [`TapError::Overflow`].
    pub maxrec: usize,
    /// How often a request is sent again after it failed on the way.
    pub retries: usize,
    /// Least time between two requests to the service, over all users of the client.
    pub pacing: Duration,
    /// For an asynchronous query, from creating the job to the last byte of its result.
    pub job_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            max_bytes: 32 * 1024 * 1024,
            maxrec: 20_000,
            retries: 2,
            pacing: Duration::from_millis(20),
            job_deadline: Duration::from_secs(600),
        }
    }
}

/// How long the parts of a [`TapClient::probe`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    pub availability: Duration,
    pub capabilities: Duration,
}

impl Latency {
    pub fn total(&self) -> Duration {
        self.availability + self.capabilities
    }
}

/// A client of one service. Clones share the pacing.
#[derive(Debug, Clone)]
pub struct TapClient {
    http: reqwest::Client,
    base: Url,
    limits: Limits,
    pace: Option<Arc<DefaultDirectRateLimiter>>,
}

impl TapClient {
    /// A client of the service at `base`, such as `https://archive/tap`: the address that has `sync` below it.
    pub fn new(http: reqwest::Client, base: Url, limits: Limits) -> Self {
        let pace = Quota::with_period(limits.pacing)
            .map(|quota| Arc::new(DefaultDirectRateLimiter::direct(quota.allow_burst(NonZeroU32::MIN))));
        Self { http, base, limits, pace }
    }

    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Runs a query at `sync` and gives its whole table.
    pub async fn query_sync(&self, adql: &str) -> Result<Table, TapError> {
        let url = self.endpoint("sync");
        let form = self.form(adql);
        let answer = self.read(|| self.http.post(url.clone()).form(&form)).await?;
        answer.into_table(self.limits.maxrec)
    }

    /// Runs a query as a UWS job at `async`, gives its whole table, and removes the job whatever happened.
    pub async fn query_async(&self, adql: &str) -> Result<Table, TapError> {
        let deadline = self.limits.job_deadline;
        let ended = tokio::time::timeout(deadline, async {
            let job = self.create_job(adql).await?;
            let answer = self.follow_job(job.url()).await;
            job.remove().await;
            answer?.into_table(self.limits.maxrec)
        });
        ended.await.unwrap_or_else(|_| Err(self.timed_out(deadline)))
    }

    /// Asks the service whether it is available (VOSI 1.1) and whether it is a TAP service at all.
    ///
    /// Nothing is retried: a probe says how things are now.
    pub async fn probe(&self) -> Result<Latency, TapError> {
        let started = Instant::now();
        let answer = self.once(self.http.get(self.endpoint("availability"))).await?;
        match answer.status {
            200..300 => {
                let told = Availability::read(&answer.body)?;
                if !told.available {
                    return Err(TapError::NotAvailable { host: answer.host, message: told.note });
                }
            }
            404 => {} // optional for a TAP service; the capabilities are not
            _ => return Err(answer.into_refusal()),
        }
        let availability = started.elapsed();
        let started = Instant::now();
        let answer = self.once(self.http.get(self.endpoint("capabilities"))).await?;
        if answer.status != 200 {
            return Err(answer.into_refusal());
        }
        if !contains(&answer.body, b"ivo://ivoa.net/std/TAP") {
            return Err(TapError::malformed(format!(
                "{} does not list TAP among its capabilities",
                answer.host
            )));
        }
        Ok(Latency { availability, capabilities: started.elapsed() })
    }

    fn endpoint(&self, name: &str) -> Url {
        let mut url = self.base.clone();
        // An http address always has a path to add to; for any other scheme the request fails and says so.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(name);
        }
        url
    }

    /// `FORMAT` is TAP 1.0's name of `RESPONSEFORMAT`; services know one or both. One row more than allowed is asked for:
    /// some services call a table cut as soon as it has as many rows as asked, and CSV never says so.
    fn form(&self, adql: &str) -> [(&'static str, String); 6] {
        [
            ("LANG", "ADQL".to_owned()),
            ("REQUEST", "doQuery".to_owned()),
            ("FORMAT", "votable".to_owned()),
            ("RESPONSEFORMAT", "votable".to_owned()),
            ("MAXREC", (self.limits.maxrec + 1).to_string()),
            ("QUERY", adql.to_owned()),
        ]
    }

    async fn create_job(&self, adql: &str) -> Result<JobGuard, TapError> {
        let url = self.endpoint("async");
        let request = self.http.post(url.clone()).form(&self.form(adql));
        let (answer, job) = self.send(request, &url).await?;
        if answer.status >= 400 {
            return Err(answer.into_refusal());
        }
        // A service that refuses the query at once answers with a document instead of a job.
        let Some(job) = job else {
            return Err(match answer.into_table(0) {
                Err(error @ TapError::Query { .. }) => error,
                _ => TapError::malformed("no job was made, and no reason given"),
            });
        };
        if job.host_str() != self.base.host_str() {
            return Err(TapError::malformed("the job is said to be at another host"));
        }
        Ok(JobGuard { client: self.clone(), url: Some(job) })
    }

    /// From RUN to the answer that has the result.
    async fn follow_job(&self, job: &Url) -> Result<Answer, TapError> {
        let phase_url = below(job, "phase");
        let run = || self.http.post(phase_url.clone()).form(&[("PHASE", "RUN")]);
        let mut runs = 1;
        self.accept(self.read(run).await?)?;
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_factor(1.5)
            .without_max_times()
            .build();
        loop {
            let answer = self.accept(self.read(|| self.http.get(phase_url.clone())).await?)?;
            let phase = Phase::parse(&String::from_utf8_lossy(&answer.body));
            match phase.next() {
                Next::Wait => {}
                Next::Run => {
                    // Told a few times, not at every look: some services take their time to leave PENDING.
                    if runs < 3 {
                        runs += 1;
                        self.accept(self.read(run).await?)?;
                    }
                }
                Next::Fetch => break,
                Next::AskWhy => return Err(TapError::Query { message: self.reason(job).await? }),
                Next::GiveUp => {
                    return Err(TapError::JobEnded {
                        phase: phase.word().to_owned(),
                        message: String::new(),
                    });
                }
            }
            tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(5))).await;
        }
        let document = uws::read_job(&self.accept(self.read(|| self.http.get(job.clone())).await?)?.body)?;
        let result = match document.result() {
            Some(href) => {
                below(job, "").join(href).map_err(|error| TapError::malformed(error.to_string()))?
            }
            None => below(&below(job, "results"), "result"),
        };
        if result.host_str() != self.base.host_str() {
            return Err(TapError::malformed("the result is said to be at another host"));
        }
        self.read(|| self.http.get(result.clone())).await
    }

    /// Why a job failed: its error summary, else the document behind `error`.
    async fn reason(&self, job: &Url) -> Result<String, TapError> {
        let document = self.accept(self.read(|| self.http.get(job.clone())).await?)?;
        if let Some(message) = uws::read_job(&document.body)?.error.filter(|message| !message.is_empty()) {
            return Ok(message);
        }
        let error_url = below(job, "error");
        let answer = self.read(|| self.http.get(error_url.clone())).await?;
        Ok(match answer.into_table(0) {
            Err(TapError::Query { message }) => message,
            _ => "no reason given".to_owned(),
        })
    }

    fn accept(&self, answer: Answer) -> Result<Answer, TapError> {
        if answer.status < 400 { Ok(answer) } else { Err(answer.into_refusal()) }
    }

    /// Sends a read until it is answered, at most [`Limits::retries`] times more than once.
    async fn read(&self, request: impl Fn() -> RequestBuilder) -> Result<Answer, TapError> {
        let mut waits = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(250))
            .with_max_delay(Duration::from_secs(10))
            .with_max_times(self.limits.retries)
            .build();
        loop {
            let (error, answer) = match self.once(request()).await {
                Ok(answer) if matches!(answer.status, 408 | 429 | 500..) => (None, Some(answer)),
                Ok(answer) => return Ok(answer),
                Err(error) if error.may_be_retried() => (Some(error), None),
                Err(error) => return Err(error),
            };
            let asked = answer.as_ref().and_then(|answer| answer.retry_after);
            match (waits.next(), error, answer) {
                (None, Some(error), _) => return Err(error),
                (None, None, Some(answer)) => return Ok(answer),
                (None, None, None) => return Err(TapError::malformed("no answer")),
                (Some(wait), _, _) => {
                    tokio::time::sleep(asked.unwrap_or(wait).max(wait).min(self.limits.timeout)).await;
                }
            }
        }
    }

    async fn once(&self, request: RequestBuilder) -> Result<Answer, TapError> {
        Ok(self.send(request, &self.base).await?.0)
    }

    /// Sends one request; also says where it led when that is another address than `asked`.
    async fn send(&self, request: RequestBuilder, asked: &Url) -> Result<(Answer, Option<Url>), TapError> {
        if let Some(pace) = &self.pace {
            pace.until_ready().await;
        }
        let timeout = self.limits.timeout;
        let talk = async {
            let response = request.send().await.map_err(|cause| self.failed(cause))?;
            let led = led_to(&response, asked);
            Ok((self.receive(response).await?, led))
        };
        tokio::time::timeout(timeout, talk).await.unwrap_or_else(|_| Err(self.timed_out(timeout)))
    }

    async fn receive(&self, response: Response) -> Result<Answer, TapError> {
        let header =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut answer = Answer {
            host: self.host(),
            status: response.status().as_u16(),
            content_type: header(reqwest::header::CONTENT_TYPE).unwrap_or_default(),
            retry_after: header(reqwest::header::RETRY_AFTER)
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs),
            body: Vec::new(),
        };
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|cause| self.failed(cause))?;
            if answer.body.len() + chunk.len() > self.limits.max_bytes {
                return Err(TapError::TooLarge { limit: self.limits.max_bytes });
            }
            answer.body.extend_from_slice(&chunk);
        }
        Ok(answer)
    }

    fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    fn failed(&self, cause: reqwest::Error) -> TapError {
        if cause.is_timeout() {
            return self.timed_out(self.limits.timeout);
        }
        TapError::Unreachable { host: self.host(), cause: cause.without_url() }
    }

    fn timed_out(&self, after: Duration) -> TapError {
        TapError::Timeout { host: self.host(), after }
    }
}

#[async_trait::async_trait]
impl crate::project::discover::TapQuery for TapClient {
    async fn query(&self, adql: &str) -> Result<Table, TapError> {
        self.query_sync(adql).await
    }
}

/// A job that exists at the service, and is removed there also when nobody waits for it any more.
struct JobGuard {
    client: TapClient,
    url: Option<Url>,
}

impl JobGuard {
    fn url(&self) -> &Url {
        self.url.as_ref().unwrap_or(&self.client.base)
    }

    /// A failure to remove is not the query's: the service destroys old jobs by itself.
    async fn remove(mut self) {
        if let Some(url) = self.url.take() {
            delete(&self.client, url).await;
        }
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        if let (Some(url), Ok(runtime)) = (self.url.take(), tokio::runtime::Handle::try_current()) {
            let client = self.client.clone();
            runtime.spawn(async move { delete(&client, url).await });
        }
    }
}

async fn delete(client: &TapClient, url: Url) {
    let request = client.http.request(Method::DELETE, url.clone());
    if let Err(error) = client.once(request).await {
        tracing::debug!(%url, %error, "a finished job could not be removed from the archive");
    }
}

/// `base` with one more segment.
fn below(base: &Url, segment: &str) -> Url {
    let mut url = base.clone();
    url.set_query(None);
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push(segment);
    }
    url
}

/// Where an answer leads: its `Location`, or the address it came from when the HTTP client has followed that already.
fn led_to(response: &Response, asked: &Url) -> Option<Url> {
    if response.status().is_redirection() {
        let location = response.headers().get(reqwest::header::LOCATION)?.to_str().ok()?;
        return response.url().join(location).ok();
    }
    (response.url() != asked).then(|| response.url().clone())
}

fn contains(body: &[u8], word: &[u8]) -> bool {
    body.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

/// What `availability` says (VOSI 1.1, section 2).
struct Availability {
    available: bool,
    note: String,
}

impl Availability {
    fn read(body: &[u8]) -> Result<Self, TapError> {
        use quick_xml::events::Event;
        let text = String::from_utf8_lossy(body);
        let mut reader = quick_xml::Reader::from_str(&text);
        let (mut element, mut available, mut note) = (String::new(), None, String::new());
        loop {
            match reader.read_event().map_err(|error| TapError::malformed(error.to_string()))? {
                Event::Start(start) => element = start.local_name().into_inner().to_owned(),
                Event::End(_) => element.clear(),
                Event::Text(text) if element == "available" => {
                    available = Some(matches!(text.xml10_content().trim(), "true" | "1"));
                }
                Event::Text(text) if element == "note" => note.push_str(text.xml10_content().trim()),
                Event::Eof => break,
                _ => {}
            }
        }
        let available = available.ok_or_else(|| TapError::malformed("no availability document"))?;
        Ok(Self { available, note })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn availability_is_read_with_its_note() {
        let told = Availability::read(
            br#"<v:availability xmlns:v="x"><v:available>false</v:available><v:note>down till noon</v:note></v:availability>"#,
        )
        .unwrap();
        assert_eq!((told.available, told.note.as_str()), (false, "down till noon"));
        assert!(
            Availability::read(b"<availability><available> true </available></availability>")
                .unwrap()
                .available
        );
        assert!(Availability::read(b"<html>hello</html>").is_err());
    }
}
