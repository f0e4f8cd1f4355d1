//! What an observation makes of an alert. Times are points of the evaluation's grid, never the time of the day, so that a run
//! that comes late says what a run in time would have said.

use super::*;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Seen {
    /// The condition holds.
    Holds {
        value: Option<f64>,
        summary: String,
        /// The events that show it.
        causes: Vec<Uuid>,
    },
    #[default]
    Ended,
    /// It cannot be told.
    Unknown,
}

/// What was seen, and what the rule says about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    pub at: DateTime<Utc>,
    pub seen: Seen,
    pub late: bool,
    pub subject: Subject,
    pub channel_ids: Vec<Uuid>,
    pub for_seconds: u64,
    pub keep_firing_for_seconds: u64,
    pub no_data: NoData,
    pub repeat_interval_seconds: Option<u64>,
    pub cooldown_seconds: u64,
    pub escalation: Option<Escalation>,
    pub flapping: Flapping,
    pub held_back: Option<HeldBack>,
}

impl Observation {
    /// Whether the condition counts as held; `None`: as before.
    fn holds(&self) -> Option<bool> {
        match (&self.seen, self.no_data) {
            (Seen::Holds { .. }, _) | (Seen::Unknown, NoData::Fire) => Some(true),
            (Seen::Ended, _) | (Seen::Unknown, NoData::Resolve) => Some(false),
            (Seen::Unknown, NoData::Keep) => None,
        }
    }

    fn evidence(&self) -> (Option<f64>, String, Vec<Uuid>) {
        match &self.seen {
            Seen::Holds { value, summary, causes } => (*value, summary.clone(), causes.clone()),
            Seen::Ended | Seen::Unknown => {
                (None, format!("{} cannot be judged: no data", self.subject.rule_name), vec![])
            }
        }
    }

    fn ended_for(&self) -> Reason {
        if self.seen == Seen::Unknown { Reason::NoData } else { Reason::Cleared }
    }
}

impl Alert {
    pub(super) fn observe(&self, seen: &Observation) -> Vec<Event> {
        // Points come in order; of two who judge the same one, the second finds it judged.
        if self.at.is_some_and(|at| at > seen.at) {
            return vec![];
        }
        let Some(holds) = seen.holds() else { return vec![] };
        match &self.phase {
            Phase::Told => vec![],
            Phase::Inactive if !holds => vec![],
            Phase::Inactive if seen.for_seconds == 0 => self.fire(seen, seen.at, false),
            Phase::Inactive => {
                let (value, _, causes) = seen.evidence();
                vec![Event::Pending(Pending { subject: seen.subject.clone(), at: seen.at, value, causes })]
            }
            Phase::Pending { .. } if !holds => vec![self.resolved(seen.at, seen.ended_for())],
            Phase::Pending { since } if seen.at - *since >= span(seen.for_seconds) => {
                self.fire(seen, *since, false)
            }
            Phase::Pending { .. } => vec![],
            Phase::Firing(firing) if holds => self.goes_on(firing, seen),
            Phase::Firing(firing) => match firing.cleared_at {
                None if seen.keep_firing_for_seconds > 0 => vec![Event::Cleared(Cleared { at: seen.at })],
                Some(since) if seen.at - since < span(seen.keep_firing_for_seconds) => vec![],
                _ => vec![self.resolved(seen.at, seen.ended_for())],
            },
        }
    }

    /// How often it began to fire within the window that ends at `at`.
    fn beginnings(&self, seen: &Observation) -> usize {
        let window = TimeDelta::minutes(i64::from(seen.flapping.window_minutes));
        self.begun.iter().filter(|begun| seen.at - **begun < window).count()
    }

    /// What holds a message back: what the caller knows of, or that something was said not long ago, or too often. `more`: the
    /// beginning that is not recorded yet.
    fn held_back(&self, seen: &Observation, more: usize) -> Option<HeldBack> {
        let by = |by| Some(HeldBack { by, id: None });
        let cooling = self.said_at.is_some_and(|said| seen.at - said < span(seen.cooldown_seconds));
        match &seen.held_back {
            Some(held_back) => Some(held_back.clone()),
            None if cooling => by(Holder::Cooldown),
            None if self.beginnings(seen) + more > seen.flapping.times as usize => by(Holder::Flapping),
            None => None,
        }
    }

    /// It begins to fire.
    pub(super) fn fire(&self, seen: &Observation, since: DateTime<Utc>, occurrence: bool) -> Vec<Event> {
        let held_back = self.held_back(seen, 1);
        let said = u32::from(held_back.is_none());
        let mut events = vec![self.said(seen, since, self.number + 1, said, occurrence)];
        events.extend(held_back.map(|held_back| Event::Suppressed(Suppressed { at: seen.at, held_back })));
        events
    }

    fn said(
        &self,
        seen: &Observation,
        since: DateTime<Utc>,
        number: u64,
        said: u32,
        occurrence: bool,
    ) -> Event {
        let (value, mut summary, causes) = seen.evidence();
        let (begun, limit) = (self.beginnings(seen) + 1, seen.flapping.times as usize);
        if said == 1 && number > self.number && begun == limit && limit > 1 && !occurrence {
            let window = seen.flapping.window_minutes;
            summary.push_str(&format!(
                " (time {begun} within {window} min: it comes and goes, and is said again when it is steady)"
            ));
        }
        Event::Fired(Fired {
            subject: seen.subject.clone(),
            at: seen.at,
            since,
            number,
            said,
            late: seen.late,
            summary,
            value,
            causes,
            channel_ids: if said == 0 { vec![] } else { seen.channel_ids.clone() },
            occurrence,
        })
    }

    /// It fires and the condition holds: it is said again when its time has come, or for the first time when nothing holds
    /// it back any more; and to others, if nobody has acknowledged it.
    fn goes_on(&self, firing: &Firing, seen: &Observation) -> Vec<Event> {
        let mut events = vec![];
        if firing.cleared_at.is_some() {
            events.push(Event::Reactivated(Reactivated { at: seen.at }));
        }
        let due = match (firing.said, seen.repeat_interval_seconds) {
            (0, _) => true,
            // Repetitions that were missed are not made up for: they would all come at once.
            (_, None) => false,
            (_, Some(_)) if seen.late => false,
            (_, Some(every)) => self.said_at.is_none_or(|said| seen.at - said >= span(every)),
        };
        if firing.acknowledged {
            return events;
        }
        if due {
            match self.held_back(seen, 0) {
                None => events.push(self.said(seen, firing.since, self.number, firing.said + 1, false)),
                held_back if held_back == firing.held_back => {}
                Some(held_back) => events.push(Event::Suppressed(Suppressed { at: seen.at, held_back })),
            }
        } else if let Some(escalation) = &seen.escalation
            && !firing.escalated
            && seen.held_back.is_none()
            && firing
                .first_said_at
                .is_some_and(|said| seen.at - said >= span(escalation.after_minutes.saturating_mul(60)))
        {
            let channel_ids = escalation.channel_ids.clone();
            events.push(Event::Escalated(Escalated { at: seen.at, channel_ids }));
        }
        events
    }

    pub(super) fn resolved(&self, at: DateTime<Utc>, reason: Reason) -> Event {
        let told = match &self.phase {
            Phase::Firing(firing) => firing.told.clone(),
            Phase::Inactive | Phase::Pending { .. } | Phase::Told => vec![],
        };
        Event::Resolved(Resolved { at: self.at.unwrap_or(at).max(at), reason, channel_ids: told })
    }
}
