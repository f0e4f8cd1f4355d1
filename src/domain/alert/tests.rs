//! Time lines: what is seen at which second, and what comes of it.

use proptest::prelude::*;

use super::*;
use crate::testing::given;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

fn channel(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn seen(second: i64, holds: bool) -> Observation {
    let holding = Seen::Holds { value: Some(61.0), summary: "61 wait".into(), causes: vec![channel(9)] };
    Observation {
        at: at(second),
        seen: if holds { holding } else { Seen::Ended },
        subject: Subject { rule_name: "backlog".into(), ..Subject::default() },
        channel_ids: vec![channel(1), channel(2)],
        ..Observation::default()
    }
}

fn observe(observation: Observation) -> Command {
    Command::Observe(Box::new(observation))
}

/// Makes these observations in turn; answers each event as a word with its second.
fn line(with: impl Fn(&mut Observation), points: &[(i64, bool)]) -> Vec<String> {
    let (mut state, mut words) = (Alert::default(), vec![]);
    for (second, holds) in points {
        let mut observation = seen(*second, *holds);
        with(&mut observation);
        for event in state.decide(observe(observation)).unwrap() {
            let word = match &event {
                Event::Pending(_) => "pending".to_owned(),
                Event::Fired(e) => format!("fired to {}", e.channel_ids.len()),
                Event::Acknowledged(_) => "acknowledged".into(),
                Event::Cleared(_) => "cleared".into(),
                Event::Reactivated(_) => "reactivated".into(),
                Event::Resolved(e) => format!("resolved to {}", e.channel_ids.len()),
                Event::Escalated(e) => format!("escalated to {}", e.channel_ids.len()),
                Event::Suppressed(e) => format!("held back by {}", e.held_back.by),
            };
            words.push(format!("{second} {word}"));
            state = state.evolve(&event);
        }
    }
    words
}

#[test]
fn an_alert_fires_after_its_condition_held_for_as_long_as_the_rule_says() {
    let points = [(0, false), (15, true), (30, true), (45, true), (60, true), (75, false), (90, false)];
    let words = line(|o| o.for_seconds = 30, &points);
    assert_eq!(words, ["15 pending", "45 fired to 2", "75 resolved to 2"]);
    let words = line(|o| o.for_seconds = 0, &points);
    assert_eq!(words, ["15 fired to 2", "75 resolved to 2"]);
}

#[test]
fn a_condition_that_ends_before_its_time_fires_nothing_and_tells_nobody() {
    let points = [(0, true), (15, true), (30, false), (45, true), (60, true), (75, false)];
    let words = line(|o| o.for_seconds = 60, &points);
    assert_eq!(words, ["0 pending", "30 resolved to 0", "45 pending", "75 resolved to 0"]);
}

#[test]
fn an_alert_fires_on_after_its_condition_has_ended_for_as_long_as_the_rule_says() {
    let points = [(0, true), (15, false), (30, true), (45, false), (60, false), (75, false), (90, false)];
    let words = line(|o| o.keep_firing_for_seconds = 30, &points);
    let wanted = ["0 fired to 2", "15 cleared", "30 reactivated", "45 cleared", "75 resolved to 2"];
    assert_eq!(words, wanted);
}

#[test]
fn no_data_keeps_the_state_unless_the_rule_says_otherwise() {
    let blind = |policy: NoData| {
        move |o: &mut Observation| {
            o.no_data = policy;
            if o.at >= at(15) {
                o.seen = Seen::Unknown;
            }
        }
    };
    let points = [(0, true), (15, true), (30, true)];
    assert_eq!(line(blind(NoData::Keep), &points), ["0 fired to 2"]);
    assert_eq!(line(blind(NoData::Resolve), &points), ["0 fired to 2", "15 resolved to 2"]);
    let points = [(0, false), (15, true), (30, true)];
    assert_eq!(line(blind(NoData::Keep), &points), Vec::<String>::new());
    assert_eq!(line(blind(NoData::Fire), &points), ["15 fired to 2"]);
}

#[test]
fn a_firing_alert_is_said_again_at_its_interval_until_somebody_sees_to_it() {
    let points: Vec<_> = (0..9).map(|n| (n * 15, true)).collect();
    let words = line(|o| o.repeat_interval_seconds = Some(45), &points);
    assert_eq!(words, ["0 fired to 2", "45 fired to 2", "90 fired to 2"]);
    let again = Observation { repeat_interval_seconds: Some(45), ..seen(60, true) };
    let alert = given::<Alert>([observe(seen(0, true)), Command::Acknowledge { comment: "mine".into() }]);
    assert_eq!(alert.decide(observe(again)), Ok(vec![]));
    assert_eq!(alert.decide(Command::Acknowledge { comment: "mine too".into() }), Ok(vec![]));
    let quiet = Alert::default().decide(Command::Acknowledge { comment: String::new() });
    assert_eq!(quiet.unwrap_err().code, "alert-not-firing");
}

#[test]
fn what_was_held_back_is_said_later_if_it_still_fires() {
    let silence = |o: &mut Observation| {
        let held_back = HeldBack { by: Holder::Silence, id: Some("s".into()) };
        o.held_back = (o.at < at(30)).then_some(held_back);
    };
    let points = [(0, true), (15, true), (30, true), (45, true), (60, false)];
    let words = line(silence, &points);
    assert_eq!(words, ["0 fired to 0", "0 held back by silence", "30 fired to 2", "60 resolved to 2"]);
    let words = line(silence, &[(0, true), (15, false), (30, true)]);
    let wanted = ["0 fired to 0", "0 held back by silence", "15 resolved to 0", "30 fired to 2"];
    assert_eq!(words, wanted);
}

#[test]
fn within_its_cooldown_nothing_more_is_said_of_an_alert() {
    let points = [(0, true), (15, false), (30, true), (45, true), (60, true), (75, false)];
    let words = line(|o| o.cooldown_seconds = 60, &points);
    let wanted = [
        "0 fired to 2",
        "15 resolved to 2",
        "30 fired to 0",
        "30 held back by cooldown",
        "60 fired to 2",
        "75 resolved to 2",
    ];
    assert_eq!(words, wanted);
}

#[test]
fn the_same_observation_again_is_not_an_event() {
    for observation in [seen(0, true), Observation { for_seconds: 60, ..seen(0, true) }] {
        let alert = given::<Alert>([observe(observation.clone())]);
        assert_eq!(alert.decide(observe(observation)), Ok(vec![]));
    }
}

#[test]
fn an_older_observation_changes_nothing() {
    let alert = given::<Alert>([observe(seen(30, true))]);
    assert_eq!(alert.decide(observe(seen(15, false))), Ok(vec![]));
}

#[test]
fn an_occurrence_is_told_once() {
    let occur = || Command::Occur(Box::new(seen(7, true)));
    let told = Alert::default().decide(occur()).unwrap();
    assert!(matches!(&told[..], [Event::Fired(e)] if e.occurrence && e.channel_ids.len() == 2));
    let alert = given::<Alert>([occur()]);
    assert_eq!(alert.decide(occur()), Ok(vec![]));
    assert_eq!(alert.decide(observe(seen(8, false))), Ok(vec![]), "what happened is never resolved");
    assert_eq!(alert.decide(Command::End { at: at(9) }), Ok(vec![]));
}

#[test]
fn the_end_of_a_rule_resolves_what_it_fired() {
    let alert = given::<Alert>([observe(seen(0, true))]);
    let events = alert.decide(Command::End { at: at(15) }).unwrap();
    let told = |e: &Resolved| e.reason == Reason::RuleEnded && e.channel_ids == [channel(1), channel(2)];
    assert!(matches!(&events[..], [Event::Resolved(e)] if told(e)));
    let ended = given::<Alert>([observe(seen(0, true)), Command::End { at: at(15) }]);
    assert_eq!(ended.decide(Command::End { at: at(30) }), Ok(vec![]));
}

#[test]
fn an_alert_is_tagged_with_its_rule_and_project() {
    let subject = Subject { project_module: Some("wallaby".into()), ..Subject::default() };
    let alert = Alert { subject, ..Alert::default() };
    let id = format!("{}-{}", channel(5), "f".repeat(32));
    let tags = alert.tags(&id, &Event::Cleared(Cleared::default()));
    assert_eq!(tags, ["project:wallaby".to_owned(), format!("rule:{}", channel(5))]);
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let policy = prop::sample::select(NoData::ALL.to_vec());
    let span = || prop::sample::select(vec![0u64, 15, 30, 60]);
    let seen = prop::sample::select(vec![Some(true), Some(false), None]);
    let repeat = prop::option::of(Just(30u64));
    (0i64..20, seen, policy, span(), span(), span(), repeat, any::<bool>()).prop_map(
        |(point, holds, no_data, for_seconds, keep, cooldown, repeat, silenced)| {
            let mut observation = super::tests::seen(point * 15, holds == Some(true));
            if holds.is_none() {
                observation.seen = Seen::Unknown;
            }
            Observation {
                no_data,
                for_seconds,
                keep_firing_for_seconds: keep,
                cooldown_seconds: cooldown,
                repeat_interval_seconds: repeat,
                held_back: silenced.then(HeldBack::default),
                ..observation
            }
        },
    )
}

proptest! {
    #[test]
    fn who_was_told_is_told_once_that_it_is_resolved(
        steps in prop::collection::vec(any_observation(), 0..60),
        twice in any::<bool>(),
    ) {
        let mut state = Alert::default();
        // Whether somebody was told that it fires, and not yet that it is resolved.
        let mut owed = false;
        let (mut begun, mut last) = (0, None);
        for step in steps {
            for _ in 0..=usize::from(twice) {
                for event in state.decide(observe(step.clone())).unwrap() {
                    match &event {
                        Event::Fired(e) => {
                            prop_assert!(e.number == begun || e.number == begun + 1, "firings are counted");
                            begun = e.number;
                            prop_assert_eq!(e.said == 0, e.channel_ids.is_empty());
                            owed |= !e.channel_ids.is_empty();
                        }
                        Event::Resolved(e) => {
                            prop_assert_eq!(owed, !e.channel_ids.is_empty());
                            owed = false;
                        }
                        _ => {}
                    }
                    state = state.evolve(&event);
                    prop_assert!(last <= state.at, "time never goes back");
                    last = state.at;
                }
                // The same point judged once more, by another process, says nothing new.
                prop_assert_eq!(state.decide(observe(step.clone())), Ok(vec![]));
            }
        }
    }
}

#[test]
fn an_alert_that_comes_and_goes_is_said_until_it_flaps_and_again_when_it_is_steady() {
    let points: Vec<_> = (0..10).map(|n| (n * 15, n % 2 == 0)).chain([(150, true), (165, true)]).collect();
    let words = line(|o| o.flapping = Flapping { times: 2, window_minutes: 2 }, &points);
    let wanted = [
        "0 fired to 2",
        "15 resolved to 2",
        "30 fired to 2",
        "45 resolved to 2",
        "60 fired to 0",
        "60 held back by flapping",
        "75 resolved to 0",
        "90 fired to 0",
        "90 held back by flapping",
        "105 resolved to 0",
        "120 fired to 0",
        "120 held back by flapping",
        "135 resolved to 0",
        "150 fired to 0",
        "150 held back by flapping",
    ];
    assert_eq!(words, wanted);
    let steady: Vec<_> = (0..3).flat_map(|n| [(n * 30, true), (n * 30 + 15, n == 2)]).collect();
    let steady: Vec<_> = steady.into_iter().chain((6..12).map(|n| (n * 15, true))).collect();
    let words = line(|o| o.flapping = Flapping { times: 2, window_minutes: 2 }, &steady);
    assert_eq!(words[4..], ["60 fired to 0", "60 held back by flapping", "120 fired to 2"]);
}

#[test]
fn what_nobody_acknowledges_is_told_to_others_once() {
    let escalate = |o: &mut Observation| {
        o.escalation = Some(Escalation { after_minutes: 1, channel_ids: vec![channel(3)] });
    };
    let points: Vec<_> = (0..8).map(|n| (n * 15, true)).chain([(120, false)]).collect();
    let words = line(escalate, &points);
    assert_eq!(words, ["0 fired to 2", "60 escalated to 1", "120 resolved to 3"]);
    let mut later = seen(60, true);
    escalate(&mut later);
    let mine = Command::Acknowledge { comment: "mine".into() };
    let alert = given::<Alert>([observe(seen(0, true)), mine]);
    assert_eq!(alert.decide(observe(later)), Ok(vec![]), "somebody sees to it");
}

#[test]
fn a_heartbeat_is_not_acknowledged_because_it_would_fall_silent() {
    let mut alive = seen(0, true);
    alive.subject.labels.insert("trigger".into(), "heartbeat".into());
    let alert = given::<Alert>([observe(alive)]);
    let refused = alert.decide(Command::Acknowledge { comment: String::new() }).unwrap_err();
    assert!(refused.detail.contains("disable its rule"), "{refused}");
}

#[test]
fn a_run_that_comes_late_says_what_was_missed_and_repeats_it_once_it_is_in_time() {
    let late = |o: &mut Observation| {
        o.repeat_interval_seconds = Some(30);
        o.late = o.at < at(120);
    };
    let points: Vec<_> = (0..11).map(|n| (n * 15, true)).collect();
    assert_eq!(line(late, &points), ["0 fired to 2", "120 fired to 2", "150 fired to 2"]);
}
