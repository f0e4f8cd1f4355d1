//! What each kind of trigger sees.

use super::*;

#[test]
fn a_backlog_fires_at_its_threshold_and_a_source_that_is_removed_waits_no_longer() {
    let mut line = Line::with(named("backlog", Trigger::PendingBacklog { threshold: 2 }));
    for n in [20, 21, 22] {
        line.source(n);
        line.discovered(n);
        line.until(line.second + GRID_SECONDS);
    }
    line.admitted(20);
    line.until(45).tell(&id(21).to_string(), S::Removed(s::Removed::default()));
    assert_eq!(line.until(90).sent, ["15 firing: backlog", "60 resolved: backlog ended"]);
}

#[test]
fn the_source_that_waits_longest_is_the_stale_one_and_a_second_change_does_not_make_it_younger() {
    let mut line = Line::with(named("stale", Trigger::PendingStale { max_age_seconds: 60 }));
    line.source(20);
    line.discovered(20);
    line.until(30).discovered(20);
    assert_eq!(line.summary(60), "45 S20 of p has waited for 60 s to be executed");
}

#[test]
fn discovery_stalls_when_none_ends_though_there_are_sources_and_nobody_paused_it() {
    let stall = || Line::with(named("stall", Trigger::DiscoveryStall { window_minutes: 1 }));
    let mut line = stall();
    line.source(20);
    line.until(30).tell(&id(20).to_string(), S::DiscoveryUnchanged(s::DiscoveryUnchanged::default()));
    let wanted = "90 no discovery of p has ended for 60 s, though it has 1 enabled sources";
    assert_eq!(line.summary(120), wanted);
    let mut paused = stall();
    paused.source(20);
    paused.tell("*", project::Event::Paused(project::Paused::default()));
    assert_eq!(paused.until(300).sent, Vec::<String>::new());
    assert_eq!(
        stall().until(300).sent,
        Vec::<String>::new(),
        "where there is nothing to discover nothing stalls"
    );
}

#[test]
fn an_end_is_told_with_the_step_and_the_first_line_of_the_error() {
    let mut line = Line::with(failed());
    line.execution(10);
    line.tell(&id(10).to_string(), X::Translated(x::Translated::default()));
    line.fails(10, "dependency_unavailable");
    line.execution(11);
    line.completes(11);
    let execution = id(10);
    let wanted = format!("0 execution {execution} of p: failed at submission: no such file");
    assert_eq!(line.summary(30), wanted);
}

#[test]
fn changed_data_are_told_by_project_at_once() {
    let mut line = Line::with(named("changed", Trigger::DiscoveryChanged {}));
    for n in [20, 21] {
        line.source(n);
        line.discovered(n);
    }
    assert_eq!(line.summary(30), "0 the data of 2 sources of p changed");
}

#[test]
fn an_execution_to_which_nothing_happens_is_stuck_until_something_does() {
    let mut line = Line::with(named("stuck", Trigger::ExecutionStuck { max_age_seconds: 60 }));
    line.execution(10);
    line.until(60).tell(&id(10).to_string(), X::ExecuteStarted(x::ExecuteStarted::default()));
    line.until(90).completes(10);
    assert_eq!(line.until(200).sent, ["45 firing: stuck", "75 resolved: stuck ended"]);
}

#[test]
fn a_hand_over_of_which_nothing_is_known_fires_until_it_is_settled() {
    let mut line = Line::with(named("uncertain", Trigger::SubmissionUncertain { max_age_seconds: 30 }));
    line.execution(10);
    line.tell(&id(10).to_string(), X::SubmissionUncertain(x::SubmissionUncertain::default()));
    line.until(60).tell(&id(10).to_string(), X::SubmissionRecorded(x::SubmissionRecorded::default()));
    assert_eq!(line.until(120).sent, ["15 firing: uncertain", "75 resolved: uncertain ended"]);
}

#[test]
fn a_job_ages_while_it_could_run_and_nobody_takes_it() {
    let queue = Trigger::QueueAge { max_age_seconds: 30, job_kind: Some(job::Kind::Execute) };
    let mut line = Line::with(named("queue", queue));
    let enqueue = |kind, second| {
        job::Event::Enqueued(job::Enqueued { kind, next_run_at: at(second), ..job::Enqueued::default() })
    };
    line.tell(&id(30).to_string(), enqueue(job::Kind::Execute, 30));
    line.tell(&id(31).to_string(), enqueue(job::Kind::DimPoll, 0));
    line.until(90).tell(&id(30).to_string(), job::Event::Claimed(job::Claimed::default()));
    assert_eq!(line.until(120).sent, ["60 firing: queue", "105 resolved: queue ended"]);
}

#[test]
fn a_lost_worker_is_told_of_once() {
    let mut line = Line::with(named("lost", Trigger::WorkerLost {}));
    line.tell("w1", worker::Event::Lost(worker::Lost { silent_seconds: 61 }));
    assert_eq!(line.summary(60), "0 worker w1 has been silent for 61 s and is taken for lost");
}

#[test]
fn a_read_model_that_is_behind_fires_until_it_has_caught_up_or_its_process_is_gone() {
    let lag = || Line::with(named("lag", Trigger::ProjectionLag { max_lag_seconds: 60 }));
    for (stream, event) in [
        ("w1.sources", Event::from(follower::Event::CaughtUp(follower::CaughtUp::default()))),
        ("w1", worker::Event::Stopped(worker::Stopped::default()).into()),
    ] {
        let mut line = lag();
        let fell = follower::FellBehind {
            projection: "sources".into(),
            process: "w1".into(),
            since: at(-30),
            ..follower::FellBehind::default()
        };
        line.tell("w1.sources", follower::Event::FellBehind(fell));
        line.until(45).tell(stream, event);
        assert_eq!(line.until(120).sent, ["30 firing: lag", "60 resolved: lag ended"]);
    }
}

#[test]
fn a_rate_of_errors_needs_enough_ends_and_forgets_those_before_its_window() {
    let trigger = Trigger::ErrorRate { window_minutes: 2, ratio: 0.5, min_ended: 4 };
    let mut line = Line::with(named("errors", trigger));
    for n in 10..14 {
        line.execution(n);
    }
    line.until(0);
    line.fails(10, "internal");
    line.fails(11, "internal");
    line.completes(12);
    line.until(30).completes(13);
    let said = line.summary(600);
    let wanted = "45 2 of the 4 executions of p that ended within 2 min failed; 120 ended";
    assert_eq!(said, wanted, "a window is whole minutes");
}

#[test]
fn an_expression_is_judged_for_every_project() {
    let expression = "last_hour.failed >= 2 && pending > 0".to_owned();
    let mut line = Line::with(named("odd", Trigger::Expression { expression }));
    line.source(20);
    line.discovered(20);
    for n in [10, 11] {
        line.execution(n);
        line.fails(n, "internal");
        line.until(line.second + GRID_SECONDS);
    }
    line.until(30).admitted(20);
    assert_eq!(line.until(90).sent, ["15 firing: odd", "45 resolved: odd ended"]);
}

#[test]
fn a_summary_tells_of_each_window_at_its_end() {
    let mut line = Line::with(named("daily", Trigger::DailySummary { window_hours: 1 }));
    line.until(0);
    line.execution(10);
    line.fails(10, "internal");
    line.execution(11);
    line.completes(11);
    line.execution(12);
    let said = line.summary(7200);
    let first = "3600 the last 1 h: p: 1 completed, 1 failed, 0 cancelled, 1 live; 0 sources changed, \
                 0 discoveries failed, 0 wait; 0 alerts fire";
    assert!(said.starts_with(first), "{said}");
    assert!(said.contains("; 7200 the last 1 h: p: 0 completed, 0 failed"), "{said}");
}

#[test]
fn a_heartbeat_is_said_again_and_again() {
    let heartbeat = named("alive", Trigger::Heartbeat {});
    let mut line = Line::with(Spec { repeat_interval_seconds: Some(60), ..heartbeat });
    assert_eq!(line.until(130).sent, ["0 firing: alive", "60 firing: alive", "120 firing: alive"]);
}

#[test]
fn a_rule_of_a_project_sees_that_project_and_a_global_one_sees_all() {
    for (project_module, sent) in [(Some("other".to_owned()), 0), (Some("p".to_owned()), 1), (None, 1)] {
        let mut line = Line::with(Spec { project_module, ..failed() });
        line.execution(10);
        line.fails(10, "internal");
        assert_eq!(line.until(30).sent.len(), sent);
    }
}
