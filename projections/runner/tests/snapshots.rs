//! A process that starts from a snapshot is as one that folded everything.

use super::*;
use crate::{Manifest, Restored, SnapshotError, restore, snapshot};

fn take(dir: &Path, to: &Path) -> Result<Manifest, SnapshotError> {
    snapshot(dir, to, crate::testing::at(0), &mut |at| assert!(at.bytes <= at.of, "{at:?}"))
}

fn put_back(from: &Path, dir: &Path) -> Result<Vec<Restored>, SnapshotError> {
    restore(from, dir, &mut |at| assert!(at.bytes <= at.of, "{at:?}"))
}

/// Whether a directory has no file of a read model in it.
fn is_bare(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().all(|entry| entry.unwrap().file_name() == "lock")
}

#[tokio::test]
async fn a_snapshot_that_was_taken_while_rows_are_written_goes_on_as_the_original() {
    let (story, home) = (Story::new(), tempfile::tempdir().unwrap());
    let dir = home.path().join("served");
    registered(&story, 1..=300).await;
    let models = caught_up(&dir, &story).await;
    let more = story.clone();
    let appending = tokio::spawn(async move { registered(&more, 301..=900).await });
    for (n, name) in ["a", "b.tar", "c", "d.tar"].into_iter().enumerate() {
        let (dir, to) = (dir.clone(), home.path().join(name));
        let taken = tokio::task::spawn_blocking(move || take(&dir, &to)).await.unwrap().unwrap();
        assert_eq!(taken.models.len(), names().count(), "{n}: {taken:?}");
        // A checkpoint that only passed over what changes no row is written now and then.
        let sources = taken.models.iter().find(|model| model.name == "sources").unwrap();
        assert!(sources.position >= 300, "{taken:?}");
    }
    appending.await.unwrap();
    assert!(models.wait_for(900, SOON).await);
    models.close().await;
    take(&dir, &home.path().join("e")).unwrap();

    for name in ["a", "b.tar", "c", "d.tar", "e"] {
        let new = home.path().join("new");
        let restored = put_back(&home.path().join(name), &new).unwrap();
        assert!(restored.iter().all(|one| one.left_out.is_none()), "{restored:?}");
        let oldest = restored.iter().filter_map(|one| one.position).min().unwrap();
        assert!(name != "e" || oldest == 900, "a process that stopped has saved where it was: {restored:?}");
        let again = caught_up(&new, &story).await;
        until("it has caught up", || again.bootstrap().is_some()).await;
        assert_eq!(again.bootstrap().unwrap().events, 900 - oldest, "only what is new is folded");
        assert!(again.status().iter().all(|one| one.alarm.is_none()), "{:?}", again.status());
        again.close().await;
        assert_eq!(everything(&dir), everything(&new), "{name}");
        std::fs::remove_dir_all(new).unwrap();
    }
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 6, "nothing is left over: {left:?}");
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_with_what_is_wrong_and_leaves_nothing() {
    let (story, home) = (Story::new(), tempfile::tempdir().unwrap());
    let (dir, new) = (home.path().join("served"), home.path().join("new"));
    registered(&story, 1..=20).await;
    caught_up(&dir, &story).await.close().await;
    let damage = |name: &str, damage: &dyn Fn(&Path)| {
        let (there, tar) = (home.path().join(name), home.path().join(format!("{name}.tar")));
        take(&dir, &there).unwrap();
        take(&dir, &tar).unwrap();
        damage(if name.starts_with("tar") { &tar } else { &there });
        let error = put_back(if name.starts_with("tar") { &tar } else { &there }, &new).unwrap_err();
        assert!(is_bare(&new), "{name}: something was restored");
        error.to_string()
    };
    let flip = |path: &Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let cut = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let said = damage("flipped", &|at| flip(&at.join("sources.sqlite"), 5000));
    assert!(said.contains("sources.sqlite") && said.contains("digest"), "{said}");
    let said = damage("cut", &|at| cut(&at.join("jobs.sqlite")));
    assert!(said.contains("jobs.sqlite"), "{said}");
    let said = damage("gone", &|at| std::fs::remove_file(at.join("workers.sqlite")).unwrap());
    assert!(said.contains("workers.sqlite"), "{said}");
    let said = damage("tar-cut", &cut);
    assert!(said.contains("damaged"), "{said}");
    let said = damage("tar-flipped", &|at| flip(at, std::fs::metadata(at).unwrap().len() as usize / 2));
    assert!(said.contains("damaged"), "{said}");
    let rewrite = |from: &'static str, to: &'static str| {
        move |at: &Path| {
            let path = at.join("manifest.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(path, text.replacen(from, to, 1)).unwrap();
        }
    };
    let said = damage("moved", &rewrite("\"position\": 20", "\"position\": 19"));
    assert!(said.contains("checkpoint"), "{said}");
    let said = damage("climbing", &rewrite("\"executions\"", "\"../executions\""));
    assert!(said.contains("no read model's name"), "{said}");
    let said = damage("newer", &rewrite("\"format\": 1", "\"format\": 2"));
    assert!(said.contains("form 2"), "{said}");
    let said = damage("garbled", &rewrite("{", "["));
    assert!(said.contains("manifest.json"), "{said}");
}

#[tokio::test]
async fn a_snapshot_is_put_only_where_no_read_models_are() {
    let (story, home) = (Story::new(), tempfile::tempdir().unwrap());
    let (dir, to) = (home.path().join("served"), home.path().join("snapshot"));
    assert!(matches!(take(&dir, &to), Err(SnapshotError::Nothing(_))));
    let models = caught_up(&dir, &story).await;
    take(&dir, &to).unwrap();
    assert!(matches!(take(&dir, &to), Err(SnapshotError::Taken(_))));
    assert!(matches!(put_back(&to, &dir), Err(SnapshotError::Open(OpenError::InUse { .. }))));
    models.close().await;
    assert!(matches!(put_back(&to, &dir), Err(SnapshotError::NotEmpty(_))));
}

#[tokio::test]
async fn rows_of_another_version_are_left_out_and_folded_from_the_beginning() {
    let (story, home) = (Story::new(), tempfile::tempdir().unwrap());
    let (dir, to, new) = (home.path().join("served"), home.path().join("one"), home.path().join("new"));
    registered(&story, 1..=20).await;
    caught_up(&dir, &story).await.close().await;
    let old = Connection::open(dir.join("sources.sqlite")).unwrap();
    old.execute_batch("UPDATE checkpoint SET version = 4000; UPDATE sources SET source_identifier = 'x'")
        .unwrap();
    drop(old);
    take(&dir, &to).unwrap();
    let restored = put_back(&to, &new).unwrap();
    let left_out: Vec<_> = restored.iter().filter(|one| one.left_out.is_some()).collect();
    assert!(left_out.len() == 1 && left_out[0].name == "sources", "{restored:?}");
    assert!(left_out[0].left_out.as_ref().unwrap().contains("4000"));
    let again = caught_up(&new, &story).await;
    assert_eq!(again.sources().get(id(7)).unwrap().unwrap().source_identifier, "S7");
    assert_eq!(again.gauges().sources.registered, 20);
    again.close().await;
}

#[tokio::test]
async fn a_snapshot_that_is_ahead_of_its_log_or_of_another_is_an_alarm_and_a_new_fold() {
    let (story, home) = (Story::new(), tempfile::tempdir().unwrap());
    let (dir, to) = (home.path().join("served"), home.path().join("one.tar"));
    registered(&story, 1..=20).await;
    caught_up(&dir, &story).await.close().await;
    take(&dir, &to).unwrap();
    let behind = Story::new();
    registered(&behind, 1..=5).await;
    let another = Story::new();
    registered(&another, 50..=80).await;
    for (n, log) in [behind, another].iter().enumerate() {
        let (new, clean) = (home.path().join(format!("new{n}")), home.path().join(format!("clean{n}")));
        put_back(&to, &new).unwrap();
        let models = caught_up(&new, log).await;
        for one in models.status() {
            let alarm = one.alarm.unwrap_or_default();
            assert!(alarm.contains("position 20 is not in the log"), "{}: {alarm}", one.name);
        }
        models.close().await;
        caught_up(&clean, log).await.close().await;
        assert_eq!(everything(&new), everything(&clean));
    }
}

#[tokio::test]
async fn what_was_redacted_after_the_snapshot_is_forgotten() {
    let (story, home) = (Story::new(), tempfile::tempdir().unwrap());
    let (dir, to, new) = (home.path().join("served"), home.path().join("one"), home.path().join("new"));
    registered(&story, 1..=5).await;
    caught_up(&dir, &story).await.close().await;
    take(&dir, &to).unwrap();
    story.redact(3, &register(3).0).await;
    put_back(&to, &new).unwrap();
    let models = caught_up(&new, &story).await;
    until("it is forgotten", || {
        let known = models.sources().get(id(3)).unwrap();
        known.is_none_or(|source| source.source_identifier != "S3")
    })
    .await;
    models.close().await;
}
