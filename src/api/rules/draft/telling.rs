//! How a rule tells: groups, escalation, quiet hours, flapping, what it holds back.

use beampipe_domain::alert::MOST_BEGINNINGS;
use beampipe_domain::rule::{Escalation, Flapping, Inhibits, QuietHours};
use beampipe_domain::silence::MOST_MATCHERS;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{LONGEST, MOST_CHANNELS};
use crate::api::fields::Fields;

/// Quiet hours as they are sent: `HH:MM`, 24 hours.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    from: String,
    to: String,
    #[serde(default)]
    utc_offset_minutes: i32,
}

fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
    let (hours, minutes): (u32, u32) =
        (two(hours).then(|| hours.parse().ok())??, two(minutes).then(|| minutes.parse().ok())??);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// Quiet hours as they are shown.
pub fn hours(quiet: Option<&QuietHours>) -> Option<Hours> {
    let text = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
    quiet.map(|quiet| Hours {
        from: text(quiet.from_minute),
        to: text(quiet.to_minute),
        utc_offset_minutes: quiet.utc_offset_minutes,
    })
}

pub fn quiet_hours(fields: &mut Fields, kept: Option<QuietHours>) -> Option<QuietHours> {
    let hint = "{\"from\": \"22:00\", \"to\": \"07:00\", \"utc_offset_minutes\": 480}, or null";
    if fields.presence("quiet_hours").is_none() {
        return kept;
    }
    let hours: Hours = fields.take("quiet_hours", hint)?;
    let offset = hours.utc_offset_minutes;
    match (minute(&hours.from), minute(&hours.to)) {
        (Some(from_minute), Some(to_minute))
            if from_minute != to_minute && (-840..=840).contains(&offset) =>
        {
            Some(QuietHours { from_minute, to_minute, utc_offset_minutes: offset })
        }
        _ => {
            fields.refuse(
                "quiet_hours",
                "are no two different times of day and an offset of at most 14 h",
                hint,
            );
            None
        }
    }
}

pub fn escalation(fields: &mut Fields, kept: Option<Escalation>) -> Option<Escalation> {
    let hint = "{\"after_minutes\": 15, \"channel_ids\": [UUIDs of channels]}, or null";
    if fields.presence("escalation").is_none() {
        return kept;
    }
    let mut escalation: Escalation = fields.take("escalation", hint)?;
    let mut known = std::collections::HashSet::<Uuid>::new();
    escalation.channel_ids.retain(|id| known.insert(*id));
    let many = escalation.channel_ids.len();
    if !(1..=LONGEST / 60).contains(&escalation.after_minutes) || !(1..=MOST_CHANNELS).contains(&many) {
        fields.refuse("escalation", "needs from 1 to 44640 minutes and at least one channel", hint);
        return None;
    }
    Some(escalation)
}

pub fn flapping(fields: &mut Fields, kept: Flapping) -> Flapping {
    let hint = "{\"times\": 1 to 20, \"window_minutes\": 1 to 10080}, or null";
    match fields.presence("flapping") {
        None => return kept,
        Some(false) => {
            fields.value("flapping");
            return Flapping::default();
        }
        Some(true) => {}
    }
    let Some(flapping) = fields.take::<Flapping>("flapping", hint) else { return kept };
    let good = (1..=MOST_BEGINNINGS as u32).contains(&flapping.times)
        && (1..=10_080).contains(&flapping.window_minutes);
    if !good {
        fields.refuse("flapping", "is out of range", hint);
    }
    flapping
}

pub fn inhibits(fields: &mut Fields, kept: Option<Vec<Inhibits>>) -> Option<Vec<Inhibits>> {
    let hint = "[{\"matchers\": [{\"name\": \"trigger\", \"value\": \"discovery_stall\"}], \"equal\": [\"project_module\"]}], \
                [] for nothing, null for what the kind of trigger holds back by itself";
    if fields.presence("inhibits").is_none() {
        return kept;
    }
    let inhibits: Vec<Inhibits> = fields.take("inhibits", hint)?;
    for (index, one) in inhibits.iter().enumerate() {
        let fault = one.matchers.iter().find_map(|matcher| matcher.fault());
        let many = one.matchers.len();
        if let Some(fault) = fault {
            fields.refuse(&format!("inhibits[{index}].matchers"), fault, hint);
        } else if !(1..=MOST_MATCHERS).contains(&many) || one.equal.len() > MOST_MATCHERS {
            fields.refuse(
                &format!("inhibits[{index}]"),
                format!("needs from 1 to {MOST_MATCHERS} matchers"),
                hint,
            );
        }
    }
    if inhibits.len() > MOST_MATCHERS {
        fields.refuse("inhibits", "are too many", format!("at most {MOST_MATCHERS}"));
    }
    Some(inhibits)
}

pub fn group_by(fields: &mut Fields, kept: Option<Vec<String>>) -> Option<Vec<String>> {
    let hint = "a list of at most 20 labels, such as [\"project_module\", \"failure_class\"]; [] for one group; null for each alert by itself";
    if fields.presence("group_by").is_none() {
        return kept;
    }
    let mut by: Vec<String> = fields.take("group_by", hint)?;
    if by.len() > 20 || by.iter().any(|name| name.is_empty() || name.len() > 60) {
        fields.refuse("group_by", "cannot be used", hint);
    }
    by.sort();
    by.dedup();
    Some(by)
}
