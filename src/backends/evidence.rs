//! **Evidence**: which drops of a session are in error, which of them began it, and what those logged. Kept as an
//! artifact of kind `log`, so it is bounded and holds plain text.
//!
//! Errors run down a graph: everything behind a culprit is in error too. The culprit is the drop in error whose inputs
//! were all complete, and only it has logged anything.

use super::graph::PhysicalGraph;
use super::{Progress, State};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Drops in error that are listed; the rest is counted.
pub const MOST_DROPS: usize = 200;
/// Culprits whose log is fetched.
pub const MOST_LOGS: usize = 20;
/// Log lines kept of one drop, and characters of one line.
pub const MOST_LINES: usize = 50;
pub const LONGEST_LINE: usize = 4_000;

/// Where one drop stands. `status` 0 initialised, 1 writing, 2 completed, 3 error, 4 expired, 5 deleted, 6 cancelled,
/// 7 skipped; `exec_status` (applications) 0 not run, 1 running, 2 finished, 3 error, 4 cancelled, 5 skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropState {
    pub status: i64,
    #[serde(rename = "execStatus", default, skip_serializing_if = "Option::is_none")]
    pub exec_status: Option<i64>,
}

const COMPLETED: i64 = 2;
const ERROR: i64 = 3;

impl DropState {
    pub fn in_error(&self) -> bool {
        self.status == ERROR || self.exec_status == Some(ERROR)
    }
}

/// The answer to `graph/status`, by oid.
pub type GraphStatus = BTreeMap<String, DropState>;

/// Counts where the drops stand.
pub fn progress(status: &GraphStatus) -> Progress {
    let count = |wanted: fn(&DropState) -> bool| status.values().filter(|drop| wanted(drop)).count();
    Progress {
        total: status.len(),
        completed: count(|drop| drop.status == COMPLETED),
        running: count(|drop| drop.status == 1 || (drop.exec_status == Some(1) && drop.status == 0)),
        failed: count(DropState::in_error),
    }
}

/// The drops in error whose inputs are all complete, in the order of the graph.
///
/// A drop may tolerate inputs in error and then fail by itself: when nobody fits, those none of whose inputs is in
/// error; when nobody fits that either, all in error.
pub fn culprits(status: &GraphStatus, graph: &PhysicalGraph) -> Vec<String> {
    let inputs: HashMap<&str, &[String]> =
        graph.drops.iter().map(|drop| (drop.oid.as_str(), drop.inputs.as_slice())).collect();
    let order: HashMap<&str, usize> =
        graph.drops.iter().enumerate().map(|(place, drop)| (drop.oid.as_str(), place)).collect();
    let mut failed: Vec<&str> =
        status.iter().filter(|(_, drop)| drop.in_error()).map(|(oid, _)| oid.as_str()).collect();
    failed.sort_by_key(|oid| (order.get(oid).copied().unwrap_or(usize::MAX), *oid));

    let whose_inputs = |all: fn(&DropState) -> bool| -> Vec<String> {
        let fits = |oid: &&&str| {
            let feeds = inputs.get(**oid).copied().unwrap_or_default();
            feeds.iter().all(|input| status.get(input).is_none_or(all))
        };
        failed.iter().filter(fits).map(|oid| (*oid).to_owned()).collect()
    };
    let found = whose_inputs(|input| input.status == COMPLETED);
    let found = if found.is_empty() { whose_inputs(|input| !input.in_error()) } else { found };
    if found.is_empty() { failed.into_iter().map(str::to_owned).collect() } else { found }
}

/// What is kept of a session that failed, or that runs with drops in error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub session_id: String,
    pub state: State,
    pub progress: Progress,
    /// Drops in error, before any were left out below. After a cancel there are none: what was stopped did not fail.
    pub error_drops_count: usize,
    /// Culprits first.
    pub error_drops: Vec<ErrorDrop>,
}

/// A drop in error and what it said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorDrop {
    pub oid: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dropclass: Option<String>,
    /// Whether the error began here.
    pub culprit: bool,
    pub status: DropState,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub log: Vec<LogLine>,
    /// Why its log could not be fetched.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log_missing: Option<String>,
}

/// One line a drop logged, as plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// As the node wrote it: its own clock and zone, so not parsed.
    pub time: String,
    pub level: String,
    pub module: String,
    pub message: String,
}

impl Evidence {
    /// Sorts the drops in error, culprits first; logs are added afterwards to the culprits.
    pub fn sorted(session: &str, state: State, status: &GraphStatus, graph: &PhysicalGraph) -> Self {
        let mut progress = progress(status);
        if state == State::Cancelled {
            progress.failed = 0;
            let session_id = session.to_owned();
            return Evidence { session_id, state, progress, error_drops_count: 0, error_drops: Vec::new() };
        }
        let began = culprits(status, graph);
        let first: HashSet<&str> = began.iter().map(String::as_str).collect();
        let drops: HashMap<&str, &super::graph::Drop> =
            graph.drops.iter().map(|drop| (drop.oid.as_str(), drop)).collect();
        let behind = status
            .iter()
            .filter(|(oid, drop)| drop.in_error() && !first.contains(oid.as_str()))
            .map(|(oid, _)| oid);
        let error_drops = began
            .iter()
            .chain(behind)
            .take(MOST_DROPS)
            .map(|oid| ErrorDrop {
                oid: oid.clone(),
                name: drops.get(oid.as_str()).map_or_else(|| oid.clone(), |drop| drop.name.clone()),
                dropclass: drops.get(oid.as_str()).and_then(|drop| drop.dropclass.clone()),
                culprit: first.contains(oid.as_str()),
                status: status[oid],
                log: Vec::new(),
                log_missing: None,
            })
            .collect();
        let error_drops_count = progress.failed;
        Evidence { session_id: session.to_owned(), state, progress, error_drops_count, error_drops }
    }

    /// One line for people: the first culprit and the first error it logged, or the first thing at all.
    pub fn summary(&self) -> String {
        let Some(first) = self.error_drops.first() else {
            return format!("session {} is {}, no drop is in error", self.session_id, self.state);
        };
        // A manager that is told to be verbose says more before it comes to the error.
        let mut said = first.log.iter().filter(|line| !line.message.is_empty());
        let said = said.clone().find(|line| line.level == "ERROR").or_else(|| said.next());
        let said = said.map_or("it logged nothing", |line| line.message.as_str());
        let words: Vec<&str> = said.split_whitespace().collect();
        shorten(
            &format!("{}: {} ({} drops in error)", first.name, words.join(" "), self.error_drops_count),
            500,
        )
    }
}

/// What a drop said went wrong, as one line.
pub fn first_line(drop: &ErrorDrop) -> String {
    let error = drop.log.iter().find(|line| line.level == "ERROR").or(drop.log.first());
    let message =
        error.map(|line| line.message.as_str()).or(drop.log_missing.as_deref()).unwrap_or("it left no log");
    let mut line: String =
        message.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" / ");
    if line.len() > 500 {
        let end = (0..=500).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
    }
    line
}

/// Takes tags and entities out of what a manager means for a web page.
pub fn plain_text(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        // A tag begins with a letter, a slash or a bang; any other `<` is the program's own.
        let opens = rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '!');
        // Of a style sheet the content goes too.
        let style = rest.get(..6).is_some_and(|tag| tag.eq_ignore_ascii_case("<style"));
        let close = if style { rest.find("</").unwrap_or(0) } else { 0 };
        match rest[close..].find('>').filter(|_| opens) {
            Some(end) => rest = &rest[close + end + 1..],
            None => {
                text.push('<');
                rest = &rest[1..];
            }
        }
    }
    text.push_str(rest);
    // `&amp;` last, so that nothing is decoded twice.
    for (entity, letter) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&#x27;", "'"),
        ("&nbsp;", " "),
        ("&amp;", "&"),
    ] {
        text = text.replace(entity, letter);
    }
    text
}

/// Keeps the beginning and the end, which say most; in characters.
pub fn shorten(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    const GAP: &str = " […] ";
    let keep = most.saturating_sub(GAP.chars().count());
    let head: String = text.chars().take(keep - keep / 3).collect();
    let tail: String = text.chars().skip(length - keep / 3).collect();
    format!("{head}{GAP}{tail}")
}
