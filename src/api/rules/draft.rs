//! What may be sent for a rule, and how it is merged with what is there: an absent field keeps, null takes an optional one away
//! and puts the others back to what they are by themselves.

use std::collections::BTreeMap;

use beampipe_domain::alerting::expression::Condition;
use beampipe_domain::rule::{NoData, Severity, Spec, Trigger};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::api::fields::Fields;
use crate::api::problem::FieldError;

mod telling;
pub use telling::hours;

/// What an answer has beside a draft: consoles send whole answers back.
const READ_ONLY: &[&str] = &["uuid", "version", "last_fired_at", "created_at", "updated_at", "warnings"];
const KNOWN: &str = "name, project_module, severity, trigger_kind, trigger_config, channel_ids, cooldown_minutes, \
                     for_seconds, keep_firing_for_seconds, no_data, repeat_interval_seconds, group_by, group_wait_seconds, group_interval_seconds, escalation, \
                     quiet_hours, flapping, inhibits, labels, annotations, enabled";
const MOST_CHANNELS: usize = 50;
const MOST_LABELS: usize = 50;
/// Labels that alerts have by themselves.
const RESERVED: &[&str] = &[
    "rule",
    "severity",
    "trigger",
    "project_module",
    "dependency",
    "execution",
    "status",
    "failure_class",
    "worker",
    "job_kind",
    "projection",
];
/// Every event of an alert has them, and an event is bounded.
const MOST_TEXT: usize = 10_000;
/// A month, in seconds: the longest span of a rule.
const LONGEST: u64 = 2_678_400;

/// A trigger's settings without its kind.
pub fn trigger_config(trigger: &Trigger) -> Value {
    let mut value = serde_json::to_value(trigger).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.remove("kind");
    }
    value
}

/// Reads a draft; `present` is what it is merged with. Everything that is wrong is answered with it.
pub fn read(draft: Map<String, Value>, present: Option<&Spec>) -> (Option<Spec>, Vec<FieldError>) {
    let mut fields = Fields::new(draft, "");
    let kept = present.cloned().unwrap_or_else(|| Spec { enabled: true, ..Spec::default() });
    let trigger = trigger(&mut fields, present.map(|spec| &spec.trigger));
    let name = fields.text("name", 200).or_else(|| present.map(|spec| spec.name.clone()));
    if name.is_none() && fields.errors.iter().all(|error| error.field != "name") {
        fields.refuse("name", "is missing", "a text of 1 to 200 characters");
    }
    let project_module = match fields.presence("project_module") {
        None => kept.project_module,
        Some(_) => fields
            .take::<String>("project_module", "a project, or \"\" for every project")
            .filter(|module| !module.is_empty()),
    };
    let mut span = |field: &str, kept: u64, most: u64| match fields.presence(field) {
        None => kept,
        Some(_) => fields.number(field, 0, most).unwrap_or(0),
    };
    let cooldown_minutes = span("cooldown_minutes", kept.cooldown_minutes, LONGEST / 60);
    let for_seconds = span("for_seconds", kept.for_seconds, LONGEST);
    let keep_firing_for_seconds = span("keep_firing_for_seconds", kept.keep_firing_for_seconds, LONGEST);
    let group_wait_seconds = span("group_wait_seconds", kept.group_wait_seconds, LONGEST);
    let group_interval_seconds = span("group_interval_seconds", kept.group_interval_seconds, LONGEST);
    let repeat_interval_seconds = match fields.presence("repeat_interval_seconds") {
        None => kept.repeat_interval_seconds,
        Some(_) => fields.number("repeat_interval_seconds", 60, LONGEST),
    };
    let severity = word(&mut fields, "severity", kept.severity, "info, warning or critical", Severity::parse);
    let no_data = word(&mut fields, "no_data", kept.no_data, "keep, resolve or fire", NoData::parse);
    let channel_ids = channels(&mut fields, kept.channel_ids);
    let group_by = telling::group_by(&mut fields, kept.group_by);
    let escalation = telling::escalation(&mut fields, kept.escalation);
    let quiet_hours = telling::quiet_hours(&mut fields, kept.quiet_hours);
    let flapping = telling::flapping(&mut fields, kept.flapping);
    let inhibits = telling::inhibits(&mut fields, kept.inhibits);
    let labels = texts(&mut fields, "labels", kept.labels);
    let annotations = texts(&mut fields, "annotations", kept.annotations);
    let enabled = match fields.presence("enabled") {
        Some(true) => fields.take("enabled", "true or false").unwrap_or(kept.enabled),
        _ => {
            fields.value("enabled");
            kept.enabled
        }
    };
    if let Some(trigger) = &trigger {
        fit(&mut fields, trigger, escalation.is_some(), project_module.is_some());
    }
    let errors = fields.finish(READ_ONLY, KNOWN);
    let (Some(name), Some(trigger)) = (name, trigger) else { return (None, errors) };
    let spec = Spec {
        name,
        project_module,
        severity,
        trigger,
        channel_ids,
        enabled,
        cooldown_minutes,
        for_seconds,
        keep_firing_for_seconds,
        no_data,
        repeat_interval_seconds,
        group_by,
        group_wait_seconds,
        group_interval_seconds,
        escalation,
        quiet_hours,
        flapping,
        inhibits,
        labels,
        annotations,
    };
    (Some(spec), errors)
}

fn word<T: Copy + Default>(
    fields: &mut Fields,
    field: &str,
    kept: T,
    hint: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> T {
    if fields.presence(field).is_none() {
        return kept;
    }
    let Some(text) = fields.take::<String>(field, hint) else { return T::default() };
    parse(&text).unwrap_or_else(|| {
        fields.refuse(field, "is not a word here", hint);
        kept
    })
}

fn channels(fields: &mut Fields, kept: Vec<Uuid>) -> Vec<Uuid> {
    if fields.presence("channel_ids").is_none() {
        return kept;
    }
    let mut ids: Vec<Uuid> = fields.take("channel_ids", "a list of UUIDs of channels").unwrap_or_default();
    let mut known = std::collections::HashSet::new();
    ids.retain(|id| known.insert(*id));
    if ids.len() > MOST_CHANNELS {
        fields.refuse("channel_ids", "are too many", format!("at most {MOST_CHANNELS}"));
    }
    ids
}

/// Texts by name, which replace what is there as a whole.
fn texts(fields: &mut Fields, field: &str, kept: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if fields.presence(field).is_none() {
        return kept;
    }
    let hint =
        "an object of texts whose names are letters, digits and _, such as {\"runbook_url\": \"https://…\"}";
    let texts: BTreeMap<String, String> = fields.take(field, hint).unwrap_or_default();
    let named = |name: &str| {
        (1..=60).contains(&name.len())
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let good = texts.iter().all(|(name, text)| named(name) && text.chars().count() <= 2000);
    let size: usize = texts.values().map(String::len).sum();
    let taken = texts.keys().find(|name| field == "labels" && RESERVED.contains(&name.as_str()));
    if let Some(name) = taken {
        let hint = format!("another name than {}", RESERVED.join(", "));
        fields.refuse(&format!("labels.{name}"), "is what every alert has by itself", hint);
    }
    if !good || texts.len() > MOST_LABELS || size > MOST_TEXT {
        let why = format!("cannot be used, or are more than {MOST_LABELS} or {MOST_TEXT} bytes");
        fields.refuse(field, why, hint);
    }
    texts
}

/// The settings of a kind are merged with those of the same kind; another kind begins anew.
fn trigger(fields: &mut Fields, present: Option<&Trigger>) -> Option<Trigger> {
    let kind: Option<String> = fields.take("trigger_kind", &Trigger::KINDS.join(", "));
    let changes = fields.object("trigger_config").rest();
    let kind = match (kind, present) {
        (Some(kind), _) => kind,
        (None, Some(present)) => present.kind().to_owned(),
        (None, None) => {
            if fields.errors.iter().all(|error| error.field != "trigger_kind") {
                fields.refuse("trigger_kind", "is missing", Trigger::KINDS.join(", "));
            }
            return None;
        }
    };
    if !Trigger::KINDS.contains(&kind.as_str()) {
        fields.refuse("trigger_kind", "is no kind of trigger", Trigger::KINDS.join(", "));
        return None;
    }
    let kept = present.filter(|present| present.kind() == kind).map(trigger_config);
    let mut whole = kept.and_then(|value| value.as_object().cloned()).unwrap_or_default();
    for (name, value) in changes {
        if value.is_null() {
            whole.remove(&name);
        } else {
            whole.insert(name, value);
        }
    }
    whole.insert("kind".into(), kind.into());
    match serde_json::from_value::<Trigger>(Value::Object(whole)) {
        Ok(trigger) => check(fields, &trigger).then_some(trigger),
        Err(error) => {
            fields.refuse(
                "trigger_config",
                error.to_string(),
                "see docs/api.md for the settings of each kind",
            );
            None
        }
    }
}

/// Whether the numbers of a trigger can be meant.
fn check(fields: &mut Fields, trigger: &Trigger) -> bool {
    let (field, good, hint) = match trigger {
        Trigger::ExecutionTerminal { statuses } => {
            ("statuses", !statuses.is_empty(), "completed, failed, cancelled, not_submitted")
        }
        Trigger::DiscoveryChanged {} => return true,
        Trigger::PendingBacklog { threshold } => ("threshold", *threshold > 0, "at least 1"),
        Trigger::PendingStale { max_age_seconds } => {
            ("max_age_seconds", (1..=LONGEST).contains(max_age_seconds), "from 1 to 2678400")
        }
        Trigger::DiscoveryStall { window_minutes } => {
            ("window_minutes", (1..=LONGEST / 60).contains(window_minutes), "from 1 to 44640")
        }
        Trigger::DependencyDown { dependency } => {
            ("dependency", (1..=200).contains(&dependency.len()), "a name such as tap_casda")
        }
        Trigger::DailySummary { window_hours } => {
            ("window_hours", (1..=LONGEST / 3600).contains(window_hours), "from 1 to 744")
        }
        Trigger::ExecutionStuck { max_age_seconds }
        | Trigger::QueueAge { max_age_seconds, .. }
        | Trigger::SubmissionUncertain { max_age_seconds } => {
            ("max_age_seconds", (1..=LONGEST).contains(max_age_seconds), "from 1 to 2678400")
        }
        Trigger::ProjectionLag { max_lag_seconds } => {
            ("max_lag_seconds", (30..=LONGEST).contains(max_lag_seconds), "from 30 to 2678400")
        }
        Trigger::ErrorRate { window_minutes, ratio, min_ended } => {
            let good = (1..=LONGEST / 60).contains(window_minutes) && *min_ended > 0;
            let field = if good { "ratio" } else { "window_minutes" };
            let ratio = *ratio > 0.0 && *ratio <= 1.0;
            (
                field,
                good && ratio,
                "ratio above 0 and up to 1, window_minutes from 1 to 44640, min_ended at least 1",
            )
        }
        Trigger::Expression { expression } => {
            if let Err(error) = Condition::check(expression) {
                let hint = "a condition in CEL, such as pending > 100 && last_hour.completed == 0; docs/alerting.md lists the names";
                fields.refuse("trigger_config.expression", error, hint);
                return false;
            }
            return true;
        }
        Trigger::WorkerLost {} | Trigger::Heartbeat {} => return true,
    };
    if !good {
        fields.refuse(&format!("trigger_config.{field}"), "is out of range", hint);
    }
    good
}

/// Whether the settings of a rule go with its trigger.
fn fit(fields: &mut Fields, trigger: &Trigger, escalates: bool, of_project: bool) {
    if escalates && trigger.is_occurrence() {
        let hint = "take it away, or watch a condition that lasts";
        fields.refuse(
            "escalation",
            format!("{} is told once and cannot be acknowledged", trigger.kind()),
            hint,
        );
    }
    if of_project && trigger.is_of_the_installation() && !matches!(trigger, Trigger::DependencyDown { .. }) {
        let hint = "leave it out, or send \"\"";
        fields.refuse("project_module", format!("{} is of the installation", trigger.kind()), hint);
    }
}
