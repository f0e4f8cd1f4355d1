use proptest::prelude::*;

use super::*;
use crate::testing::given;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

fn enqueue() -> Command {
    let order = Enqueued { next_attempt_at: at(0), max_attempts: MAX_ATTEMPTS, ..Enqueued::default() };
    Command::Enqueue(Box::new(order))
}

fn tried(outcome: Outcome, second: i64) -> Command {
    Command::Record(Box::new(Attempt {
        attempt_id: Uuid::from_u128(1),
        started_at: at(second),
        latency_ms: 3,
        outcome,
        at: at(second),
        jitter: 1.0,
    }))
}

fn taken() -> Outcome {
    Outcome::Taken { code: 204, answer: None }
}

fn refused(code: u16) -> Outcome {
    Outcome::Refused { code, answer: None, retry_after_seconds: None }
}

fn retry_of(events: &[Event]) -> Option<DateTime<Utc>> {
    match &events[0] {
        Event::Attempted(e) => e.retry_at,
        other => panic!("{other:?} is no attempt"),
    }
}

#[test]
fn what_was_sent_is_sent() {
    let delivery = given::<Delivery>([enqueue(), tried(taken(), 1)]);
    assert!(matches!(&delivery, Delivery::Sent(facts) if facts.attempts == 1));
    assert_eq!(delivery.decide(tried(refused(500), 2)), Ok(vec![]));
    assert_eq!(delivery.decide(enqueue()), Ok(vec![]));
    assert_eq!(delivery.decide(Command::GiveUp { reason: "gone".into() }), Ok(vec![]));
}

#[test]
fn what_trying_cannot_change_is_tried_once() {
    let waiting = given::<Delivery>([enqueue()]);
    for code in [301, 307, 400, 401, 404, 410, 413] {
        let events = waiting.decide(tried(refused(code), 1)).unwrap();
        assert!(matches!(&events[..], [Event::Attempted(_), Event::Failed(_)]), "{code}");
    }
    for code in [408, 425, 429, 500, 503] {
        let events = waiting.decide(tried(refused(code), 1)).unwrap();
        assert!(matches!(&events[..], [Event::Attempted(_)]), "{code}");
    }
    let never = waiting.decide(tried(Outcome::Impossible { error: "no url".into() }, 1)).unwrap();
    assert!(matches!(&never[..], [Event::Attempted(_), Event::Failed(e)] if e.error == "no url"));
}

#[test]
fn a_mail_server_in_trouble_is_tried_again_and_one_that_refuses_for_good_is_not() {
    let waiting = given::<Delivery>([enqueue()]);
    for (code, again) in [(421, true), (450, true), (454, true), (535, false), (550, false), (554, false)] {
        let refused = Outcome::RefusedByMail { code, answer: Some("said so".into()) };
        let events = waiting.decide(tried(refused, 1)).unwrap();
        assert_eq!(retry_of(&events).is_some(), again, "{code}");
        assert!(matches!(&events[0], Event::Attempted(e) if e.code == Some(code) && e.answer.is_some()));
    }
}

#[test]
fn the_receiver_says_when_to_come_again() {
    let waiting = given::<Delivery>([enqueue()]);
    let later = |seconds| {
        let refused = Outcome::Refused { code: 429, answer: None, retry_after_seconds: Some(seconds) };
        retry_of(&waiting.decide(tried(refused, 10)).unwrap())
    };
    assert_eq!(later(120), Some(at(130)));
    assert_eq!(later(1), Some(at(15)), "not sooner than the schedule says");
    assert_eq!(later(10_000_000), Some(at(10 + 86_400)), "not for ever");
}

#[test]
fn a_message_that_nobody_takes_is_tried_at_every_time_of_the_schedule_and_is_then_a_dead_letter() {
    let (mut delivery, mut now, mut pauses) = (given::<Delivery>([enqueue()]), at(0), vec![]);
    loop {
        let second = (now - at(0)).num_seconds();
        let silent = Outcome::Unanswered { error: "no answer within 10 s".into() };
        let events = delivery.decide(tried(silent, second)).unwrap();
        delivery = events.iter().fold(delivery, Delivery::evolve);
        let Some(next) = retry_of(&events) else { break };
        pauses.push(u32::try_from((next - now).num_seconds()).unwrap());
        now = next;
    }
    assert_eq!(pauses, SCHEDULE);
    assert!(matches!(&delivery, Delivery::Failed(facts) if facts.attempts == MAX_ATTEMPTS));
}

#[test]
fn a_dead_letter_that_is_sent_for_again_has_all_its_attempts_anew() {
    let delivery = given::<Delivery>([enqueue(), tried(refused(404), 1), Command::Requeue { at: at(60) }]);
    assert!(matches!(&delivery, Delivery::Waiting { next_attempt_at, .. } if *next_attempt_at == at(60)));
    assert_eq!(delivery.decide(Command::Requeue { at: at(61) }).unwrap_err().code, "delivery-waits");
    let events = delivery.decide(tried(refused(503), 61)).unwrap();
    assert_eq!(retry_of(&events), Some(at(66)), "the schedule begins again");
    assert!(matches!(&events[..], [Event::Attempted(e)] if e.attempt == 2), "attempts are counted on");
}

#[test]
fn a_message_whose_channel_is_gone_is_given_up() {
    let events = given::<Delivery>([enqueue()]).decide(Command::GiveUp { reason: "removed".into() });
    assert!(matches!(&events.unwrap()[..], [Event::Failed(e)] if e.error == "removed" && e.attempts == 0));
}

#[test]
fn only_a_known_delivery_takes_commands() {
    assert_eq!(Delivery::Absent.decide(tried(taken(), 1)).unwrap_err().code, "delivery-unknown");
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(taken()),
        (300u16..600).prop_map(refused),
        (400u16..600).prop_map(|code| Outcome::RefusedByMail { code, answer: None }),
        Just(Outcome::Unanswered { error: "silence".into() }),
        Just(Outcome::Impossible { error: "never".into() }),
    ]
}

proptest! {
    #[test]
    fn whatever_receivers_do_a_delivery_ends_once_and_its_attempts_are_counted(
        steps in prop::collection::vec((any_outcome(), any::<bool>(), 0.0f64..3.0), 0..60),
    ) {
        let mut state = given::<Delivery>([enqueue()]);
        let (mut attempts, mut ended, mut second) = (0, false, 0);
        for (outcome, again, jitter) in steps {
            second += 1;
            let command = match tried(outcome, second) {
                _ if again => Command::Requeue { at: at(second) },
                Command::Record(attempt) => Command::Record(Box::new(Attempt { jitter, ..*attempt })),
                other => other,
            };
            for event in state.decide(command).unwrap_or_default() {
                match &event {
                    Event::Attempted(e) => {
                        prop_assert!(!ended);
                        attempts += 1;
                        prop_assert_eq!(e.attempt, attempts);
                        prop_assert!(e.retry_at.is_none_or(|next| next > at(second)));
                    }
                    Event::Sent(_) | Event::Failed(_) => {
                        prop_assert!(!ended);
                        ended = true;
                    }
                    Event::Requeued(_) => {
                        prop_assert!(ended);
                        ended = false;
                    }
                    Event::Enqueued(_) => prop_assert!(false, "it is enqueued once"),
                }
                state = state.evolve(&event);
            }
            prop_assert_eq!(ended, !matches!(state, Delivery::Waiting { .. }));
        }
    }
}
