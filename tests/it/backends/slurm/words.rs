//! Reading what Slurm 22.05 printed; `tests/golden/slurm` holds it as it came.

use std::time::Duration;

use beampipe::backends::slurm::job::{Id, Part, State};
use beampipe::backends::slurm::poll::{Asked, MOST_JOBS, Poll, found, poll};
use beampipe::backends::slurm::table::{Limit, PollError, Printed};
use beampipe::backends::slurm::{reason, sacct, sbatch, squeue};
use chrono::DateTime;
use proptest::prelude::*;

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/slurm/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn printed(stdout: &[u8]) -> Printed<'_> {
    Printed { exit: 0, stdout, stderr: b"" }
}

fn queue(name: &str) -> Vec<squeue::Row> {
    squeue::read(printed(&golden(&format!("squeue.{name}")))).unwrap()
}

pub fn accounts(name: &str) -> Vec<sacct::Row> {
    sacct::read(printed(&golden(&format!("sacct.{name}")))).unwrap()
}

fn session(number: u32) -> String {
    format!("5e7a1f00-0000-5000-8000-{number:012}")
}

fn asked(numbers: &[u32]) -> Vec<Asked> {
    // The captured sessions are numbered like their jobs.
    numbers.iter().map(|number| Asked { job: (*number).into(), session: session(*number) }).collect()
}

#[test]
fn what_squeue_prints_is_read_field_by_field() {
    let rows = queue("pending-and-running");
    assert_eq!(rows.len(), 14);
    let of = |number: u64| rows.iter().find(|row| row.id == Id::whole(number)).unwrap();
    let running = of(5);
    assert_eq!((&running.state, running.reason.as_deref()), (&State::Running, None));
    assert_eq!(running.nodes.as_deref(), Some("vm"));
    assert_eq!((running.user.as_deref(), running.account.as_deref()), (Some("hpcuser"), Some("testaccount")));
    assert_eq!(running.elapsed, Some(Duration::from_secs(12)));
    assert_eq!(running.limit, Some(Limit::Of(Duration::from_secs(3600))));
    assert_eq!(running.started_at, DateTime::from_timestamp(1_795_392_199, 0));
    assert_eq!(running.comment.as_deref(), Some(session(5).as_str()));
    for (number, reason) in [
        (8, "Resources"),
        (9, "Dependency"),
        (10, "JobHeldUser"),
        (11, "BeginTime"),
        (12, "DependencyNeverSatisfied"),
    ] {
        assert_eq!((&of(number).state, of(number).reason.as_deref()), (&State::Pending, Some(reason)));
        assert!(!reason::explain(reason).sentence.contains("Slurm says"));
    }
    assert_eq!(of(9).started_at, None, "nobody knows when");
    assert!(of(6).state.is_terminal() && of(3).state == State::Failed);
    assert_eq!(queue("timeout")[0].state, State::Timeout);
}

#[test]
fn what_sacct_prints_is_read_with_its_steps() {
    let rows = accounts("ended");
    let of = |number: u64| rows.iter().find(|row| row.id == Id::whole(number)).unwrap();
    assert_eq!(rows.len(), 7, "a job is one row, however many steps it had");
    let done = of(2);
    assert_eq!((&done.state, done.max_rss), (&State::Completed, Some(3_166_208)));
    assert_eq!((done.cpus(), done.billing(), done.cpu_held_seconds), (Some(1), Some(1), Some(9)));
    assert_eq!(done.cpu_time, Some(Duration::from_millis(15)));
    assert_eq!((done.cluster.as_deref(), done.energy_joules), (Some("testcluster"), None));
    assert_eq!(done.comment.as_deref(), Some(session(2).as_str()));
    assert_eq!((of(3).exit, &of(3).state), (sacct::Exit { code: 7, signal: 0 }, &State::Failed));
    assert_eq!((of(4).exit, &of(4).state), (sacct::Exit { code: 0, signal: 11 }, &State::Failed));
    assert_eq!((&of(1).state, of(1).limit), (&State::Timeout, Some(Limit::Of(Duration::from_secs(60)))));
    assert_eq!(of(6).state, State::Cancelled { by: Some(1001) });
    assert_eq!((&of(7).state, of(7).nodes.as_deref()), (&State::Cancelled { by: Some(0) }, None));
}

#[test]
fn ends_that_one_node_cannot_show_are_read_too() {
    let rows = accounts("by-hand");
    let words: Vec<&str> = rows.iter().map(|row| row.state.word()).collect();
    let wanted =
        ["OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "SPECIAL_EXIT", "HIBERNATED"];
    assert_eq!(words, wanted);
    assert_eq!((rows[0].max_rss, rows[0].energy_joules), (Some(2_146_959_360), Some(1200)));
    assert_eq!(rows[0].allocated["gres/gpu"], "1");
    assert_eq!((rows[2].limit, rows[3].limit), (Some(Limit::Unlimited), None));
    let last = &rows[6];
    assert!(!last.state.is_terminal(), "a word we do not know is no end");
    assert_eq!(last.comment.as_deref(), Some("said\u{1f}more"), "the last field may hold the separator");
}

#[test]
fn arrays_and_heterogeneous_jobs_keep_their_parts() {
    let rows = queue("array");
    assert_eq!(rows[0].id, Id { base: 15, part: Part::Tasks("1-3%1".into()) });
    assert_eq!((rows[0].reason.as_deref(), &rows[1].id.part), (Some("JobArrayTaskLimit"), &Part::Task(0)));
    let parts: Vec<Part> = accounts("array").into_iter().map(|row| row.id.part).collect();
    assert_eq!(parts, [0, 1, 2, 3].map(Part::Task));
    let parts: Vec<Part> = queue("het").into_iter().map(|row| row.id.part).collect();
    assert_eq!(parts, [0, 1].map(Part::Component));
    assert!(accounts("het").iter().all(|row| row.state == State::Cancelled { by: Some(0) }));
    // None of them is a job that we submit.
    let both = poll(&asked(&[15, 16]), &queue("array"), &accounts("het"));
    assert!(both.values().all(|known| *known == Poll::NotSaid), "{both:?}");
}

#[test]
fn a_requeued_job_is_one_job_that_lives() {
    let known = poll(&asked(&[14]), &queue("requeued"), &accounts("requeued"));
    assert!(matches!(&known[&14], Poll::Living(row) if row.state == State::Pending), "{known:?}");
    // With the controller away, accounting's last word of the time before is no end either.
    let known = poll(&asked(&[14]), &[], &accounts("requeued"));
    assert!(matches!(&known[&14], Poll::Recorded(row) if row.state == State::Requeued), "{known:?}");
    let rows = accounts("requeued-running");
    assert_eq!((rows.len(), rows[0].restarts, &rows[0].state), (1, 1, &State::Running));
    let rows = accounts("requeued-ended");
    assert_eq!((rows[0].restarts, &rows[0].state), (1, &State::Cancelled { by: Some(1001) }));
}

#[test]
fn silence_is_no_end() {
    let none = squeue::read(printed(b"")).unwrap();
    let nothing = sacct::read(printed(b"")).unwrap();
    let unknown = golden("squeue.unknown.stderr");
    let invalid = squeue::read(Printed { exit: 1, stdout: b"", stderr: &unknown }).unwrap();
    assert!(none.is_empty() && nothing.is_empty() && invalid.is_empty());
    let known = poll(&asked(&[5, 99]), &queue("some-unknown"), &nothing);
    assert!(matches!(&known[&5], Poll::Living(_)));
    assert_eq!(known[&99], Poll::NotSaid);
    assert_eq!((Poll::NotSaid.state(), Poll::NotSaid.source()), (None, None));
}

#[test]
fn a_job_of_another_name_is_another_job() {
    let asked = [Asked { job: 5, session: session(6) }];
    let known = poll(&asked, &queue("pending-and-running"), &accounts("mixed"));
    assert_eq!(known[&5], Poll::NotSaid, "its number was given to another job");
}

#[test]
fn an_end_is_told_by_accounting_and_meanwhile_by_the_controller() {
    let (queued, accounted) = (queue("pending-and-running"), accounts("mixed"));
    let known = poll(&asked(&[1, 2, 3, 8]), &queued, &accounted);
    assert!(matches!(&known[&1], Poll::Living(_)) && matches!(&known[&8], Poll::Living(_)));
    assert!(matches!(&known[&3], Poll::Ended(row) if row.exit.code == 7));
    assert_eq!(known[&3].source(), Some("sacct"));
    let known = poll(&asked(&[1, 3]), &queued, &[]);
    assert!(matches!(&known[&3], Poll::Leaving(row) if row.state == State::Failed), "{known:?}");
}

#[test]
fn a_job_is_found_by_its_name() {
    let known = found(&session(5), &queue("by-name"), &accounts("by-name"));
    assert_eq!(known.len(), 1);
    assert!(matches!(&known[&5], Poll::Living(_)));
    assert!(found(&session(99), &queue("by-name"), &accounts("by-name")).is_empty());
}

#[test]
fn a_server_that_is_away_is_an_error_with_what_it_said() {
    for (name, file, said) in [
        ("squeue", "squeue.controller-down.stderr", "Unable to contact slurm controller"),
        ("sacct", "sacct.accounting-down.stderr", "Connection refused"),
    ] {
        let stderr = golden(file);
        let down = Printed { exit: 1, stdout: b"", stderr: &stderr };
        let error = match name {
            "squeue" => squeue::read(down).unwrap_err(),
            _ => sacct::read(down).unwrap_err(),
        };
        assert!(matches!(&error, PollError::Failed { exit: 1, .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    // Accounting down is no trouble for squeue.
    assert_eq!(queue("accounting-down").len(), 1);
}

#[test]
fn output_that_is_not_understood_is_an_error_that_names_the_line() {
    let whole = golden("sacct.ended");
    let text = String::from_utf8(whole.clone()).unwrap();
    for (odd, what) in [
        (whole[..whole.len() - 20].to_vec(), "cut off"),
        (
            text.replace("COMPLETED", "ABGESCHLOSSEN").replace("ABGESCHLOSSEN", "abgeschlossen").into(),
            "abgeschlossen",
        ),
        (text.replace("1795392196", "2026-11-22T15:25:41").into(), "no time"),
        (text.replacen('\u{1f}', "|", 3).into(), "fields are due"),
        (format!("Willkommen auf login1\n{text}").into(), "Willkommen"),
        (format!("99.batch{}", &text[1..]).into(), "99.batch"),
        (b"\xff\xfe\n".to_vec(), "utf-8"),
        (text.replace("7:0", "7").into(), "exit code"),
    ] {
        let error = sacct::read(printed(&odd)).unwrap_err().to_string();
        assert!(error.contains(what), "{error} does not say {what}");
    }
    let whole = golden("squeue.by-name");
    for odd in [&whole[..whole.len() - 1], b"slurm_load_jobs error\n", b"\n"] {
        assert!(squeue::read(printed(odd)).is_err());
    }
}

#[test]
fn the_commands_are_those_whose_output_was_captured() {
    let line = squeue::by_id(&[1, 2]).unwrap();
    assert!(line.ends_with("--jobs=1,2") && line.contains("LC_ALL=C TZ=UTC0 SLURM_TIME_FORMAT=%s"), "{line}");
    let longest = sacct::by_id(&vec![u64::from(u32::MAX); MOST_JOBS]).unwrap();
    assert!(longest.len() < 128 << 10, "{} bytes are no argument", longest.len());
    let since = DateTime::from_timestamp(1_795_392_196, 0).unwrap();
    let line = sacct::by_name("a'b; rm -rf /", since).unwrap();
    assert!(line.contains(r"--name='a'\''b; rm -rf /' --starttime=2026-11-23T00:03:16"), "{line}");
}

#[test]
fn a_refusal_of_sbatch_has_its_class() {
    for (file, class, passes) in [
        ("bad-partition", "configuration", false),
        ("bad-mem", "configuration", false),
        ("bad-constraint", "configuration", false),
        ("too-long", "configuration", false),
        ("controller-down", "dependency_unavailable", true),
    ] {
        let refusal = sbatch::explain(&golden(&format!("sbatch.{file}.stderr")));
        assert_eq!((refusal.class, refusal.passes_by_itself), (class, passes), "{}", refusal.error);
        assert!(refusal.error.contains("Batch job submission failed"), "{}", refusal.error);
    }
    let odd = sbatch::explain(b"sbatch: error: the moon is full\n\n");
    assert_eq!((odd.class, odd.error.as_str()), ("conflict", "sbatch: error: the moon is full"));
}

proptest! {
    /// Whatever is printed, it is read or refused; and of what is read nothing has an end that was not printed.
    #[test]
    fn odd_output_is_read_or_refused(
        line in 0usize..20,
        field in 0usize..22,
        with in prop_oneof!["\\PC{0,12}", "[0-9:.+-]{0,24}", "[A-Z_+]{0,12}", Just("CANCELLED by 99999999999".to_owned())],
        cut in prop::option::of(0usize..4000),
    ) {
        for name in ["sacct.ended", "squeue.pending-and-running"] {
            let text = String::from_utf8(golden(name)).unwrap();
            let mut lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\u{1f}').collect()).collect();
            let line = line % lines.len();
            let field = field % lines[line].len();
            lines[line][field] = &with;
            let mut odd = lines.iter().map(|line| line.join("\u{1f}") + "\n").collect::<String>().into_bytes();
            odd.truncate(cut.unwrap_or(odd.len()));
            if name.starts_with("sacct") {
                let _ = sacct::read(printed(&odd));
            } else if let Ok(rows) = squeue::read(printed(&odd)) {
                let ended = rows.iter().filter(|row| row.state.is_terminal()).count();
                let printed = text.lines().filter(|line| line.contains("CANCELLED") || line.contains("COMPLETED") || line.contains("FAILED"));
                prop_assert!(ended <= printed.count() + 1);
            }
        }
        reason::explain(&with);
    }
}
