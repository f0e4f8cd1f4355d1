//! What the settings of a rule do.

use super::*;

#[test]
fn a_rule_fires_once_its_condition_held_for_as_long_as_it_says_and_tells_of_the_end() {
    let mut line = Line::with(Spec { for_seconds: 30, ..away() });
    line.dependency("dim", false);
    line.until(60).dependency("dim", true);
    line.until(120);
    assert_eq!(line.sent, ["30 firing: away", "75 resolved: away ended"]);
}

#[test]
fn what_ends_before_its_time_is_told_to_nobody() {
    let mut line = Line::with(Spec { for_seconds: 60, ..away() });
    line.dependency("dim", false);
    line.until(30).dependency("dim", true);
    line.until(120);
    assert_eq!(line.sent, Vec::<String>::new());
}

#[test]
fn an_alert_fires_on_for_as_long_as_the_rule_says_and_its_return_is_no_news() {
    let mut line = Line::with(Spec { keep_firing_for_seconds: 60, ..away() });
    line.dependency("dim", false);
    line.until(15).dependency("dim", true);
    line.until(45).dependency("dim", false);
    line.until(60).dependency("dim", true);
    line.until(180);
    assert_eq!(line.sent, ["0 firing: away", "135 resolved: away ended"]);
}

#[test]
fn a_firing_alert_is_repeated_at_its_interval() {
    let mut line = Line::with(Spec { repeat_interval_seconds: Some(60), ..away() });
    line.dependency("dim", false);
    line.until(150);
    assert_eq!(line.sent, ["0 firing: away", "60 firing: away", "120 firing: away"]);
}

#[test]
fn what_was_never_seen_is_as_the_rule_says() {
    let mut keep = Line::with(away());
    assert_eq!(keep.until(60).sent, Vec::<String>::new());
    let mut fire = Line::with(Spec { no_data: NoData::Fire, ..away() });
    fire.until(30).dependency("dim", true);
    assert_eq!(fire.until(60).sent, ["0 firing: away", "45 resolved: away ended"]);
}

#[test]
fn a_group_waits_for_others_and_keeps_its_distance() {
    let spec = Spec {
        group_by: Some(vec!["project_module".into()]),
        group_wait_seconds: 30,
        group_interval_seconds: 300,
        ..failed()
    };
    let mut line = Line::with(spec);
    for n in [10, 11, 12, 13] {
        line.execution(n);
    }
    line.fails(10, "internal");
    line.until(15).fails(11, "internal");
    line.until(60).fails(12, "timeout");
    line.until(120).fails(13, "timeout");
    line.until(600);
    let wanted = ["30 firing: failed, failed", "330 firing: failed, failed"];
    assert_eq!(line.sent, wanted, "first after the wait, then not before the interval is over");
}

#[test]
fn groups_are_told_apart_by_their_labels_and_alerts_without_a_group_by_themselves() {
    let group_by = Some(vec!["failure_class".to_owned()]);
    for (group_by, many) in [(group_by, 2), (Some(vec![]), 1), (None, 3)] {
        let mut line = Line::with(Spec { group_by, ..failed() });
        for (n, class) in [(10, "internal"), (11, "timeout"), (12, "internal")] {
            line.execution(n);
            line.fails(n, class);
        }
        assert_eq!(line.until(30).sent.len(), many, "{:?}", line.sent);
    }
}

#[test]
fn what_ends_while_its_group_waits_is_told_of_in_one_message() {
    let grouped = Spec { group_by: Some(vec!["rule".into()]), group_wait_seconds: 60, ..away() };
    let mut line = Line::with(grouped);
    line.dependency("dim", false);
    line.until(15).dependency("dim", true);
    assert_eq!(line.until(120).sent, ["60 resolved: away ended"]);
}

#[test]
fn a_silence_holds_back_from_its_beginning_to_its_end_and_what_still_fires_is_said_then() {
    let mut line = Line::with(away());
    line.silence("dependency", "dim", 0, 60);
    line.dependency("dim", false);
    assert_eq!(line.until(120).sent, ["60 firing: away"]);
    let mut other = Line::with(away());
    other.silence("dependency", "tm", 0, 60);
    other.dependency("dim", false);
    assert_eq!(other.until(120).sent, ["0 firing: away"], "a silence of something else holds nothing back");
}

#[test]
fn what_fired_and_ended_in_silence_is_told_to_nobody_and_who_was_told_before_hears_of_the_end() {
    let mut line = Line::with(away());
    line.silence("rule", "away", 0, 60);
    line.dependency("dim", false);
    line.until(30).dependency("dim", true);
    assert_eq!(line.until(120).sent, Vec::<String>::new());
    let mut known = Line::with(away());
    known.dependency("dim", false);
    known.until(15).silence("rule", "away", 15, 600);
    known.until(30).dependency("dim", true);
    assert_eq!(known.until(120).sent, ["0 firing: away", "45 resolved: away ended"]);
}

#[test]
fn an_archive_that_is_away_holds_back_what_depends_on_it() {
    let archive = Trigger::DependencyDown { dependency: "tap_casda".into() };
    let mut line = Line::with(named("archive", archive));
    line.rule(2, named("stall", Trigger::DiscoveryStall { window_minutes: 1 }));
    line.source(20);
    line.until(30).dependency("tap_casda", false);
    line.until(90).dependency("tap_casda", true);
    line.until(120);
    line.sent.sort();
    let wanted = ["105 firing: stall", "105 resolved: archive ended", "45 firing: archive"];
    assert_eq!(
        line.sent, wanted,
        "the stall is said when the archive is back and nothing was discovered yet"
    );
}

#[test]
fn an_inhibition_can_ask_for_equal_labels() {
    let matcher =
        silence::Matcher { name: "rule".into(), value: "failed".into(), ..silence::Matcher::default() };
    let inhibits = rule::Inhibits { matchers: vec![matcher], equal: vec!["team".into()] };
    let team = |name: &str| [("team".to_owned(), name.to_owned())].into();
    for (name, sent) in [("a", 1), ("b", 2)] {
        let mut line =
            Line::with(Spec { inhibits: Some(vec![inhibits.clone()]), labels: team("a"), ..away() });
        line.rule(2, Spec { labels: team(name), ..failed() });
        line.dependency("dim", false);
        line.execution(10);
        line.fails(10, "internal");
        assert_eq!(line.until(30).sent.len(), sent, "{name}: {:?}", line.sent);
    }
}

#[test]
fn what_comes_and_goes_is_said_a_few_times_and_then_when_it_is_steady() {
    let mut line = Line::with(Spec { flapping: Flapping { times: 2, window_minutes: 5 }, ..away() });
    for n in 0..8 {
        line.dependency("dim", n % 2 == 1);
        line.until(n * 15);
    }
    assert_eq!(line.sent.len(), 4, "{:?}", line.sent);
    line.until(240).dependency("dim", false);
    line.until(600);
    assert_eq!(line.sent[4..], ["360 firing: away"]);
}

#[test]
fn in_quiet_hours_what_is_not_urgent_waits_and_comes_as_one() {
    let night = QuietHours { from_minute: 0, to_minute: 10, utc_offset_minutes: 0 };
    let night_of_failures = |severity| {
        let group_by = Some(vec!["rule".into()]);
        let mut line = Line::with(Spec { severity, quiet_hours: Some(night), group_by, ..failed() });
        for n in 0..5_u8 {
            line.execution(u128::from(n) + 10);
            line.fails(u128::from(n) + 10, "internal");
            line.until(i64::from(n) * 60);
        }
        line.until(900).sent.clone()
    };
    assert_eq!(night_of_failures(Severity::Info), ["600 firing: failed, failed, failed, failed, failed"]);
    assert_eq!(night_of_failures(Severity::Critical).len(), 5);
}

#[test]
fn what_nobody_acknowledges_goes_to_others_and_all_hear_of_the_end() {
    let escalation = Some(Escalation { after_minutes: 1, channel_ids: vec![id(OTHER)] });
    let mut line = Line::with(Spec { escalation, ..away() });
    line.dependency("dim", false);
    line.until(90).dependency("dim", true);
    line.until(120);
    let wanted = [
        "0 firing: away",
        "60 firing to the other: away",
        "105 resolved: away ended",
        "105 resolved to the other: away ended",
    ];
    assert_eq!(line.sent, wanted);
}

#[test]
fn a_cooldown_holds_back_what_happens_soon_after() {
    let mut line = Line::with(Spec { cooldown_minutes: 2, ..failed() });
    for (n, second) in [(10, 0), (11, 60), (12, 150)] {
        line.until(second - 15).execution(n);
        line.fails(n, "internal");
    }
    assert_eq!(line.until(300).sent, ["0 firing: failed", "150 firing: failed"]);
}

#[test]
fn a_rule_that_ends_ends_its_alerts_and_one_that_changes_its_mind_too() {
    let mut line = Line::with(away());
    line.dependency("dim", false);
    line.until(15).tell(&id(1).to_string(), rule::Event::Removed(rule::Removed::default()));
    assert_eq!(line.until(60).sent, ["0 firing: away", "30 resolved: away ended"]);
    let mut changed = Line::with(away());
    changed.dependency("dim", false);
    let other = Spec {
        enabled: true,
        channel_ids: vec![id(CHANNEL)],
        ..named("away", Trigger::DependencyDown { dependency: "tm".into() })
    };
    let updated = rule::Event::Updated(rule::Updated { version: 2, spec: other });
    changed.until(15).tell(&id(1).to_string(), updated);
    assert_eq!(changed.until(60).sent, ["0 firing: away", "30 resolved: away ended"]);
}

#[test]
fn a_rule_does_not_tell_of_what_happened_before_it_was_there() {
    let mut line = Line::begin();
    line.execution(10);
    line.fails(10, "internal");
    line.second += 5;
    line.rule(1, failed());
    line.second -= 5;
    assert_eq!(line.until(60).sent, Vec::<String>::new());
}

#[test]
fn a_run_that_comes_late_goes_through_the_missed_points_in_order_and_says_the_same() {
    let story = |line: &mut Line| {
        line.dependency("dim", false);
        line.until(45).after(|line| line.dependency("dim", true));
        line.until(90).after(|line| line.dependency("dim", false));
        line.until(120).after(|line| line.execution(10));
        line.until(135).after(|line| line.fails(10, "internal"));
        line.until(300);
    };
    let mut live = Line::with(Spec { for_seconds: 15, ..away() });
    live.rule(2, Spec { group_by: Some(vec!["rule".into()]), group_wait_seconds: 60, ..failed() });
    story(&mut live);
    assert_eq!(live.sent.len(), 4, "{:?}", live.sent);
    let mut late = Line { second: -GRID_SECONDS, ..Line::default() };
    for told in &live.log {
        late.run.take(told.clone());
    }
    assert_eq!(late.until(300).sent, live.sent);
}

#[test]
fn a_clock_that_runs_ahead_does_not_stop_the_time_of_others() {
    let mut line = Line::with(away());
    line.dependency("dim", false);
    let mut ahead = line.log.last().unwrap().clone();
    ahead.occurred_at += TimeDelta::hours(1);
    ahead.event = dependency::Event::Up(dependency::Up::default()).into();
    ahead.stream = "other".into();
    line.run.take(ahead);
    line.until(15).dependency("dim", true);
    assert_eq!(line.until(60).sent, ["0 firing: away", "30 resolved: away ended"]);
}

#[test]
fn what_happened_before_a_point_that_was_reached_and_not_judged_is_not_forgotten() {
    let mut line = Line::with(failed());
    line.execution(10);
    line.fails(10, "internal");
    let timeline = &mut line.run.timeline;
    timeline.pass_through(at(-GRID_SECONDS * 2));
    // Judging it failed, and for some time another process might have acted.
    timeline.reach(at(0));
    timeline.pass_through(at(-GRID_SECONDS * 2));
    assert_eq!(timeline.facts.happened.len(), 1);
    assert_eq!(line.until(0).sent, ["0 firing: failed"]);
    line.run.timeline.pass_through(at(0));
    assert_eq!(line.run.timeline.facts.happened.len(), 0);
}
