//! Reads what a manager answers. Pure, and tested on what a DALiuGE 6.6.0 answered.

use crate::backends::State;
use crate::backends::evidence::{self, GraphStatus, LogLine};
use crate::backends::wire::EXCERPT;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What one node says of a session; `None` is that it does not know it.
pub type NodeStates = BTreeMap<String, Option<State>>;

/// The answer to `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionStatus {
    Absent,
    Nodes(NodeStates),
}

/// What `graph/drop/<oid>` tells of a drop. The `status` in that answer is the session's, so it is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropDetail {
    pub oid: String,
    pub log: Vec<LogLine>,
}

/// Why the manager said no: the kinds it names, and all of it as a line for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    pub kinds: Vec<String>,
    pub detail: String,
}

/// Reads the body of a refusal: `{"type", "args"}`, where `args` is by node or a list; or a web page.
pub fn parse_refusal(body: &[u8]) -> Refusal {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        let text = evidence::plain_text(&String::from_utf8_lossy(body));
        return Refusal { kinds: Vec::new(), detail: evidence::shorten(text.trim(), EXCERPT) };
    };
    let outer = fields.get("type").and_then(Value::as_str).unwrap_or("no type").to_owned();
    match fields.get("args") {
        Some(Value::Object(nodes)) => {
            let of = |node: &Value| node.get("type").and_then(Value::as_str).map(str::to_owned);
            let kinds: BTreeSet<String> = nodes.values().filter_map(of).collect();
            let said: Vec<String> = nodes
                .iter()
                .map(|(name, node)| format!("{name}: {}", of(node).unwrap_or_else(|| node.to_string())))
                .collect();
            let detail = evidence::shorten(&said.join(", "), EXCERPT);
            Refusal { kinds: kinds.into_iter().collect(), detail }
        }
        Some(Value::Array(words)) => {
            let words: Vec<String> = words
                .iter()
                .map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned))
                .collect();
            let detail = evidence::shorten(&format!("{outer}: {}", words.join(", ")), EXCERPT);
            Refusal { kinds: vec![outer], detail }
        }
        _ => Refusal { kinds: vec![outer.clone()], detail: outer },
    }
}

/// Reads the answer to `/status`: by node a number, or an object where the node does not know the session.
pub fn parse_session_status(raw: &Value) -> Result<SessionStatus, String> {
    let nodes = raw.as_object().ok_or_else(|| format!("a status is due by node, not {raw}"))?;
    let states: NodeStates = nodes
        .iter()
        .map(|(node, state)| {
            (node.clone(), if state.is_object() { None } else { Some(session_state(state)) })
        })
        .collect();
    if !states.is_empty() && states.values().all(Option::is_none) {
        return Ok(SessionStatus::Absent);
    }
    Ok(SessionStatus::Nodes(states))
}

fn session_state(number: &Value) -> State {
    match number.as_i64() {
        Some(0) => State::Pristine,
        Some(1) => State::Building,
        Some(2) => State::Deploying,
        Some(3) => State::Running,
        Some(4) => State::Finished,
        Some(5) => State::Cancelled,
        Some(6) => State::Failed,
        _ => State::Other(number.to_string()),
    }
}

/// One state over all nodes: failed at once when any has failed, then what is not understood, then cancelled, then
/// the one that is furthest behind, so that finished is only said when every node has.
pub fn aggregate(nodes: &NodeStates) -> State {
    if nodes.is_empty() {
        return State::Other("no nodes".into());
    }
    let any = |wanted: &State| nodes.values().flatten().any(|state| state == wanted);
    if any(&State::Failed) {
        return State::Failed;
    }
    if let Some((node, _)) = nodes.iter().find(|(_, state)| state.is_none()) {
        return State::Other(format!("lost on {node}"));
    }
    if let Some(other) = nodes.values().flatten().find(|state| matches!(state, State::Other(_))) {
        return other.clone();
    }
    if any(&State::Cancelled) {
        return State::Cancelled;
    }
    nodes.values().flatten().min().cloned().unwrap_or(State::Other("no nodes".into()))
}

/// Reads the answer to `graph/drop/<oid>`; its messages are written for a web page.
pub fn parse_drop_detail(body: &[u8]) -> Result<DropDetail, String> {
    #[derive(Deserialize)]
    struct Wire {
        oid: String,
        #[serde(default)]
        logs: Vec<BTreeMap<String, Value>>,
    }
    let wire: Wire = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Ok(DropDetail { oid: wire.oid, log: log_lines(&wire.logs) })
}

/// What a drop logged as plain text; a bounded number of lines, each bounded.
pub fn log_lines(lines: &[BTreeMap<String, Value>]) -> Vec<LogLine> {
    let word = |line: &BTreeMap<String, Value>, name: &str| match line.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let line = |line: &BTreeMap<String, Value>| LogLine {
        time: word(line, "time"),
        level: word(line, "Level"),
        module: word(line, "Module"),
        message: evidence::shorten(
            evidence::plain_text(&word(line, "Message")).trim(),
            evidence::LONGEST_LINE,
        ),
    };
    lines.iter().take(evidence::MOST_LINES).map(line).collect()
}

/// Reads an answer to `graph/status` that was kept.
pub fn parse_graph_status(body: &[u8]) -> Result<GraphStatus, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}
