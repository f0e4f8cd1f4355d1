//! Who is let in, by whom, and what is said to those who are not.

use std::fs;
use std::time::{Duration, Instant};

use beampipe::ssh::{Class, CredentialError, Error, HostKeyError, Settings, Target};

use super::login::{SECOND, Slots, by, keygen, known_at, line, made, mode, port, target, user};
use super::relay::Relay;

async fn refused(slots: &Slots, slot: &str) -> Error {
    slots.pool().run(&by(slot), "true").await.unwrap_err()
}

#[tokio::test]
async fn a_key_of_each_kind_lets_us_in_and_each_kind_of_host_key_is_known() {
    let slots = Slots::new();
    for client in ["ed25519", "ecdsa", "rsa"] {
        for host in ["ed25519", "ecdsa", "rsa"] {
            // The server has three keys and shows the one that is known.
            let slot = format!("{client}-{host}");
            slots.add(&slot, client, &line(host));
            let said = slots.pool().run(&by(&slot), "id -un").await.unwrap();
            assert_eq!(said.stdout_text().trim(), user(), "{slot}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_ends_before_we_are_let_in_is_no_denial() {
    let (slots, relay) = (Slots::new(), Relay::to(port()).await);
    slots.write("default", "known_hosts", &known_at(&[relay.port]), 0o644);
    let target = Target::new("127.0.0.1", relay.port, &user(), "default").unwrap();
    let mut during_authentication = 0;
    for bytes in (0..80).map(|step| 1 + step * 40) {
        relay.cut_after(bytes);
        let ended = slots.pool().connect(&target).await;
        relay.has_cut();
        relay.cut();
        let Err(error) = ended else { continue };
        assert_eq!(error.class(), Class::NotSent, "cut after {bytes} bytes: {error}");
        during_authentication += u32::from(error.to_string().contains("during authentication"));
    }
    assert!(during_authentication > 2, "only {during_authentication} cuts came so late");
}

#[tokio::test]
async fn a_host_is_found_under_its_hashed_name() {
    let slots = Slots::new();
    slots.add("hashed", "ed25519", &line("ed25519"));
    let file = slots.path("hashed", "known_hosts");
    keygen(&["-q", "-H", "-f", file.to_str().unwrap()]);
    mode(&file, 0o644);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("|1|") && !text.contains("127.0.0.1"), "{text}");
    assert!(slots.pool().run(&by("hashed"), "true").await.unwrap().success());
}

#[tokio::test]
async fn a_host_that_is_not_known_one_that_changed_and_one_that_is_revoked_are_told_apart() {
    let slots = Slots::new();
    let (own, other) = (line("ed25519"), made("client_ed25519.pub"));
    let other: Vec<String> = fs::read_to_string(other).unwrap().split(' ').map(str::to_owned).collect();
    let host = own.split(' ').next().unwrap().to_owned();
    slots.add("unknown", "ed25519", &own.replace(&host, "127.0.0.1"));
    slots.add("changed", "ed25519", &format!("{host} {} {}\n", other[0], other[1]));
    slots.add("revoked", "ed25519", &format!("{own}@revoked * {}", own.split_once(' ').unwrap().1));
    for slot in ["unknown", "changed", "revoked"] {
        let error = refused(&slots, slot).await;
        assert_eq!(error.class(), Class::HostKey, "{slot}: {error}");
        let Error::HostKey(verdict) = &error else { panic!("{error}") };
        let as_wanted = match slot {
            "unknown" => matches!(verdict, HostKeyError::Unknown { .. }),
            "changed" => matches!(verdict, HostKeyError::Changed { line: 1, .. }),
            _ => matches!(verdict, HostKeyError::Revoked { line: 2, .. }),
        };
        assert!(as_wanted, "{slot}: {verdict}");
        let said = error.to_string();
        let file = slots.path(slot, "known_hosts").display().to_string();
        assert!(said.contains("SHA256:") && said.contains(&file), "{said}");
        // It is not learnt either.
        assert_eq!(refused(&slots, slot).await.to_string(), said);
    }
}

#[tokio::test]
async fn a_slot_that_is_not_as_it_should_be_is_refused_with_what_puts_it_right() {
    let slots = Slots::new();
    let known = line("ed25519");
    for slot in [
        "no-key",
        "no-hosts",
        "open-key",
        "open-phrase",
        "open-slot",
        "open-hosts",
        "no-phrase",
        "wrong",
        "junk",
    ] {
        slots.add(slot, "ed25519", &known);
    }
    fs::remove_file(slots.path("no-key", "private_key")).unwrap();
    fs::remove_file(slots.path("no-hosts", "known_hosts")).unwrap();
    mode(&slots.path("open-key", "private_key"), 0o644);
    mode(&slots.path("open-slot", ""), 0o777);
    mode(&slots.path("open-hosts", "known_hosts"), 0o666);
    for slot in ["open-phrase", "no-phrase", "wrong"] {
        slots.encrypt(slot, "canary-phrase");
    }
    slots.write("open-phrase", "passphrase", "canary-phrase\n", 0o640);
    slots.write("wrong", "passphrase", "canary-other\n", 0o600);
    slots.write("junk", "private_key", "-----BEGIN OPENSSH PRIVATE KEY-----\ncanary\n", 0o600);
    for (slot, words) in [
        ("nowhere", &["no credential slot nowhere", "ssh/nowhere"][..]),
        ("no-key", &["no private_key", "no-key/private_key"]),
        ("no-hosts", &["no known_hosts", "no-hosts/known_hosts"]),
        ("open-key", &["mode 0644", "chmod 600 ", "open-key/private_key"]),
        ("open-phrase", &["mode 0640", "chmod 600 ", "open-phrase/passphrase"]),
        ("open-slot", &["mode 0777", "chmod 700 "]),
        ("open-hosts", &["mode 0666", "chmod 644 "]),
        ("no-phrase", &["is encrypted", "passphrase is missing", "no-phrase/passphrase"]),
        ("wrong", &["does not open", "wrong/passphrase"]),
        ("junk", &["no private key that we can use"]),
    ] {
        let error = refused(&slots, slot).await;
        assert_eq!(error.class(), Class::Credential, "{slot}: {error}");
        let said = error.to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{slot}: {said}");
        assert!(!format!("{said} {error:?}").contains("canary"), "{slot}: {error:?}");
        let wrong = slots.credentials().check(slot).into_iter().filter_map(|(_, found)| found.err());
        assert_eq!(
            wrong.map(|error| error.to_string()).next(),
            Some(said),
            "the check of {slot} says the same"
        );
    }
}

#[tokio::test]
async fn an_encrypted_key_is_opened_with_its_passphrase_and_neither_is_shown() {
    let slots = Slots::new();
    slots.encrypt("default", "canary phrase with spaces");
    slots.write("default", "passphrase", "canary phrase with spaces\n", 0o600);
    let pool = slots.pool();
    assert!(pool.run(&target(), "true").await.unwrap().success());
    let shown = format!("{pool:?} {:?} {:?}", target(), slots.credentials().check("default"));
    let key = fs::read_to_string(slots.path("default", "private_key")).unwrap();
    assert!(!shown.contains("canary") && !shown.contains(key.lines().nth(1).unwrap()), "{shown}");
}

#[tokio::test]
async fn a_key_that_only_openssh_reads_is_usable_once_it_is_written_as_we_say() {
    let slots = Slots::new();
    let text = include_str!("../../golden/ssh/ecdsa_with_a_short_scalar");
    slots.write("default", "private_key", text, 0o600);
    let said = refused(&slots, "default").await.to_string();
    let (_, advice) = said.split_once("ssh-keygen -p ").unwrap();
    let words: Vec<&str> = advice.split(' ').take(4).collect();
    assert_eq!(words[..3], ["-m", "PKCS8", "-f"], "{said}");
    keygen(&[&["-q", "-p", "-P", "", "-N", ""], &words[..]].concat());
    // Its server does not know this key, which is the next question.
    assert_eq!(refused(&slots, "default").await.class(), Class::Denied);
}

#[tokio::test]
async fn a_key_or_a_user_that_the_server_does_not_take_is_a_refusal_of_its_own() {
    let slots = Slots::new();
    let key = slots.path("default", "private_key");
    fs::remove_file(&key).unwrap();
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    let error = refused(&slots, "default").await;
    assert_eq!(error.class(), Class::Denied, "{error}");
    assert!(error.to_string().contains("slot default"), "{error}");
    let nobody = Target::new("127.0.0.1", port(), "no-such-user", "default").unwrap();
    let error = Slots::new().pool().run(&nobody, "true").await.unwrap_err();
    assert_eq!(error.class(), Class::Denied, "{error}");
}

#[test]
fn a_user_name_with_a_command_in_it_is_refused_before_anything_is_sent() {
    let error = Target::new("127.0.0.1", port(), &format!("{};rm", user()), "default").unwrap_err();
    assert_eq!(error.class(), Class::Invalid);
    assert!(error.to_string().contains(";rm"), "{error}");
}

#[tokio::test]
async fn a_node_that_is_away_or_silent_is_not_sent_to_and_all_who_wait_share_one_attempt() {
    let slots = Slots::new();
    let settings = Settings { connect: SECOND, ..Settings::default() };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let silent = Target::new("127.0.0.1", listener.local_addr().unwrap().port(), "u", "default").unwrap();
    let pool = slots.pool_with(settings.clone());
    let began = Instant::now();
    let all = futures::future::join_all((0..20).map(|_| pool.run(&silent, "true"))).await;
    let took = began.elapsed();
    assert!(all.iter().all(|done| matches!(done, Err(error) if error.class() == Class::NotSent)), "{all:?}");
    assert!(took >= SECOND && took < 5 * SECOND, "{took:?}");

    let closed = Target::new("127.0.0.1", 1, "u", "default").unwrap();
    let error = slots.pool_with(settings).run(&closed, "true").await.unwrap_err();
    assert!(error.class() == Class::NotSent && error.to_string().contains("u@127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn a_node_behind_another_is_reached_with_a_slot_for_each() {
    let slots = Slots::new();
    slots.add("outer", "rsa", &line("ecdsa"));
    let pool = slots.pool();
    let inner = by("default").through(by("outer"));
    let said = pool.run(&inner, "echo $SSH_CONNECTION").await.unwrap();
    assert!(said.success() && said.stdout_text().contains("127.0.0.1"), "{said:?}");
    let mut open: Vec<String> = pool.open_connections().iter().map(ToString::to_string).collect();
    open.sort();
    assert_eq!(open, [by("outer").to_string(), inner.to_string()]);

    // What is wrong with the first is said of the first, and the way on may be closed as well.
    fs::remove_file(slots.path("outer", "known_hosts")).unwrap();
    let error = slots.pool().run(&inner, "true").await.unwrap_err();
    assert!(
        matches!(&error, Error::Credential(CredentialError::Missing { slot, .. }) if slot == "outer"),
        "{error}"
    );
    slots.write("outer", "known_hosts", &line("ecdsa"), 0o644);
    let nowhere = Target::new("127.0.0.1", 1, &user(), "default").unwrap().through(by("outer"));
    let error = slots.pool().run(&nowhere, "true").await.unwrap_err();
    assert!(error.class() == Class::NotSent && error.to_string().contains("leads no further"), "{error}");
}

#[test]
fn slots_are_listed_by_what_is_there_and_never_by_what_is_in_it() {
    let slots = Slots::new();
    slots.add("other", "rsa", "");
    slots.write("other", "passphrase", "canary", 0o600);
    slots.write("other", "private_key.pub", "ssh-rsa x", 0o644);
    fs::write(slots.directory.path().join("ssh/not-a-slot"), "canary").unwrap();
    let found = slots.credentials().slots().unwrap();
    let names: Vec<&str> = found.iter().map(|slot| slot.name.as_str()).collect();
    assert_eq!(names, ["default", "other"]);
    assert!(!found[0].passphrase && !found[0].public_key && found[0].private_key && found[0].known_hosts);
    assert!(found[1].passphrase && found[1].public_key);
    assert!(!format!("{found:?}").contains("canary"));
}

#[tokio::test]
async fn a_server_that_takes_too_long_over_a_key_is_given_up() {
    let slots = Slots::new();
    let settings = Settings { auth: Duration::from_nanos(1), ..Settings::default() };
    let error = slots.pool_with(settings).run(&target(), "true").await.unwrap_err();
    assert_eq!(error.class(), Class::NotSent, "{error}");
    assert!(error.to_string().contains("answer to our key"), "{error}");
}
