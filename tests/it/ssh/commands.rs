//! Commands over one connection: what comes back, what does not, and what becomes of the connection.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use beampipe::ssh::{Class, Command, Late, Settings};

use super::login::{SECOND, Slots, kill, scratch, server_process, target};

#[tokio::test]
async fn a_command_answers_with_its_code_its_signal_and_both_outputs() {
    let (slots, target) = (Slots::new(), target());
    let pool = slots.pool();
    let said = pool.run(&target, "echo out; echo err >&2; exit 7").await.unwrap();
    assert_eq!((said.code, said.signal.as_deref()), (Some(7), None));
    assert_eq!((said.stdout_text().as_str(), said.stderr_text().as_str()), ("out\n", "err\n"));
    let killed = pool.run(&target, "kill -KILL $$").await.unwrap();
    assert_eq!((killed.code, killed.signal.as_deref()), (None, Some("KILL")), "{killed:?}");
}

#[tokio::test]
async fn a_hundred_commands_at_once_share_one_connection() {
    let (slots, target) = (Slots::new(), target());
    let pool = slots.pool();
    let all = (0..100).map(|n| {
        let (pool, target) = (pool.clone(), target.clone());
        tokio::spawn(
            async move { (n, pool.run(&target, format!("echo {n} $PPID; sleep 0.0{}", n % 10)).await) },
        )
    });
    let mut servers = BTreeSet::new();
    for done in futures::future::join_all(all).await {
        let (n, said) = done.unwrap();
        let said = said.unwrap().stdout_text();
        let (first, server) = said.trim().split_once(' ').unwrap();
        assert_eq!(first, n.to_string());
        servers.insert(server.to_owned());
    }
    assert_eq!(servers.len(), 1, "{servers:?}");
    assert_eq!(pool.open_connections(), [target]);
}

#[tokio::test]
async fn a_connection_whose_server_is_killed_is_opened_anew() {
    let (slots, target) = (Slots::new(), target());
    let pool = slots.pool();
    let first = server_process(&pool, &target).await;
    kill(first, "-KILL");
    // At once, before this side has noticed, and again.
    for _ in 0..3 {
        let said = pool.run(&target, "echo here").await;
        if let Err(error) = said {
            // It may have left just before the end was seen; then nobody can say.
            assert_eq!(error.class(), Class::Unknown, "{error}");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_ne!(server_process(&pool, &target).await, first);
}

#[tokio::test]
async fn a_connection_cut_during_a_command_leaves_its_end_unknown() {
    let (slots, target, file) = (Slots::new(), target(), scratch());
    let pool = slots.pool();
    let server = server_process(&pool, &target).await;
    let running = {
        let (pool, target, file) = (pool.clone(), target.clone(), file.clone());
        tokio::spawn(async move { pool.run(&target, format!("sleep 2; echo done >'{file}'")).await })
    };
    tokio::time::sleep(SECOND).await;
    kill(server, "-KILL");
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.class(), Class::Unknown, "{error}");
    tokio::time::sleep(2 * SECOND).await;
    // Which is why it is not called a failure.
    assert!(pool.run(&target, format!("cat '{file}'")).await.unwrap().success());
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_ended_or_left_and_its_channel_is_free_again() {
    let (slots, target, file) = (Slots::new(), target(), scratch());
    let pool = slots.pool_with(Settings { channels: 1, ..Settings::default() });
    pool.connect(&target).await.unwrap();
    for (late, survives) in [(Late::End, false), (Late::Leave, true)] {
        let path = format!("{file}-{survives}");
        let command = Command::new(format!("sleep 2; touch '{path}'")).within(SECOND).when_late(late);
        let began = Instant::now();
        let error = pool.run(&target, command).await.unwrap_err();
        assert!(error.class() == Class::Unknown && error.to_string().contains("1 s"), "{error}");
        assert!(began.elapsed() < 2 * SECOND);
        tokio::time::sleep(2 * SECOND).await;
        let there = pool.run(&target, format!("test -e '{path}'")).await.unwrap();
        assert_eq!(there.success(), survives, "{late:?}");
    }
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_any_more_gives_its_channel_back() {
    let (slots, target) = (Slots::new(), target());
    let pool = slots.pool_with(Settings { channels: 1, ..Settings::default() });
    let server = server_process(&pool, &target).await;
    // More than the server has room for, if one of them stayed.
    for _ in 0..20 {
        let waiting = pool.run(&target, "sleep 30");
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    }
    assert_eq!(server_process(&pool, &target).await, server);
    let busy = {
        let (pool, target) = (pool.clone(), target.clone());
        tokio::spawn(async move { pool.run(&target, "sleep 3").await })
    };
    tokio::time::sleep(SECOND).await;
    let error = pool.run(&target, Command::new("true").within(SECOND)).await.unwrap_err();
    assert!(error.class() == Class::NotSent && error.to_string().contains("free channel"), "{error}");
    assert!(busy.await.unwrap().unwrap().success());
    assert!(pool.run(&target, "true").await.unwrap().success());
}

#[tokio::test]
async fn commands_left_to_themselves_fill_a_connection_and_another_is_opened() {
    let (slots, target) = (Slots::new(), target());
    let pool = slots.pool();
    let server = server_process(&pool, &target).await;
    for n in 0..12 {
        let left = Command::new("sleep 8").within(Duration::from_millis(200)).when_late(Late::Leave);
        assert_eq!(pool.run(&target, left).await.unwrap_err().class(), Class::Unknown, "{n}");
    }
    assert_ne!(server_process(&pool, &target).await, server);
}

#[tokio::test]
async fn more_output_than_is_kept_is_said_and_the_code_still_comes() {
    let (slots, target) = (Slots::new(), target());
    let pool = slots.pool_with(Settings { output: 1000, ..Settings::default() });
    let said = pool.run(&target, "yes | head -c 3000000; yes | head -c 999 >&2; exit 3").await.unwrap();
    assert!(said.truncated);
    assert_eq!((said.stdout.len(), said.stderr.len(), said.code), (1000, 999, Some(3)));
    assert!(!pool.run(&target, "yes | head -c 1000").await.unwrap().truncated);
}

#[tokio::test]
async fn something_left_behind_does_not_hold_a_command_for_ever() {
    let (slots, target) = (Slots::new(), target());
    let pool = slots.pool();
    let began = Instant::now();
    let said = pool.run(&target, "sleep 20 & echo started").await.unwrap();
    assert!(said.success() && said.stdout_text() == "started\n", "{said:?}");
    assert!(began.elapsed() < 10 * SECOND);
}

#[tokio::test]
async fn a_server_that_stands_still_is_given_up_and_another_connection_is_opened() {
    let (slots, target) = (Slots::new(), target());
    let settings = Settings { keep_alive: SECOND, connect: 5 * SECOND, ..Settings::default() };
    let pool = slots.pool_with(settings);
    let server = server_process(&pool, &target).await;
    kill(server, "-STOP");
    let began = Instant::now();
    // No channel was opened, so nothing has left: it is asked over another connection.
    assert_ne!(server_process(&pool, &target).await, server);
    assert!(began.elapsed() < 15 * SECOND, "{:?}", began.elapsed());
    kill(server, "-KILL");
}
