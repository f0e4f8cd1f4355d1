//! Whether the store can be used: a small object is written and read, again and again.

use std::time::Duration;

use bytes::Bytes;
use object_store::{ObjectStoreExt, path};
use tokio_util::sync::CancellationToken;

use super::Artifacts;

/// Every process writes the same under the same name, so that nothing gathers and no two disagree.
const OBJECT: &str = "probe";
const BYTES: &[u8] = b"beampipe";
/// A store that takes longer for a few bytes cannot be used.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often one that is away is looked for.
const WHILE_AWAY: Duration = Duration::from_secs(2);

impl Artifacts {
    /// Writes and reads a few bytes; an error says why that cannot be done.
    pub async fn probe(&self) -> Result<(), String> {
        let object = path::Path::from(format!("{}{OBJECT}", self.prefix));
        let round = async {
            self.store.put(&object, Bytes::from_static(BYTES).into()).await?;
            self.store.get(&object).await?.bytes().await
        };
        match tokio::time::timeout(PATIENCE, round).await {
            Ok(Ok(bytes)) if bytes == BYTES => Ok(()),
            Ok(Ok(_)) => Err("it does not give back what was written".into()),
            Ok(Err(error)) => Err(told(&error)),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }
}

/// An error with its causes; those of a store are told by the last of them.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Says through `tell` whether the store can be used (`None`: it can), until `stopping`. It is looked at every `every`, more
/// often while it is away, and at once when somebody could not use it.
pub async fn keep_probing(
    artifacts: Artifacts,
    every: Duration,
    tell: impl Fn(Option<String>),
    stopping: CancellationToken,
) {
    tell(Some("the artifact store has not been looked at yet".into()));
    let mut away = None;
    loop {
        let found = tokio::select! {
            found = artifacts.probe() => found.err(),
            () = stopping.cancelled() => return,
        };
        if found.is_some() != away.is_some() {
            match &found {
                Some(why) => tracing::error!(why, "the artifact store cannot be used"),
                None => tracing::info!("the artifact store can be used again"),
            }
        }
        tell(found.as_ref().map(|why| format!("the artifact store cannot be used: {why}")));
        away = found;
        let pause = if away.is_some() { every.min(WHILE_AWAY) } else { every };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = artifacts.suspected.notified(), if away.is_none() => {}
            () = stopping.cancelled() => return,
        }
    }
}
