use beampipe_domain::job::{Command as C, Enqueued, Job as State};
use beampipe_domain::worker;
use proptest::prelude::*;

use super::*;
use crate::reader::Window;
use crate::testing::{Folded, History, at, id};

fn stream(n: u128) -> String {
    format!("job-{}", id(n))
}

fn enqueue(kind: Kind, capability: Option<&str>, due: i64) -> C {
    C::Enqueue(Enqueued {
        kind,
        payload: serde_json::json!({"n": 1}),
        project_module: Some("p".into()),
        execution_id: Some(id(50)),
        required_capability: capability.map(str::to_owned),
        idempotency_key: Some("key".into()),
        max_attempts: 3,
        next_run_at: at(due),
    })
}

fn claim(n: u128, taken_from: Option<u128>) -> C {
    C::Claim { worker_id: format!("w{}", n % 2), claim_id: id(n), taken_from: taken_from.map(id) }
}

fn fail(n: u128, retry: Option<i64>) -> C {
    C::Fail { claim_id: id(n), error: "x".into(), duration_ms: 7, retry_at: retry.map(at) }
}

fn given(history: &mut History, n: u128, commands: impl IntoIterator<Item = C>) -> State {
    let mut state = State::default();
    for command in commands {
        assert!(history.decide(&stream(n), &mut state, command.clone()), "{command:?} on {state:?}");
    }
    state
}

fn then(history: &History) -> (Jobs, Folded) {
    let folded = history.fold::<Projected>(&[]);
    (Jobs(folded.reader.clone()), folded)
}

fn started(history: &mut History, worker: &str, pool: &str) {
    let started = worker::Started { pool: pool.into(), ..worker::Started::default() };
    history.tell(&format!("worker-{worker}"), worker::Event::Started(started));
}

#[test]
fn a_claimed_job_is_a_lease_of_its_workers_pool() {
    let mut history = History::default();
    started(&mut history, "w1", "slurm");
    let mut state = given(&mut history, 1, [enqueue(Kind::Execute, None, 0), claim(1, None)]);
    let (jobs, folded) = then(&history);
    let job = jobs.get(id(1)).unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.worker_id.as_deref(), job.attempts), ("running", Some("w1"), 1));
    assert_eq!((job.claim_id, job.claimed_at), (Some(id(1)), Some(at(3))));
    assert_eq!(folded.gauges.jobs.leases_by_pool["slurm"], 1);
    assert_eq!((jobs.leases_of("w1").unwrap(), jobs.claimed(9).unwrap().len()), (1, 1));
    assert!(history.decide(
        &stream(1),
        &mut state,
        C::Complete { claim_id: id(1), duration_ms: 4, result: Some(serde_json::json!({"done": 3})) }
    ));
    let (jobs, folded) = then(&history);
    let job = jobs.get(id(1)).unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.worker_id, job.duration_ms), ("completed", None, Some(4)));
    assert_eq!(folded.gauges.jobs.leases_by_pool["slurm"], 0);
    assert_eq!(jobs.leases_of("w1").unwrap(), 0);
    assert_eq!(jobs.unfinished_by_key("key").unwrap(), None);
}

#[test]
fn ready_is_what_is_due_and_within_the_capabilities() {
    let mut history = History::default();
    given(&mut history, 1, [enqueue(Kind::Execute, Some("dim"), 5)]);
    given(&mut history, 2, [enqueue(Kind::DiscoverBatch, Some("tap"), 3)]);
    given(&mut history, 3, [enqueue(Kind::Execute, None, 4)]);
    given(&mut history, 4, [enqueue(Kind::Execute, None, 60)]);
    let (jobs, folded) = then(&history);
    let ready = |now, capabilities: &[&str], kinds: Option<&[Kind]>| {
        let capabilities: Vec<String> = capabilities.iter().map(|c| (*c).to_owned()).collect();
        let ready = jobs.ready(at(now), &capabilities, kinds, &[], 9).unwrap();
        ready.iter().map(|job| job.id.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(ready(10, &["dim", "tap"], None), [2, 3, 1], "the longest due first");
    assert_eq!(ready(10, &["dim"], None), [3, 1]);
    assert_eq!(ready(10, &[], None), [3]);
    assert_eq!(ready(10, &["dim", "tap"], Some(&[Kind::DiscoverBatch])), [2]);
    assert_eq!(ready(60, &[], None), [3, 4]);
    assert_eq!(jobs.next_due_at().unwrap(), Some(at(3)));
    assert_eq!(jobs.list(Window::first(2)).unwrap()[0].id, id(4));
    assert_eq!(jobs.unfinished_for_execution(id(50), Kind::DiscoverBatch).unwrap().unwrap().id, id(2));
    assert_eq!(jobs.of_execution(id(50)).unwrap().len(), 4);
    let gauges = &folded.gauges.jobs;
    assert_eq!((gauges.queue_depth, gauges.running), (4, 0));
    assert_eq!((gauges.queued["execute"], gauges.oldest_due_at["execute"]), (3, Some(at(4))));
    assert_eq!((gauges.queued["dim_poll"], gauges.oldest_due_at["dim_poll"]), (0, None));
    assert_eq!(gauges.entered[&("dim_poll".into(), "dead_lettered".into())], 0, "zeros are shown");
}

#[test]
fn a_retry_is_queued_and_a_dead_letter_is_listed_until_it_is_requeued() {
    let mut history = History::default();
    let way =
        [enqueue(Kind::Execute, None, 0), claim(1, None), fail(1, Some(30)), claim(2, None), fail(2, None)];
    let mut state = given(&mut history, 1, way);
    let (jobs, folded) = then(&history);
    assert_eq!(jobs.dead(9).unwrap()[0].last_error.as_deref(), Some("x"));
    assert_eq!(folded.gauges.jobs.dead, 1);
    assert_eq!(folded.gauges.jobs.entered[&("execute".into(), "queued".into())], 2);
    assert_eq!(folded.gauges.jobs.entered[&("execute".into(), "running".into())], 2);
    let requeue = C::Requeue { next_run_at: at(99), reason: "fixed".into() };
    assert!(history.decide(&stream(1), &mut state, requeue));
    let job = then(&history).0.get(id(1)).unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.attempts, job.next_run_at), ("queued", 0, at(99)));
}

#[test]
fn a_takeover_moves_the_lease() {
    let mut history = History::default();
    started(&mut history, "w1", "a");
    started(&mut history, "w0", "b");
    given(&mut history, 1, [enqueue(Kind::Execute, None, 0), claim(1, None), claim(2, Some(1))]);
    let (jobs, folded) = then(&history);
    assert_eq!((jobs.leases_of("w1").unwrap(), jobs.leases_of("w0").unwrap()), (0, 1));
    assert_eq!(folded.gauges.jobs.leases_by_pool, [("a".to_owned(), 0), ("b".to_owned(), 1)].into());
    assert_eq!(folded.gauges.jobs.entered[&("execute".into(), "running".into())], 2);
    assert_eq!(folded.gauges.jobs.running, 1);
}

fn history(steps: Vec<(u128, usize)>) -> History {
    let mut history = History::default();
    started(&mut history, "w0", "a");
    let mut states: std::collections::HashMap<u128, State> = Default::default();
    for (index, (n, step)) in steps.into_iter().enumerate() {
        let state = states.entry(n).or_default();
        let present = match state {
            State::Claimed { claim_id, .. } => Some(claim_id.as_u128()),
            _ => None,
        };
        let claimed = present.unwrap_or(0);
        let command = match step {
            0 => enqueue(Kind::ALL[index % Kind::ALL.len()], None, index as i64),
            1..=3 => claim(100 + index as u128, present),
            4 => fail(claimed, Some(index as i64)),
            5 => fail(claimed, None),
            6 => C::HandBack { claim_id: id(claimed), reason: "stop".into(), next_run_at: at(1) },
            7 => C::Complete { claim_id: id(claimed), duration_ms: 1, result: None },
            _ => C::Requeue { next_run_at: at(2), reason: "r".into() },
        };
        history.decide(&stream(n), state, command);
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_rows_do_not_depend_on_where_batches_are_cut(
        steps in prop::collection::vec((1u128..6, 0usize..9), 1..120),
        sizes in prop::collection::vec(0usize..9, 0..30),
    ) {
        let history = history(steps);
        let whole = history.fold::<Projected>(&[]).rows();
        prop_assert_eq!(history.fold::<Projected>(&sizes).rows(), whole.clone());
        let each = vec![1; history.envelopes.len()];
        prop_assert_eq!(history.fold::<Projected>(&each).rows(), whole);
    }

    #[test]
    fn the_numbers_equal_a_recount(steps in prop::collection::vec((1u128..9, 0usize..9), 1..200)) {
        let history = history(steps);
        let folded = history.fold::<Projected>(&[]);
        let gauges = &folded.gauges.jobs;
        for ((kind, status), n) in &gauges.by_kind_status {
            let sql = format!("SELECT count(*) FROM jobs WHERE kind = '{kind}' AND status = '{status}'");
            prop_assert_eq!(*n, folded.number(&sql), "{} {}", kind, status);
        }
        let claimed = folded.number("SELECT count(*) FROM jobs WHERE status = 'running'");
        prop_assert_eq!(gauges.leases_by_pool.values().sum::<u64>(), claimed);
        prop_assert_eq!(gauges.queue_depth, folded.number("SELECT count(*) FROM jobs WHERE status = 'queued'"));
    }

    #[test]
    fn attempts_are_what_the_decider_says(steps in prop::collection::vec((1u128..2, 0usize..9), 1..60)) {
        let history = history(steps);
        let events = history.envelopes.iter().filter_map(|envelope| State::pick(&envelope.event));
        let facts = events.fold(State::default(), State::evolve).facts().cloned();
        let job = then(&history).0.get(id(1)).unwrap();
        prop_assert_eq!(job.map(|job| job.attempts), facts.map(|facts| facts.attempts));
    }
}

use beampipe_domain::Aggregate as _;

#[test]
fn a_job_that_was_handed_back_keeps_the_reason() {
    let mut history = History::default();
    let back = C::HandBack { claim_id: id(1), reason: "no translator".into(), next_run_at: at(30) };
    given(&mut history, 1, [enqueue(Kind::Execute, None, 0), claim(1, None), back]);
    let job = then(&history).0.get(id(1)).unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.attempts, job.next_run_at), ("queued", 0, at(30)));
    assert_eq!(job.last_error.as_deref(), Some("no translator"));
}
