//! Reading channels, rules, silences, alerts and deliveries.

use std::collections::BTreeMap;

use beampipe_domain::{channel, rule, silence};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::reader::{ReadModelError, Window, handle};
use crate::sql::{blob, blob_of, micros};

row! {
    /// A notification channel.
    pub struct Channel {
        pub created_position: u64,
        pub id: Uuid,
        pub name: String,
        pub kind: String,
        pub spec: channel::Spec,
        pub enabled: bool,
        /// Why it was disabled without being asked, if so.
        pub disabled_reason: Option<String>,
        /// Counts from 1 and rises with every change.
        pub channel_revision: u64,
        pub removed: bool,
        pub last_test_at: Option<DateTime<Utc>>,
        /// `sent` or `failed`.
        pub last_test_status: Option<String>,
        pub last_test_code: Option<u32>,
        /// When the first of the attempts began that all failed since one did not; tests apart.
        pub failing_since: Option<DateTime<Utc>>,
        pub failing_attempts: u32,
        /// Of how many messages they were.
        pub failing_deliveries: u32,
        pub created_at: DateTime<Utc>,
        pub updated_at: Option<DateTime<Utc>>,
    }
}

row! {
    /// What a channel is to be told of another that was disabled by the service, and is not enqueued yet.
    pub struct Notice {
        pub delivery_id: Uuid,
        /// The event.
        pub cause: Uuid,
        pub channel_id: Uuid,
        pub disabled_id: Uuid,
        pub name: String,
        pub kind: String,
        pub reason: String,
        pub disabled_at: DateTime<Utc>,
        pub position: u64,
    }
}

row! {
    /// An alert rule.
    pub struct Rule {
        pub created_position: u64,
        pub id: Uuid,
        pub name: String,
        /// Absent: every project.
        pub project_module: Option<String>,
        pub spec: rule::Spec,
        /// Counts from 1 and rises with every change.
        pub rule_version: u64,
        pub enabled: bool,
        pub removed: bool,
        pub last_fired_at: Option<DateTime<Utc>>,
        pub created_at: DateTime<Utc>,
        pub updated_at: Option<DateTime<Utc>>,
    }
}

row! {
    /// A silence.
    pub struct Silence {
        pub created_position: u64,
        pub id: Uuid,
        pub matchers: Vec<silence::Matcher>,
        pub comment: String,
        /// The actor.
        pub created_by: String,
        pub starts_at: DateTime<Utc>,
        pub ends_at: DateTime<Utc>,
        /// When a person ended it before its time.
        pub expired_at: Option<DateTime<Utc>>,
        pub created_at: DateTime<Utc>,
    }
}

row! {
    /// An alert: one rule and one set of labels.
    pub struct Alert {
        pub created_position: u64,
        /// The stream's name without its category.
        pub id: String,
        pub rule_id: Uuid,
        pub rule_version: u64,
        pub rule_name: String,
        pub project_module: Option<String>,
        pub severity: String,
        pub labels: BTreeMap<String, String>,
        /// `annotations`, `execution_id`, `source_identifiers`, `changed_count`.
        pub about: serde_json::Value,
        /// `pending`, `firing`, `resolved`, or `told` for what happened and is never resolved.
        pub state: String,
        pub since: DateTime<Utc>,
        pub fired_at: Option<DateTime<Utc>>,
        pub number: u64,
        pub said: u32,
        pub said_at: Option<DateTime<Utc>>,
        pub summary: String,
        pub value: Option<f64>,
        pub causes: Vec<String>,
        pub held_by: Option<String>,
        pub held_id: Option<String>,
        pub cleared_at: Option<DateTime<Utc>>,
        pub escalated_at: Option<DateTime<Utc>>,
        pub acknowledged_by: Option<String>,
        pub acknowledged_at: Option<DateTime<Utc>>,
        pub acknowledgement: Option<String>,
        pub resolved_at: Option<DateTime<Utc>>,
        pub resolved_reason: Option<String>,
        pub last_event_id: Uuid,
        pub last_event_at: DateTime<Utc>,
    }
}

row! {
    /// One message to one channel.
    pub struct Delivery {
        pub created_position: u64,
        pub id: Uuid,
        pub message: String,
        pub channel_id: Uuid,
        pub channel_kind: String,
        pub rule_id: Option<Uuid>,
        /// The alert that it tells of first.
        pub alert: Option<String>,
        pub project_module: Option<String>,
        pub payload: serde_json::Value,
        /// `pending`, `retrying`, `sent` or `failed`.
        pub status: String,
        pub attempts: u32,
        pub next_attempt_at: Option<DateTime<Utc>>,
        /// Of the last attempt.
        pub code: Option<u32>,
        pub error: Option<String>,
        pub created_at: DateTime<Utc>,
        pub ended_at: Option<DateTime<Utc>>,
    }
}

row! {
    /// One try to deliver.
    pub struct Attempt {
        pub attempt: u32,
        pub attempt_id: Uuid,
        pub started_at: DateTime<Utc>,
        pub latency_ms: u64,
        pub code: Option<u32>,
        pub error: Option<String>,
        pub answer: Option<String>,
        pub retry_at: Option<DateTime<Utc>>,
    }
}

handle! {
    /// Reads channels, rules, silences, alerts and deliveries.
    Alerts
}

/// Which deliveries; what is absent is any.
#[derive(Clone, Debug, Default)]
pub struct Deliveries {
    pub status: Option<String>,
    pub channel_id: Option<Uuid>,
    pub rule_id: Option<Uuid>,
    pub message: Option<String>,
    pub alert: Option<String>,
}

impl Alerts {
    /// The channel, whether or not it was removed.
    pub fn channel(&self, id: Uuid) -> Result<Option<Channel>, ReadModelError> {
        let sql = format!("SELECT {} FROM channels WHERE id = ?1", Channel::columns());
        self.0.one(&sql, [blob(&id)], Channel::from_row)
    }

    /// Every channel that was not removed, newest first.
    pub fn channels(&self, window: Window) -> Result<Vec<Channel>, ReadModelError> {
        let sql = format!(
            "SELECT {} FROM channels WHERE removed = 0 AND created_position < ?1 \
             ORDER BY created_position DESC LIMIT ?2 OFFSET ?3",
            Channel::columns()
        );
        self.0.all(&sql, window.bounds(), Channel::from_row)
    }

    /// The rule, whether or not it was removed.
    pub fn rule(&self, id: Uuid) -> Result<Option<Rule>, ReadModelError> {
        let sql = format!("SELECT {} FROM rules WHERE id = ?1", Rule::columns());
        self.0.one(&sql, [blob(&id)], Rule::from_row)
    }

    /// Every rule that was not removed, newest first; of a project (and global) if given.
    pub fn rules(&self, project: Option<&str>, window: Window) -> Result<Vec<Rule>, ReadModelError> {
        let (before, limit, offset) = window.bounds();
        let sql = format!(
            "SELECT {} FROM rules WHERE removed = 0 AND created_position < ?1 \
             AND (?4 IS NULL OR project_module IS NULL OR project_module = ?4) \
             ORDER BY created_position DESC LIMIT ?2 OFFSET ?3",
            Rule::columns()
        );
        self.0.all(&sql, (before, limit, offset, project), Rule::from_row)
    }

    /// The rules that name a channel, by name.
    pub fn rules_of_channel(&self, channel: Uuid) -> Result<Vec<Rule>, ReadModelError> {
        let sql = format!(
            "SELECT {} FROM rules WHERE removed = 0 AND (EXISTS \
             (SELECT 1 FROM json_each(spec, '$.channel_ids') WHERE value = ?1) OR EXISTS \
             (SELECT 1 FROM json_each(spec, '$.escalation.channel_ids') WHERE value = ?1)) ORDER BY name",
            Rule::columns()
        );
        self.0.all(&sql, [channel.to_string()], Rule::from_row)
    }

    pub fn silence(&self, id: Uuid) -> Result<Option<Silence>, ReadModelError> {
        let sql = format!("SELECT {} FROM silences WHERE id = ?1", Silence::columns());
        self.0.one(&sql, [blob(&id)], Silence::from_row)
    }

    /// Silences, newest first; only those that hold back or will after `still_at` if given.
    pub fn silences(
        &self,
        still_at: Option<DateTime<Utc>>,
        window: Window,
    ) -> Result<Vec<Silence>, ReadModelError> {
        let (before, limit, offset) = window.bounds();
        let sql = format!(
            "SELECT {} FROM silences WHERE created_position < ?1 \
             AND (?4 IS NULL OR (expired_at IS NULL AND ends_at > ?4)) \
             ORDER BY created_position DESC LIMIT ?2 OFFSET ?3",
            Silence::columns()
        );
        self.0.all(&sql, (before, limit, offset, still_at.map(micros)), Silence::from_row)
    }

    pub fn alert(&self, id: &str) -> Result<Option<Alert>, ReadModelError> {
        let sql = format!("SELECT {} FROM alerts WHERE id = ?1", Alert::columns());
        self.0.one(&sql, [id], Alert::from_row)
    }

    /// Alerts, newest first, in a state or of a rule if given.
    pub fn alerts(
        &self,
        state: Option<&str>,
        rule: Option<Uuid>,
        window: Window,
    ) -> Result<Vec<Alert>, ReadModelError> {
        let (before, limit, offset) = window.bounds();
        let sql = format!(
            "SELECT {} FROM alerts WHERE created_position < ?1 AND (?4 IS NULL OR state = ?4) \
             AND (?5 IS NULL OR rule_id = ?5) ORDER BY created_position DESC LIMIT ?2 OFFSET ?3",
            Alert::columns()
        );
        self.0.all(&sql, (before, limit, offset, state, blob_of(rule.as_ref())), Alert::from_row)
    }

    /// What is to be told of channels that were disabled, oldest first.
    pub fn notices(&self, limit: u64) -> Result<Vec<Notice>, ReadModelError> {
        let sql =
            format!("SELECT {} FROM notices ORDER BY position, delivery_id LIMIT ?1", Notice::columns());
        self.0.all(&sql, [i64::try_from(limit).unwrap_or(i64::MAX)], Notice::from_row)
    }

    pub fn delivery(&self, id: Uuid) -> Result<Option<Delivery>, ReadModelError> {
        let sql = format!("SELECT {} FROM deliveries WHERE id = ?1", Delivery::columns());
        self.0.one(&sql, [blob(&id)], Delivery::from_row)
    }

    /// Deliveries, newest first.
    pub fn deliveries(&self, which: &Deliveries, window: Window) -> Result<Vec<Delivery>, ReadModelError> {
        let (before, limit, offset) = window.bounds();
        let sql = format!(
            "SELECT {} FROM deliveries WHERE created_position < ?1 AND (?4 IS NULL OR status = ?4) \
             AND (?5 IS NULL OR channel_id = ?5) AND (?6 IS NULL OR rule_id = ?6) AND (?7 IS NULL OR message = ?7) \
             AND (?8 IS NULL OR alert = ?8) ORDER BY created_position DESC LIMIT ?2 OFFSET ?3",
            Delivery::columns()
        );
        let params = rusqlite::params![
            before,
            limit,
            offset,
            which.status,
            blob_of(which.channel_id.as_ref()),
            blob_of(which.rule_id.as_ref()),
            which.message,
            which.alert,
        ];
        self.0.all(&sql, params, Delivery::from_row)
    }

    /// The deliveries that tell of an event of an alert, oldest first.
    pub fn deliveries_of(&self, cause: Uuid) -> Result<Vec<Delivery>, ReadModelError> {
        let sql = format!(
            "SELECT {} FROM deliveries WHERE id IN (SELECT delivery_id FROM delivery_causes WHERE cause = ?1) \
             ORDER BY created_position",
            Delivery::columns()
        );
        self.0.all(&sql, [blob(&cause)], Delivery::from_row)
    }

    /// The attempts of a delivery, in their order.
    pub fn attempts(&self, delivery: Uuid) -> Result<Vec<Attempt>, ReadModelError> {
        let sql =
            format!("SELECT {} FROM attempts WHERE delivery_id = ?1 ORDER BY attempt", Attempt::columns());
        self.0.all(&sql, [blob(&delivery)], Attempt::from_row)
    }

    /// Deliveries whose next attempt is due, the longest due first, at most so many of each channel: one that does not keep up
    /// holds no other back. Of one group and channel the messages go in their order: that it is resolved does not overtake that it
    /// fires.
    pub fn due(&self, now: DateTime<Utc>, of_a_channel: u64) -> Result<Vec<Delivery>, ReadModelError> {
        let sql = format!(
            "SELECT {} FROM (SELECT *, row_number() OVER \
             (PARTITION BY channel_id ORDER BY next_attempt_at, created_position) AS place FROM deliveries \
             WHERE status IN ('pending', 'retrying') AND next_attempt_at <= ?1 \
             AND NOT EXISTS (SELECT 1 FROM deliveries AS earlier WHERE earlier.group_key = deliveries.group_key \
             AND earlier.channel_id = deliveries.channel_id AND earlier.status IN ('pending', 'retrying') \
             AND earlier.created_position < deliveries.created_position)) \
             WHERE place <= ?2 ORDER BY next_attempt_at, created_position",
            Delivery::columns()
        );
        let limit = i64::try_from(of_a_channel).unwrap_or(i64::MAX);
        self.0.all(&sql, (micros(now), limit), Delivery::from_row)
    }
}
