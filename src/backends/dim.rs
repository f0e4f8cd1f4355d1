//! A **DALiuGE Data Island Manager** over REST: sessions are created, given a graph, deployed, watched and cancelled.
//!
//! Follows DALiuGE 6.6.0 as it answers. What that means here:
//! - Errors come as status 555 with a JSON body that names the kind for each node; 404 and 409 do not occur.
//! - The status of a session that does not exist is 200 with an *object* for each node where a number is due. That,
//!   from every node, is the only thing taken for [`Look::Absent`].
//! - The manager forgets its list of sessions when it restarts, the nodes do not: `/status` asks the nodes and is
//!   right, so nothing here reads the list to decide anything.
//! - [`SubmitError::Refused`] is only said where a refusal means that nothing happened. A deploy that fails on a node
//!   may be the second of two, of which the first goes on; a node that the manager cannot reach may have acted all the
//!   same. Both are [`SubmitError::Unknown`].
//!
//! Parsing is apart from talking, in [`answers`].

pub mod answers;

use super::evidence::{self, Evidence, GraphStatus};
use super::graph::PhysicalGraph;
use super::wire::{Answer, exchange};
use super::{Backend, Created, Look, LookError, Progress, State, Step, SubmitError};
use answers::{
    DropDetail, Refusal, SessionStatus, aggregate, parse_drop_detail, parse_refusal, parse_session_status,
};
use async_trait::async_trait;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// The manager waits 10 s for a node that is down before it says so.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// A graph of ten megabytes is taken apart and sent on to the nodes before the answer comes.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(120);
/// The status of a graph is about a hundred bytes a drop.
const LARGEST_ANSWER: usize = 256 << 20;
/// What stays as it is in one segment of a path (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// A session nobody has: asking for it makes the manager ask its nodes.
const NOBODY: &str = "beampipe-probe";

/// One manager, as a worker sees it.
#[derive(Debug, Clone)]
pub struct Dim {
    http: Client,
    base: String,
    look_timeout: Duration,
    submit_timeout: Duration,
}

/// One line of the manager's list of sessions, which begins empty whenever it restarts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionSummary {
    #[serde(rename = "sessionId")]
    pub session_id: String,
    #[serde(default)]
    pub status: Value,
    #[serde(default)]
    pub size: Option<u64>,
}

/// The manager and every one of its nodes answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    /// `host:rest:events:rpc`
    pub nodes: Vec<String>,
}

impl Dim {
    /// `base_url` is `http(s)://host:port`; see [`super::client`] for the client.
    pub fn new(http: Client, base_url: &str) -> Self {
        let base = base_url.trim_end_matches('/').to_owned();
        Self { http, base, look_timeout: LOOK_TIMEOUT, submit_timeout: SUBMIT_TIMEOUT }
    }

    /// Waits this long for an answer to a look, and to a step that changes something.
    pub fn with_timeouts(mut self, look: Duration, submit: Duration) -> Self {
        (self.look_timeout, self.submit_timeout) = (look, submit);
        self
    }

    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Where the session's status is read.
    pub fn status_url(&self, session: &str) -> String {
        self.session_url(session, "/status")
    }

    /// Where the status of each of its drops is read.
    pub fn graph_status_url(&self, session: &str) -> String {
        self.session_url(session, "/graph/status")
    }

    /// Creates a session; [`Created::Existed`] when there is one of that name.
    pub async fn create_session(&self, session: &str) -> Result<Created, SubmitError> {
        let request = self
            .http
            .post(format!("{}/api/sessions", self.base))
            .json(&serde_json::json!({ "sessionId": session }));
        let answer = self.step(Step::Create, request).await?;
        if answer.is_success() {
            return Ok(Created::New);
        }
        let refusal = parse_refusal(&answer.body);
        // With several nodes, one that has the session is enough: the name is taken.
        if refusal.kinds.iter().any(|kind| kind == "SessionAlreadyExistsException") {
            return Ok(Created::Existed);
        }
        Err(refused(Step::Create, &answer))
    }

    /// Appends a mapped graph, the bytes as they are.
    pub async fn append_graph(&self, session: &str, graph: Bytes) -> Result<(), SubmitError> {
        let request = self
            .http
            .post(self.session_url(session, "/graph/append"))
            .header(CONTENT_TYPE, "application/json")
            .body(graph);
        self.done(Step::Append, request).await
    }

    /// Starts the session from the drops in `completed`.
    ///
    /// Refused when one of them is not in the graph, or when the manager restarted after the graph was appended and has
    /// forgotten it. Nothing was started, but the session is left *running* and does nothing: cancel it.
    pub async fn deploy_session(&self, session: &str, completed: &[String]) -> Result<(), SubmitError> {
        if completed.is_empty() {
            let detail = "the graph has no roots, so it would stand still for ever".to_owned();
            return Err(SubmitError::NotSent { step: Step::Deploy, detail, cause: None });
        }
        let request =
            self.http.post(self.session_url(session, "/deploy")).form(&[("completed", completed.join(","))]);
        self.done(Step::Deploy, request).await
    }

    /// Cancels a running session; refused in any state but running and cancelled.
    pub async fn cancel_session(&self, session: &str) -> Result<(), SubmitError> {
        self.done(Step::Cancel, self.http.post(self.session_url(session, "/cancel"))).await
    }

    /// What each node says of the session, with the answer as it came.
    pub async fn session_status(&self, session: &str) -> Result<(SessionStatus, Value), LookError> {
        let answer = self.get(session, "/status").await?;
        let raw: Value = self.read(&answer.body)?;
        let status = parse_session_status(&raw).map_err(|detail| self.malformed(detail))?;
        Ok((status, raw))
    }

    /// Where each drop stands. [`LookError::NoSuch`] before the session is deployed.
    pub async fn graph_status(&self, session: &str) -> Result<GraphStatus, LookError> {
        let answer = self.get(session, "/graph/status").await?;
        self.read(&answer.body)
    }

    /// How many drops the session's graph has; 0 for a session that is not there, too.
    pub async fn graph_size(&self, session: &str) -> Result<usize, LookError> {
        let answer = self.get(session, "/graph/size").await?;
        self.read(&answer.body)
    }

    /// What one drop logged.
    pub async fn drop_detail(&self, session: &str, oid: &str) -> Result<DropDetail, LookError> {
        let tail = format!("/graph/drop/{}", utf8_percent_encode(oid, SEGMENT));
        let answer = self.get(session, &tail).await?;
        parse_drop_detail(&answer.body).map_err(|detail| self.malformed(detail))
    }

    /// The manager's own list, for people; empty after its restart, whatever runs.
    pub async fn sessions(&self) -> Result<Vec<SessionSummary>, LookError> {
        let answer = self.get_url("", format!("{}/api/sessions", self.base)).await?;
        self.read(&answer.body)
    }

    /// The nodes it was started with, as `host:rest:events:rpc`. It answers with all of them dead.
    pub async fn nodes(&self) -> Result<Vec<String>, LookError> {
        let answer = self.get_url("", format!("{}/api/nodes", self.base)).await?;
        self.read(&answer.body)
    }

    /// Whether the manager *and its nodes* answer: it is asked for a session nobody has, which it passes on to them.
    pub async fn probe(&self) -> Result<Alive, LookError> {
        let nodes = self.nodes().await?;
        if nodes.is_empty() {
            return Err(LookError::Unavailable {
                peer: self.base.clone(),
                status: 200,
                kinds: Vec::new(),
                detail: "the manager has no nodes".into(),
            });
        }
        self.session_status(NOBODY).await?;
        Ok(Alive { nodes })
    }

    /// Collects which drops are in error and what the culprits logged; [`evidence`] bounds it.
    ///
    /// A log that cannot be fetched is noted in its place: the rest is worth keeping.
    pub async fn collect_failure(&self, session: &str, graph: &[u8]) -> Result<Evidence, LookError> {
        let (status, _) = self.session_status(session).await?;
        let state = match status {
            SessionStatus::Absent => State::Other("absent".into()),
            SessionStatus::Nodes(nodes) => aggregate(&nodes),
        };
        let drops = match self.graph_status(session).await {
            Err(LookError::NoSuch { .. }) => GraphStatus::new(),
            other => other?,
        };
        // Without a graph every drop in error counts as a beginning.
        let graph = PhysicalGraph::parse(graph).unwrap_or_default();
        let mut evidence = Evidence::sorted(session, state, &drops, &graph);
        let culprits = evidence.error_drops.iter_mut().filter(|drop| drop.culprit);
        for drop in culprits.take(evidence::MOST_LOGS) {
            match self.drop_detail(session, &drop.oid).await {
                Ok(detail) => drop.log = detail.log,
                Err(error) => drop.log_missing = Some(error.to_string()),
            }
        }
        Ok(evidence)
    }

    fn session_url(&self, session: &str, tail: &str) -> String {
        format!("{}/api/sessions/{}{tail}", self.base, utf8_percent_encode(session, SEGMENT))
    }

    async fn step(&self, step: Step, request: RequestBuilder) -> Result<Answer, SubmitError> {
        exchange(request, self.submit_timeout, 1 << 20).await.map_err(|fault| fault.of_submit(step))
    }

    async fn done(&self, step: Step, request: RequestBuilder) -> Result<(), SubmitError> {
        let answer = self.step(step, request).await?;
        if answer.is_success() { Ok(()) } else { Err(refused(step, &answer)) }
    }

    async fn get(&self, session: &str, tail: &str) -> Result<Answer, LookError> {
        self.get_url(session, self.session_url(session, tail)).await
    }

    async fn get_url(&self, session: &str, url: String) -> Result<Answer, LookError> {
        let answer = exchange(self.http.get(url), self.look_timeout, LARGEST_ANSWER)
            .await
            .map_err(|fault| fault.of_look(&self.base))?;
        if answer.is_success() {
            return Ok(answer);
        }
        let (peer, Refusal { kinds, detail }) = (self.base.clone(), parse_refusal(&answer.body));
        const NO_SUCH: [&str; 2] = ["NoSessionException", "InvalidSessionState"];
        if answer.status == 555 && !kinds.is_empty() && kinds.iter().all(|kind| NO_SUCH.contains(&&**kind)) {
            return Err(LookError::NoSuch { peer, session: session.to_owned(), detail });
        }
        Err(LookError::Unavailable { peer, status: answer.status, kinds, detail })
    }

    fn read<T: serde::de::DeserializeOwned>(&self, body: &[u8]) -> Result<T, LookError> {
        serde_json::from_slice(body).map_err(|error| self.malformed(error.to_string()))
    }

    fn malformed(&self, detail: String) -> LookError {
        LookError::Malformed { peer: self.base.clone(), detail }
    }
}

/// Sorts an answer that is no success by what it proves.
fn refused(step: Step, answer: &Answer) -> SubmitError {
    let Refusal { kinds, detail } = parse_refusal(&answer.body);
    let status = answer.status;
    let proves_nothing = match status {
        // The manager's word, or a request it would not read. A proxy's timeout is not.
        555 => {
            kinds.iter().any(|kind| kind == "SubManagerException")
                || (step == Step::Deploy && kinds.iter().any(|kind| kind == "ErrorManagerCaughtException"))
        }
        408 => true,
        400..=499 => false,
        _ => true,
    };
    if proves_nothing {
        SubmitError::Unknown { step, detail: format!("status {status}: {detail}"), cause: None }
    } else {
        SubmitError::Refused { step, status, kinds, detail }
    }
}

#[async_trait]
impl Backend for Dim {
    async fn create(&self, session: &str) -> Result<Created, SubmitError> {
        self.create_session(session).await
    }

    async fn append(&self, session: &str, physical_graph: Bytes) -> Result<(), SubmitError> {
        self.append_graph(session, physical_graph).await
    }

    async fn deploy(&self, session: &str, roots: &[String]) -> Result<(), SubmitError> {
        self.deploy_session(session, roots).await
    }

    async fn look(&self, session: &str) -> Result<Look, LookError> {
        let (status, raw) = self.session_status(session).await?;
        Ok(match status {
            SessionStatus::Absent => Look::Absent,
            SessionStatus::Nodes(nodes) => Look::Present { state: aggregate(&nodes), raw },
        })
    }

    async fn size(&self, session: &str) -> Result<usize, LookError> {
        self.graph_size(session).await
    }

    async fn progress(&self, session: &str) -> Result<Progress, LookError> {
        match self.graph_status(session).await {
            Ok(status) => Ok(evidence::progress(&status)),
            Err(LookError::NoSuch { .. }) => Ok(Progress::default()),
            Err(error) => Err(error),
        }
    }

    /// The manager lists its sessions in the order in which they were created.
    async fn is_newest(&self, session: &str) -> Result<bool, LookError> {
        Ok(self.sessions().await?.last().is_some_and(|last| last.session_id == session))
    }

    async fn forget(&self, session: &str) -> Result<(), SubmitError> {
        self.done(Step::Forget, self.http.delete(self.session_url(session, ""))).await
    }

    async fn cancel(&self, session: &str) -> Result<(), SubmitError> {
        self.cancel_session(session).await
    }

    async fn evidence(&self, session: &str, physical_graph: &[u8]) -> Result<Evidence, LookError> {
        self.collect_failure(session, physical_graph).await
    }

    fn session_status_url(&self, session: &str) -> Option<String> {
        Some(self.status_url(session))
    }

    fn graph_status_url(&self, session: &str) -> Option<String> {
        Some(Dim::graph_status_url(self, session))
    }
}
