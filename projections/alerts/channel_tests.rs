use beampipe_domain::channel::{Channel as CS, Command as CC, Spec};
use beampipe_domain::delivery::{
    Attempt as Tried, Command as DC, Delivery as DS, Enqueued, Message, Outcome,
};
use beampipe_domain::id as ids;
use beampipe_domain::rule::{self, Command as RC, Rule as RS};
use uuid::Uuid;

use super::*;
use crate::testing::{History, at, id};

/// Channels 1 to 4, of which a rule names the first two.
#[derive(Default)]
struct Kept {
    history: History,
    channels: Vec<CS>,
    deliveries: Vec<(u128, DS)>,
}

fn spec(name: &str) -> Spec {
    Spec { name: name.into(), enabled: true, ..Spec::default() }
}

impl Kept {
    fn new() -> Self {
        let mut kept = Self { channels: vec![CS::default(); 4], ..Self::default() };
        for n in 1..=4 {
            kept.channel(n, CC::Create { spec: spec(&format!("c{n}")) });
        }
        let spec = rule::Spec {
            name: "backlog".into(),
            channel_ids: vec![id(1), id(2)],
            enabled: true,
            ..Default::default()
        };
        assert!(kept.history.decide(&format!("rule-{}", id(50)), &mut RS::default(), RC::Create { spec }));
        kept
    }

    fn channel(&mut self, n: usize, command: CC) {
        let stream = format!("channel-{}", id(n as u128));
        assert!(self.history.decide(&stream, &mut self.channels[n - 1], command));
    }

    /// Enqueues the delivery `n`.
    fn tell(&mut self, n: u128, message: Message, channel: Uuid) {
        let order = Enqueued {
            message,
            channel_id: channel,
            next_attempt_at: at(0),
            max_attempts: 9,
            ..Default::default()
        };
        let mut state = DS::default();
        let command = DC::Enqueue(Box::new(order));
        assert!(self.history.decide(&format!("delivery-{}", id(n)), &mut state, command));
        self.deliveries.push((n, state));
    }

    fn attempt(&mut self, n: u128, second: i64, taken: bool) {
        let outcome = if taken {
            Outcome::Taken { code: 200, answer: None }
        } else {
            Outcome::Unanswered { error: "silence".into() }
        };
        let attempt = Tried {
            attempt_id: id(9),
            started_at: at(second),
            latency_ms: 1,
            outcome,
            at: at(second),
            jitter: 1.0,
        };
        let state =
            self.deliveries.iter_mut().find(|(known, _)| *known == n).map(|(_, state)| state).unwrap();
        assert!(self.history.decide(&format!("delivery-{}", id(n)), state, DC::Record(Box::new(attempt))));
    }

    fn read<T>(&self, read: impl Fn(&Alerts) -> T) -> T {
        let folded = self.history.fold::<Projected>(&[2, 1, 3]);
        read(&Alerts(folded.reader.clone()))
    }

    /// Since when, how often and over how many messages channel 1 fails.
    fn failing(&self) -> (Option<i64>, u32, u32) {
        let row = self.read(|alerts| alerts.channel(id(1)).unwrap().unwrap());
        (
            row.failing_since.map(|since| (since - at(0)).num_seconds()),
            row.failing_attempts,
            row.failing_deliveries,
        )
    }

    fn told(&self) -> Vec<Uuid> {
        let notices = self.read(|alerts| alerts.notices(10).unwrap());
        let mut told: Vec<_> = notices.iter().map(|notice| notice.channel_id).collect();
        told.sort();
        told
    }
}

#[test]
fn what_fails_without_a_break_is_counted_by_attempts_and_by_messages() {
    let mut kept = Kept::new();
    for n in [60, 61] {
        kept.tell(n, Message::Firing, id(1));
    }
    kept.tell(62, Message::Test, id(1));
    kept.attempt(60, 5, false);
    kept.attempt(60, 10, false);
    kept.attempt(61, 12, false);
    assert_eq!(kept.failing(), (Some(5), 3, 2));
    kept.attempt(62, 14, false);
    assert_eq!(kept.failing(), (Some(5), 3, 2), "that a test fails, somebody has seen");
    kept.attempt(61, 20, true);
    assert_eq!(kept.failing(), (None, 0, 0));
    // A message that failed before counts again, once.
    kept.attempt(60, 30, false);
    kept.attempt(60, 40, false);
    assert_eq!(kept.failing(), (Some(30), 2, 1));
    kept.channel(1, CC::Update { spec: spec("c1 mended"), expected: None });
    assert_eq!(kept.failing(), (None, 0, 0), "what was changed may be mended");
}

#[test]
fn the_other_channels_of_the_same_rules_are_told_that_one_was_disabled_until_they_are() {
    let mut kept = Kept::new();
    kept.channel(1, CC::Disable { reason: "410".into() });
    let event = kept.history.envelopes.last().unwrap().recorded.id;
    assert_eq!(kept.told(), [id(2)]);
    let notice = kept.read(|alerts| alerts.notices(10).unwrap()).remove(0);
    assert_eq!((notice.delivery_id, notice.cause), (ids::delivery(event, id(2)), event));
    assert_eq!((notice.disabled_id, notice.name.as_str(), notice.reason.as_str()), (id(1), "c1", "410"));
    kept.tell(notice.delivery_id.as_u128(), Message::Notice, id(2));
    assert_eq!(kept.told(), Vec::<Uuid>::new(), "it is enqueued");
}

#[test]
fn who_disables_a_channel_himself_needs_no_telling() {
    let mut kept = Kept::new();
    kept.channel(1, CC::Update { spec: Spec { enabled: false, ..spec("c1") }, expected: None });
    assert_eq!(kept.told(), Vec::<Uuid>::new());
}

#[test]
fn where_no_rule_names_another_all_that_are_enabled_are_told() {
    let mut kept = Kept::new();
    kept.channel(4, CC::Remove { expected: None });
    kept.channel(3, CC::Disable { reason: "silence".into() });
    assert_eq!(kept.told(), [id(1), id(2)], "neither itself nor one that was removed");
}

#[test]
fn a_channel_with_many_messages_waiting_holds_no_other_back() {
    let mut kept = Kept::new();
    for n in 100..150 {
        kept.tell(n, Message::Firing, id(1));
    }
    kept.tell(150, Message::Firing, id(2));
    let due = kept.read(|alerts| alerts.due(at(1), 3).unwrap());
    let due: Vec<_> = due.iter().map(|row| row.id.as_u128()).collect();
    assert_eq!(due, [100, 101, 102, 150]);
}
