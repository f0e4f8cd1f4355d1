use std::collections::BTreeMap;

use beampipe_domain::alert::{Alert as AS, Command as AC, Observation, Seen, Subject};
use beampipe_domain::channel::{Channel as CS, Command as CC, Spec, Tested};
use beampipe_domain::delivery::{
    Attempt as Tried, Command as DC, Delivery as DS, Enqueued, Message, Outcome,
};
use beampipe_domain::id as ids;
use beampipe_domain::rule::{self, Command as RC, Rule as RS, Severity};
use beampipe_domain::silence::{self, Command as SC, Silence as SS};
use uuid::Uuid;

use super::*;
use crate::Window;
use crate::testing::{Folded, History, at, id};

fn alert_id() -> String {
    format!("{}-{}", id(5), ids::fingerprint(&BTreeMap::new(), None))
}

/// A channel, a rule that names it, and its alert.
#[derive(Default)]
struct Told {
    history: History,
    alert: AS,
}

impl Told {
    fn new() -> Self {
        let mut history = History::default();
        let spec = Spec { name: "ops".into(), enabled: true, ..Spec::default() };
        assert!(history.decide(&format!("channel-{}", id(1)), &mut CS::default(), CC::Create { spec }));
        let spec = rule::Spec { name: "backlog".into(), channel_ids: vec![id(1)], ..rule::Spec::default() };
        assert!(history.decide(&format!("rule-{}", id(5)), &mut RS::default(), RC::Create { spec }));
        Self { history, alert: AS::default() }
    }

    fn see(&mut self, second: i64, holds: bool) {
        let summary = "61 wait".to_owned();
        let seen = Seen::Holds { value: Some(61.0), summary, causes: vec![id(9)] };
        let observation = Observation {
            at: at(second),
            seen: if holds { seen } else { Seen::Ended },
            subject: Subject {
                rule_id: id(5),
                rule_name: "backlog".into(),
                severity: Severity::Critical,
                ..Subject::default()
            },
            channel_ids: vec![id(1)],
            ..Observation::default()
        };
        let command = AC::Observe(Box::new(observation));
        assert!(self.history.decide(&format!("alert-{}", alert_id()), &mut self.alert, command));
    }

    /// The delivery that the last event calls for.
    fn called_for(&self) -> Uuid {
        let last = self.history.envelopes.last().unwrap();
        ids::delivery(last.recorded.id, id(1))
    }

    fn deliver(&mut self, delivery: Uuid, state: &mut DS, command: DC) {
        assert!(self.history.decide(&format!("delivery-{delivery}"), state, command));
    }

    fn fold(&self) -> (Folded, Alerts) {
        let folded = self.history.fold::<Projected>(&[2, 1]);
        let alerts = Alerts(folded.reader.clone());
        (folded, alerts)
    }
}

fn enqueue() -> DC {
    DC::Enqueue(Box::new(Enqueued {
        message: Message::Firing,
        channel_id: id(1),
        channel_kind: "webhook".into(),
        rule_id: Some(id(5)),
        alert: Some(alert_id()),
        next_attempt_at: at(30),
        max_attempts: 3,
        ..Enqueued::default()
    }))
}

fn tried(outcome: Outcome, second: i64) -> DC {
    let attempt = Tried {
        attempt_id: id(77),
        started_at: at(second),
        latency_ms: 4,
        outcome,
        at: at(second),
        jitter: 1.0,
    };
    DC::Record(Box::new(attempt))
}

#[test]
fn a_message_is_due_from_its_time_on_and_what_fires_is_counted() {
    let mut told = Told::new();
    told.see(10, true);
    let delivery = told.called_for();
    let mut state = DS::default();
    told.deliver(delivery, &mut state, enqueue());
    let (folded, alerts) = told.fold();
    assert_eq!(alerts.due(at(29), 10).unwrap(), vec![]);
    assert_eq!(alerts.due(at(30), 10).unwrap()[0].id, delivery);
    assert_eq!(folded.gauges.alerts.firing["critical"], 1);
    assert_eq!(folded.gauges.alerts.firing["info"], 0);
    told.see(40, false);
    let (folded, alerts) = told.fold();
    assert_eq!(folded.gauges.alerts.firing["critical"], 0);
    let rule = alerts.rule(id(5)).unwrap().unwrap();
    assert_eq!(rule.last_fired_at, Some(at(10)));
    assert_eq!(alerts.rules_of_channel(id(1)).unwrap().len(), 1);
}

#[test]
fn a_delivery_shows_its_attempts_and_its_end_is_counted_by_kind() {
    let mut told = Told::new();
    told.see(10, true);
    let (delivery, mut state) = (told.called_for(), DS::default());
    told.deliver(delivery, &mut state, enqueue());
    let refused = Outcome::Refused { code: 503, answer: Some("busy".into()), retry_after_seconds: None };
    told.deliver(delivery, &mut state, tried(refused, 30));
    let (_folded, alerts) = told.fold();
    let row = alerts.delivery(delivery).unwrap().unwrap();
    assert_eq!((row.status.as_str(), row.code, row.next_attempt_at), ("retrying", Some(503), Some(at(35))));
    told.deliver(delivery, &mut state, tried(Outcome::Taken { code: 200, answer: None }, 35));
    let (folded, alerts) = told.fold();
    let row = alerts.delivery(delivery).unwrap().unwrap();
    assert_eq!((row.status.as_str(), row.attempts, row.next_attempt_at), ("sent", 2, None));
    let codes: Vec<_> = alerts.attempts(delivery).unwrap().iter().map(|a| (a.attempt, a.code)).collect();
    assert_eq!(codes, [(1, Some(503)), (2, Some(200))]);
    let ends = &folded.gauges.alerts.deliveries;
    assert_eq!(ends[&("webhook".to_owned(), "sent".to_owned())], 1);
    assert_eq!(
        ends[&("email".to_owned(), "failed".to_owned())],
        0,
        "known words are there before they happen"
    );
    let sent = Deliveries { status: Some("sent".into()), rule_id: Some(id(5)), ..Deliveries::default() };
    assert_eq!(alerts.deliveries(&sent, Window::first(10)).unwrap().len(), 1);
    let none = Deliveries { channel_id: Some(id(2)), ..Deliveries::default() };
    assert_eq!(alerts.deliveries(&none, Window::first(10)).unwrap(), vec![]);
}

#[test]
fn a_second_firing_shows_nothing_of_the_first() {
    let mut told = Told::new();
    told.see(10, true);
    let acknowledge = AC::Acknowledge { comment: "mine".into() };
    assert!(told.history.decide(&format!("alert-{}", alert_id()), &mut told.alert, acknowledge));
    let row = told.fold().1.alert(&alert_id()).unwrap().unwrap();
    assert_eq!((row.acknowledgement.as_deref(), row.number), (Some("mine"), 1));
    told.see(20, false);
    told.see(30, true);
    let (_folded, alerts) = told.fold();
    let row = alerts.alert(&alert_id()).unwrap().unwrap();
    assert_eq!((row.acknowledgement, row.resolved_at, row.number), (None, None, 2));
    assert_eq!((row.state.as_str(), row.fired_at), ("firing", Some(at(30))));
    assert_eq!(row.causes, [id(9).to_string()]);
    assert_eq!(alerts.alerts(Some("firing"), Some(id(5)), Window::first(10)).unwrap().len(), 1);
}

#[test]
fn a_channel_shows_its_last_test_and_why_it_was_disabled_until_a_person_enables_it() {
    let (mut history, mut state) = (History::default(), CS::default());
    let stream = format!("channel-{}", id(1));
    let spec = Spec { name: "ops".into(), enabled: true, ..Spec::default() };
    assert!(history.decide(&stream, &mut state, CC::Create { spec: spec.clone() }));
    let tested = Tested { taken: false, code: Some(410), ..Tested::default() };
    assert!(history.decide(&stream, &mut state, CC::RecordTest(tested)));
    assert!(history.decide(&stream, &mut state, CC::Disable { reason: "gone".into() }));
    let channel = |history: &History| {
        let folded = history.fold::<Projected>(&[1]);
        Alerts(folded.reader.clone()).channel(id(1)).unwrap().unwrap()
    };
    let row = channel(&history);
    assert_eq!((row.last_test_at, row.last_test_code), (Some(at(2)), Some(410)));
    assert_eq!((row.enabled, row.disabled_reason.as_deref(), row.channel_revision), (false, Some("gone"), 2));
    assert!(history.decide(&stream, &mut state, CC::Update { spec, expected: Some(2) }));
    let row = channel(&history);
    assert_eq!((row.enabled, row.disabled_reason, row.channel_revision), (true, None, 3));
    assert!(history.decide(&stream, &mut state, CC::Remove { expected: None }));
    let folded = history.fold::<Projected>(&[]);
    let alerts = Alerts(folded.reader.clone());
    assert_eq!(alerts.channels(Window::first(10)).unwrap(), vec![]);
    assert!(alerts.channel(id(1)).unwrap().unwrap().removed);
}

#[test]
fn a_silence_is_listed_as_holding_back_until_it_ends_or_is_ended() {
    let mut history = History::default();
    let set = |n: u128, history: &mut History| {
        let mut state = SS::default();
        let matcher = silence::Matcher { name: "rule".into(), value: "backlog".into(), ..Default::default() };
        let set = silence::Created {
            matchers: vec![matcher],
            comment: "storm".into(),
            starts_at: at(0),
            ends_at: at(100),
        };
        assert!(history.decide(&format!("silence-{}", id(n)), &mut state, SC::Create(set)));
        state
    };
    set(1, &mut history);
    let mut second = set(2, &mut history);
    assert!(history.decide(&format!("silence-{}", id(2)), &mut second, SC::Expire { at: at(50) }));
    let folded = history.fold::<Projected>(&[]);
    let alerts = Alerts(folded.reader.clone());
    let still = |second| alerts.silences(Some(at(second)), Window::first(10)).unwrap().len();
    assert_eq!((still(60), still(100)), (1, 0));
    assert_eq!(alerts.silences(None, Window::first(10)).unwrap().len(), 2);
    assert_eq!(alerts.silence(id(2)).unwrap().unwrap().expired_at, Some(at(50)));
}

#[test]
fn the_rows_do_not_depend_on_where_batches_are_cut() {
    let mut told = Told::new();
    told.see(10, true);
    let (delivery, mut state) = (told.called_for(), DS::default());
    told.deliver(delivery, &mut state, enqueue());
    told.deliver(delivery, &mut state, tried(Outcome::Unanswered { error: "silence".into() }, 31));
    told.see(40, false);
    let whole = told.history.fold::<Projected>(&[]).rows();
    // A checkpoint is of the batch; everything else is of the events.
    let of = |rows: crate::testing::Tables| -> crate::testing::Tables {
        rows.into_iter().filter(|(table, _)| table != "checkpoint").collect()
    };
    let one_by_one = vec![1; told.history.envelopes.len()];
    assert_eq!(of(told.history.fold::<Projected>(&one_by_one).rows()), of(whole));
}

#[test]
fn that_an_alert_is_resolved_does_not_overtake_that_it_fires() {
    let mut told = Told::new();
    told.see(10, true);
    let (fires, mut first) = (told.called_for(), DS::default());
    told.see(20, false);
    let (resolved, mut second) = (told.called_for(), DS::default());
    told.deliver(fires, &mut first, enqueue());
    told.deliver(resolved, &mut second, enqueue());
    told.deliver(fires, &mut first, tried(Outcome::Unanswered { error: "silence".into() }, 30));
    let due = |told: &Told, second| {
        let (_folded, alerts) = told.fold();
        let due = alerts.due(at(second), 10).unwrap();
        due.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(due(&told, 31), Vec::<Uuid>::new());
    assert_eq!(due(&told, 35), [fires]);
    told.deliver(fires, &mut first, tried(Outcome::Taken { code: 200, answer: None }, 35));
    assert_eq!(due(&told, 36), [resolved]);
}
