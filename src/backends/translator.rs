//! The **translator**: DALiuGE's Translator Manager, which unrolls a logical graph, partitions it, and maps it onto
//! the nodes of a manager. It keeps nothing of what it is asked, so repeating a request harms nobody.
//!
//! Follows DALiuGE 6.6.0: plain url-encoded forms (a field of a multipart form is refused over 1 MiB, a JSON body is
//! not read); `host` and `port` for `map`, never `nodes`, which is taken letter by letter; at least one island.
//! Deliberately absent: the older requests that deploy in one go, because the translator chooses their session's name.

use super::graph::{GraphError, PhysicalGraph};
use super::wire::{Answer, Fault, exchange};
use bytes::Bytes;
use reqwest::{Client, RequestBuilder};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Partitioning is a computation; `map` waits 10 s for a manager that is away.
const TIMEOUT: Duration = Duration::from_secs(180);
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);
/// A drop is about four kilobytes in a translated graph.
const LARGEST_ANSWER: usize = 512 << 20;

/// One translator, as a worker sees it.
#[derive(Debug, Clone)]
pub struct Translator {
    http: Client,
    base: String,
    timeout: Duration,
}

/// How a graph is cut into partitions. The translator lists two more, which end in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    Metis,
    Mysarkar,
    MinNumParts,
}

impl Algorithm {
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Metis => "metis",
            Algorithm::Mysarkar => "mysarkar",
            Algorithm::MinNumParts => "min_num_parts",
        }
    }
}

/// Why there is no translation, sorted by what may be done next.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// The graph or a parameter is wrong: the same again would be refused again.
    #[error("the translator refused to {step}, status {status}: {detail}")]
    Rejected { step: &'static str, status: u16, detail: String },
    /// The translator is there and could not, and does not say whose fault it is. May be asked again, not for ever: a
    /// graph it cannot unroll ends like this too.
    #[error("the translator could not {step}, status {status}: {detail}")]
    Unavailable { step: &'static str, status: u16, detail: String },
    #[error("cannot reach the translator {peer} to {step}: {detail}")]
    Unreachable { step: &'static str, peer: String, detail: String },
    #[error("the translator {peer} did not {step} within {seconds} s")]
    Timeout { step: &'static str, peer: String, seconds: u64 },
    /// It answered something that is not a translated graph.
    #[error("what the translator answered to {step} cannot be used")]
    Unusable {
        step: &'static str,
        #[source]
        cause: GraphError,
    },
}

impl TranslateError {
    /// Whether the same request may succeed later.
    pub fn may_be_asked_again(&self) -> bool {
        !matches!(self, TranslateError::Rejected { .. } | TranslateError::Unusable { .. })
    }
}

const UNROLL: &str = "unroll and partition";
const MAP: &str = "map";
const VERSION: &str = "tell its version";

impl Translator {
    /// `tm_url` is `http(s)://host:port`; see [`super::client`] for the client.
    pub fn new(http: Client, tm_url: &str) -> Self {
        Self { http, base: tm_url.trim_end_matches('/').to_owned(), timeout: TIMEOUT }
    }

    /// Waits this long for a translation.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Logical graph to partitioned template.
    ///
    /// `oid_prefix` begins every drop's id: without one, the same graph translated twice within a second has the same
    /// ids twice.
    pub async fn unroll_and_partition(
        &self,
        lg: &[u8],
        algorithm: Algorithm,
        num_partitions: u32,
        num_islands: u32,
        oid_prefix: &str,
    ) -> Result<Bytes, TranslateError> {
        let rejected = |detail| TranslateError::Rejected { step: UNROLL, status: 0, detail };
        let lg =
            std::str::from_utf8(lg).map_err(|error| rejected(format!("the graph is not UTF-8: {error}")))?;
        let (partitions, islands) = (num_partitions.max(1).to_string(), num_islands.to_string());
        let form = [
            ("lg_content", lg),
            ("algorithm", algorithm.as_str()),
            ("num_partitions", &partitions),
            ("num_islands", &islands),
            ("oid_prefix", oid_prefix),
        ];
        let request = self.http.post(format!("{}/unroll_and_partition", self.base)).form(&form);
        self.translate(UNROLL, request).await
    }

    /// Partitioned template to physical graph, on the nodes of the manager that the *translator* sees at `host:port`.
    pub async fn map(
        &self,
        pgt: &[u8],
        dim_host: &str,
        dim_port: u16,
        num_islands: u32,
    ) -> Result<Bytes, TranslateError> {
        let rejected = |detail| TranslateError::Rejected { step: MAP, status: 0, detail };
        let pgt = std::str::from_utf8(pgt)
            .map_err(|error| rejected(format!("the template is not UTF-8: {error}")))?;
        let (port, islands) = (dim_port.to_string(), num_islands.max(1).to_string());
        let form = [("pgt_content", pgt), ("host", dim_host), ("port", &port), ("num_islands", &islands)];
        let request = self.http.post(format!("{}/map", self.base)).form(&form);
        self.translate(MAP, request).await
    }

    /// The version of DALiuGE, which only the translator tells. Also the probe: it answers or it is away.
    pub async fn version(&self) -> Result<Option<String>, TranslateError> {
        #[derive(Deserialize)]
        struct Document {
            info: Info,
        }
        #[derive(Deserialize)]
        struct Info {
            version: Option<String>,
        }
        let request = self.http.get(format!("{}/openapi.json", self.base));
        let answer = self.ask(VERSION, request, PROBE_TIMEOUT.min(self.timeout)).await?;
        Ok(serde_json::from_slice::<Document>(&answer.body).ok().and_then(|document| document.info.version))
    }

    async fn translate(&self, step: &'static str, request: RequestBuilder) -> Result<Bytes, TranslateError> {
        let answer = self.ask(step, request, self.timeout).await?;
        PhysicalGraph::parse(&answer.body).map_err(|cause| TranslateError::Unusable { step, cause })?;
        Ok(answer.body.into())
    }

    async fn ask(
        &self,
        step: &'static str,
        request: RequestBuilder,
        timeout: Duration,
    ) -> Result<Answer, TranslateError> {
        let peer = || self.base.clone();
        match exchange(request, timeout, LARGEST_ANSWER).await {
            Ok(answer) if answer.is_success() => Ok(answer),
            Ok(answer) => Err(refused(step, &answer)),
            Err(Fault::Timeout(after)) => {
                Err(TranslateError::Timeout { step, peer: peer(), seconds: after.as_secs() })
            }
            Err(fault) => Err(TranslateError::Unreachable { step, peer: peer(), detail: fault.detail() }),
        }
    }
}

/// A plain 500 tells no cause. It may be the graph, and it may be the translator: of two translations that are its
/// first and come at once, one ends like this. So it may be asked again, and whoever asks counts.
fn refused(step: &'static str, answer: &Answer) -> TranslateError {
    let (status, said) = (answer.status, answer.excerpt());
    match (status, step) {
        (400..=499, _) if status != 408 && status != 429 => {
            TranslateError::Rejected { step, status, detail: detail_of(&answer.body).unwrap_or(said) }
        }
        (500, UNROLL) => TranslateError::Unavailable {
            step,
            status,
            detail: format!(
                "{said} (the cause is only in its log; a link to a missing node, an empty graph and a scatter of \
                 no copies end like this)"
            ),
        },
        (500, MAP) => TranslateError::Unavailable {
            step,
            status,
            detail: format!("{said} (the cause is only in its log; it may not reach the manager)"),
        },
        _ => TranslateError::Unavailable { step, status, detail: said },
    }
}

/// The `detail` of an answer: a text, or a list that says where.
fn detail_of(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    match &answer["detail"] {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Array(items) => {
            let item = |item: &serde_json::Value| {
                let place = item["loc"].as_array()?.last()?.as_str()?.to_owned();
                Some(format!("{place}: {}", item["msg"].as_str()?))
            };
            Some(items.iter().filter_map(item).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    }
}
