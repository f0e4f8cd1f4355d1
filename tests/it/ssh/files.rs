//! Files over SFTP: whole or not at all, under any name.

use std::time::Instant;

use beampipe::ssh::{Class, Part, Target};

use super::login::{SECOND, Slots, kill, known_at, port, scratch, server_process, target, user};
use super::relay::Relay;

const NAMES: [&str; 8] = [
    "plain",
    "with spaces and\ttab",
    "it's \"quoted\"",
    "$(touch x)",
    "`touch x`; rm -rf *",
    "größer ✓ 星",
    "-rf",
    "line\nbreak",
];

#[tokio::test]
async fn a_file_of_any_name_comes_back_as_it_was_sent() {
    let (slots, target, base) = (Slots::new(), target(), scratch());
    let pool = slots.pool();
    let files = pool.files(&target).await.unwrap();
    for name in NAMES {
        let directory = format!("{base}/{name}");
        files.make_dirs(&directory, 0o750).await.unwrap();
        let path = format!("{directory}/{name}");
        let bytes: Vec<u8> = name.bytes().chain(0..=255).collect();
        files.upload(&path, &bytes, 0o640).await.unwrap();
        let read = files.read(&path, Part::Beginning, 1000).await.unwrap();
        assert_eq!(read.bytes, bytes, "{name}");
        assert!(!read.truncated());
    }
    // Nothing was run, and nothing is there that was not sent.
    let said =
        pool.run(&target, format!("cd '{base}' && find . -type f | wc -l; find . -name x")).await.unwrap();
    // One name has a line break; find prints it as two lines.
    assert_eq!(said.stdout_text().trim(), (NAMES.len() + 2).to_string());
}

#[tokio::test]
async fn a_file_takes_the_place_of_the_one_before_with_its_mode_and_leaves_nothing_beside() {
    let (slots, target, base) = (Slots::new(), target(), scratch());
    let pool = slots.pool();
    pool.make_dirs(&target, &base, 0o755).await.unwrap();
    pool.make_dirs(&target, &base, 0o755).await.unwrap();
    let path = format!("{base}/graph");
    // Larger than one request, and no multiple of it.
    let large: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 251) as u8).collect();
    pool.upload(&target, &path, &large, 0o600).await.unwrap();
    assert_eq!(pool.read(&target, &path, Part::Beginning, usize::MAX).await.unwrap().bytes, large);
    pool.upload(&target, &path, b"#!/bin/sh\n", 0o755).await.unwrap();
    let said =
        pool.run(&target, format!("cd '{base}' && ls -A | wc -l; stat -c '%a %s' graph")).await.unwrap();
    assert_eq!(said.stdout_text(), "1\n755 10\n");
}

#[tokio::test]
async fn of_a_large_file_the_beginning_or_the_end_is_read() {
    let (slots, target, base) = (Slots::new(), target(), scratch());
    let pool = slots.pool();
    pool.make_dirs(&target, &base, 0o755).await.unwrap();
    pool.run(&target, format!("seq 1 100000 > '{base}/log'; : > '{base}/empty'")).await.unwrap();
    let path = format!("{base}/log");
    let end = pool.read(&target, &path, Part::End, 7).await.unwrap();
    assert_eq!((end.bytes.as_slice(), end.size, end.truncated()), (&b"100000\n"[..], 588_895, true));
    let beginning = pool.read(&target, &path, Part::Beginning, 4).await.unwrap();
    assert_eq!(beginning.bytes, b"1\n2\n");
    let empty = pool.read(&target, &format!("{base}/empty"), Part::End, 100).await.unwrap();
    assert!(empty.bytes.is_empty() && !empty.truncated());
}

#[tokio::test]
async fn what_the_server_refuses_is_said_with_the_path() {
    let (slots, target, base) = (Slots::new(), target(), scratch());
    let pool = slots.pool();
    let absent = pool.read(&target, &format!("{base}/none"), Part::End, 9).await.unwrap_err();
    assert!(absent.is_absent() && absent.to_string().contains("/none"), "{absent}");
    pool.make_dirs(&target, &base, 0o755).await.unwrap();
    pool.upload(&target, &format!("{base}/file"), b"x", 0o600).await.unwrap();
    let below_a_file = pool.make_dirs(&target, &format!("{base}/file/below"), 0o755).await.unwrap_err();
    let not_ours = pool.upload(&target, "/etc/beampipe-test", b"x", 0o600).await.unwrap_err();
    let no_directory = pool.upload(&target, &format!("{base}/none/file"), b"x", 0o600).await.unwrap_err();
    for error in [below_a_file, not_ours, no_directory] {
        assert_eq!(error.class(), Class::Refused, "{error}");
    }
}

#[tokio::test]
async fn an_upload_that_is_cut_leaves_no_half_of_a_file_in_its_place() {
    let (slots, target, base) = (Slots::new(), target(), scratch());
    let pool = slots.pool();
    pool.make_dirs(&target, &base, 0o755).await.unwrap();
    let path = format!("{base}/graph");
    let server = server_process(&pool, &target).await;
    let uploading = {
        let (pool, target, path) = (pool.clone(), target.clone(), path.clone());
        tokio::spawn(async move { pool.upload(&target, &path, &vec![7; 200_000_000], 0o600).await })
    };
    let begun = Instant::now();
    while std::fs::read_dir(&base).unwrap().next().is_none() {
        assert!(begun.elapsed() < 30 * SECOND, "the upload does not begin");
        tokio::time::sleep(SECOND / 50).await;
    }
    kill(server, "-KILL");
    let error = uploading.await.unwrap().unwrap_err();
    assert_eq!(error.class(), Class::Unknown, "{error}");
    let read = pool.read(&target, &path, Part::Beginning, 1).await.unwrap_err();
    assert!(read.is_absent(), "{read}");
    // Sent again, it is there.
    pool.upload(&target, &path, b"whole", 0o600).await.unwrap();
    assert_eq!(pool.read(&target, &path, Part::Beginning, 9).await.unwrap().bytes, b"whole");
}

#[tokio::test]
async fn a_connection_that_is_cut_while_files_are_asked_for_is_replaced_at_once() {
    let (slots, relay) = (Slots::new(), Relay::to(port()).await);
    slots.write("default", "known_hosts", &known_at(&[relay.port]), 0o644);
    let target = Target::new("127.0.0.1", relay.port, &user(), "default").unwrap();
    let mut hit = 0;
    for bytes in (0..20).map(|step| 1 + step * 20) {
        let pool = slots.pool();
        pool.connect(&target).await.unwrap();
        relay.cut_after(bytes);
        let begun = Instant::now();
        pool.files(&target).await.unwrap_or_else(|error| panic!("cut after {bytes} bytes: {error}"));
        assert!(begun.elapsed() < 5 * SECOND, "cut after {bytes} bytes, there after {:?}", begun.elapsed());
        hit += u32::from(relay.has_cut());
        relay.cut();
    }
    assert!(hit > 5, "only {hit} cuts came in the middle");
}
