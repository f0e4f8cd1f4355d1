//! What the sources of a project are doing, folded from the project's events: one row a source.
//!
//! A picture for people while it happens, not a read model: it lives as long as the verb that shows it. A row is *settled*
//! when nothing more will happen to it by itself: its discovery found nothing to run, or its execution ended.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::cli::event::{Event, Tone, shorten};

/// How far it is on its way to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Registered,
    Discovered,
    Admitted,
    Created,
    Executing,
    Manifest,
    Graph,
    Translated,
    Submitting,
    Submitted,
    Running,
    Settled,
}

impl Stage {
    /// Steps to the end.
    pub const LAST: u64 = Self::Settled as u64;

    pub fn step(self) -> u64 {
        self as u64
    }
}

/// A source and its latest execution.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub source: String,
    pub stage: Stage,
    /// A word for the state, such as `completed` or `no datasets`.
    pub state: String,
    pub tone: Tone,
    pub detail: String,
    pub execution: Option<Uuid>,
    /// From its registration, or from when it was first heard of.
    pub began_at: DateTime<Utc>,
    pub changed_at: DateTime<Utc>,
}

impl Row {
    pub fn settled(&self) -> bool {
        self.stage == Stage::Settled
    }
}

#[derive(Debug, Default)]
pub struct Board {
    rows: BTreeMap<String, Row>,
    /// Which sources an execution is of: its later events need not say so again.
    executions: BTreeMap<Uuid, Vec<String>>,
}

impl Board {
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    pub fn row(&self, source: &str) -> Option<&Row> {
        self.rows.get(source)
    }

    pub fn settled(&self) -> usize {
        self.rows().filter(|row| row.settled()).count()
    }

    /// How many rows are in each state, by state.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for row in self.rows() {
            *counts.entry(row.state.as_str()).or_default() += 1;
        }
        counts
    }

    /// Takes an event; answers the sources whose rows changed.
    pub fn take(&mut self, event: &Event) -> Vec<String> {
        if event.event_type == "source.removed" {
            let gone: Vec<String> = event.sources().map(str::to_owned).collect();
            gone.iter().for_each(|source| {
                self.rows.remove(source);
            });
            return vec![];
        }
        let Some((stage, state)) = meaning(event) else { return vec![] };
        let mut sources: Vec<String> = event.sources().map(str::to_owned).collect();
        let execution = event.execution_id.filter(|_| event.event_type.starts_with("execution."));
        if let Some(id) = execution {
            let known = self.executions.entry(id).or_default();
            sources.extend(known.iter().cloned());
            let said = event.payload["source_identifiers"].as_array().into_iter().flatten();
            sources.extend(said.filter_map(|source| Some(source.as_str()?.to_owned())));
            sources.sort();
            sources.dedup();
            known.clone_from(&sources);
        }
        sources.retain(|source| self.change(source, event, execution, stage, state));
        sources
    }

    fn change(
        &mut self,
        source: &str,
        event: &Event,
        execution: Option<Uuid>,
        stage: Option<Stage>,
        state: &str,
    ) -> bool {
        let at = event.occurred_at;
        let row = self.rows.entry(source.to_owned()).or_insert_with(|| Row {
            source: source.to_owned(),
            stage: Stage::Registered,
            state: String::new(),
            tone: Tone::Quiet,
            detail: String::new(),
            execution: None,
            began_at: at,
            changed_at: at,
        });
        // What an older execution of the source still says is not its state.
        if execution.is_some() && event.event_type != "execution.created" && row.execution != execution {
            return false;
        }
        // A source whose execution has ended stays settled while an archive cannot be asked again.
        if stage.is_none() && row.settled() {
            if row.execution.is_some() {
                return false;
            }
            row.stage = Stage::Registered;
        }
        let before = row.clone();
        row.execution = execution.or(row.execution);
        row.stage = stage.unwrap_or(row.stage);
        state.clone_into(&mut row.state);
        row.tone = event.tone();
        row.detail = shorten(&event.point(), 70);
        row.changed_at = at;
        *row != before
    }
}

/// What an event makes of a row: the stage (`None`: as it was) and the word.
fn meaning(event: &Event) -> Option<(Option<Stage>, &'static str)> {
    let pending = event.payload["workflow_run_pending"] == true;
    Some(match event.event_type.as_str() {
        "source.registered" => (Some(Stage::Registered), "registered"),
        "discovery.requested" => (Some(Stage::Registered), "to be discovered"),
        "discovery.changed" if pending => (Some(Stage::Discovered), "discovered"),
        "discovery.changed" => (Some(Stage::Settled), "discovered"),
        "discovery.no_datasets" => (Some(Stage::Settled), "no datasets"),
        "discovery.error" => (Some(Stage::Settled), "discovery error"),
        "discovery.timeout" => (None, "discovery timed out"),
        "discovery.tap_skipped" => (None, "archive is down"),
        "source.admitted" => (Some(Stage::Admitted), "admitted"),
        "execution.created" => (Some(Stage::Created), "pending"),
        "execution.execute_started" => (Some(Stage::Executing), "queued"),
        "execution.running" => (None, "preparing"),
        "execution.manifest_built" => (Some(Stage::Manifest), "manifest built"),
        "execution.graph_prepared" => (Some(Stage::Graph), "graph prepared"),
        "execution.translated" => (Some(Stage::Translated), "translated"),
        "execution.submission_started" => (Some(Stage::Submitting), "submitting"),
        "execution.submission_recorded" => (Some(Stage::Submitted), "submitted"),
        "execution.submission_uncertain" => (None, "uncertain"),
        "execution.awaiting_scheduler" => (Some(Stage::Submitted), "waiting at the facility"),
        "execution.observed" => (Some(Stage::Running), "running"),
        "execution.cancel_requested" => (None, "cancelling"),
        "execution.retry_requested" => (Some(Stage::Created), "retrying"),
        "execution.completed" => (Some(Stage::Settled), "completed"),
        "execution.failed" | "execution.submission_refused" => (Some(Stage::Settled), "failed"),
        "execution.cancelled" => (Some(Stage::Settled), "cancelled"),
        "execution.not_submitted" => (Some(Stage::Settled), "not submitted"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(
        position: u64,
        event_type: &str,
        source: &str,
        execution: Option<u128>,
        payload: Value,
    ) -> Event {
        let at = DateTime::from_timestamp(1_772_366_400 + position as i64, 0).unwrap();
        Event::parse(&json!({"position": position, "stream": "x-1", "event_type": event_type, "occurred_at": at,
            "source_identifier": (!source.is_empty()).then_some(source), "execution_id": execution.map(Uuid::from_u128),
            "payload": payload}).to_string())
        .unwrap()
    }

    #[test]
    fn a_source_goes_its_way_from_registration_to_the_end_of_its_execution() {
        let mut board = Board::default();
        let story = [
            event(1, "source.registered", "A", None, json!({"source_identifier": "A"})),
            event(2, "discovery.changed", "A", None, json!({"workflow_run_pending": true})),
            event(3, "source.admitted", "A", Some(1), json!({})),
            event(4, "execution.created", "", Some(1), json!({"source_identifiers": ["A"]})),
            event(5, "execution.manifest_built", "", Some(1), json!({})),
            event(6, "execution.observed", "", Some(1), json!({"axes": {"daliuge_state": "running"}})),
            event(7, "execution.completed", "A", Some(1), json!({"terminal": {"session_state": "finished"}})),
        ];
        let mut steps = vec![];
        for event in &story {
            assert_eq!(board.take(event), ["A"], "{}", event.event_type);
            steps.push(board.row("A").unwrap().stage);
        }
        assert!(steps.is_sorted(), "{steps:?}");
        let row = board.row("A").unwrap();
        assert_eq!((row.state.as_str(), row.tone, board.settled()), ("completed", Tone::Good, 1));
        assert_eq!((row.changed_at - row.began_at).num_seconds(), 6);
    }

    #[test]
    fn a_source_without_anything_to_run_is_settled() {
        let mut board = Board::default();
        board.take(&event(1, "discovery.no_datasets", "A", None, json!({})));
        board.take(&event(
            2,
            "discovery.error",
            "B",
            None,
            json!({"step": "prepare", "error": "no calibration file"}),
        ));
        board.take(&event(3, "discovery.timeout", "C", None, json!({})));
        assert_eq!(board.settled(), 2);
        board.take(&event(4, "discovery.tap_skipped", "A", None, json!({})));
        assert_eq!(board.settled(), 1, "what is asked again is not settled");
        assert_eq!(board.row("B").unwrap().detail, "prepare: no calibration file");
        assert_eq!(board.counts()["discovery error"], 1);
    }

    #[test]
    fn an_older_execution_does_not_speak_for_its_source() {
        let mut board = Board::default();
        board.take(&event(1, "execution.created", "", Some(1), json!({"source_identifiers": ["A"]})));
        board.take(&event(2, "execution.created", "", Some(2), json!({"source_identifiers": ["A"]})));
        assert!(board.take(&event(3, "execution.failed", "A", Some(1), json!({}))).is_empty());
        assert_eq!(board.row("A").unwrap().state, "pending");
    }

    #[test]
    fn what_is_not_of_a_source_changes_nothing_and_a_removed_source_goes() {
        let mut board = Board::default();
        assert!(board.take(&event(1, "job.claimed", "A", None, json!({}))).is_empty());
        board.take(&event(2, "source.registered", "A", None, json!({})));
        board.take(&event(3, "source.removed", "A", None, json!({})));
        assert_eq!(board.rows().count(), 0);
    }
}
