//! Builds a read model anew beside the present one, which goes on following and serving.

use std::sync::Arc;

use super::core::{Core, Interrupted};
use super::slot::{Message, Slot};
use super::{path, spawn};
use crate::file;

#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("no read model is named {0:?}")]
    Unknown(String),
    #[error("the read model {0} is being rebuilt already")]
    UnderWay(&'static str),
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// Starts to build it.
pub(super) fn start(core: &Arc<Core>, slot: &Arc<Slot>) -> Result<(), RebuildError> {
    if !slot.begin_rebuild(core.log.head().position) {
        return Err(RebuildError::UnderWay(slot.kind.name));
    }
    tracing::info!(read_model = slot.kind.name, "a read model is rebuilt beside the present one");
    let (core_, slot_) = (core.clone(), slot.clone());
    let run = move || {
        if let Err(error) = build(&core_, &slot_) {
            tracing::error!(read_model = slot_.kind.name, %error, "a read model cannot be rebuilt");
            slot_.rebuilding(|rebuild| rebuild.failed = Some(error.to_string()));
        }
    };
    let thread = spawn(&format!("{}-rebuild", slot.kind.name), run).map_err(RebuildError::Thread)?;
    core.rebuilds.lock().push(thread);
    Ok(())
}

fn build(core: &Core, slot: &Slot) -> Result<(), Interrupted> {
    let path = path(&core.dir, slot.kind, ".rebuild");
    let unusable = |error: std::io::Error| Interrupted::Stopped(format!("{}: {error}", path.display()));
    file::remove(&path).map_err(unusable)?;
    let mut new = (slot.kind.open)(&path)?;
    // What is appended meanwhile is little; the writer of the present file folds the rest when it switches.
    let head = core.log.head().position;
    core.catch_up(&mut *new, head, |checkpoint| {
        let head = core.log.head().position;
        slot.rebuilding(|rebuild| {
            rebuild.position = checkpoint.position;
            rebuild.head = head;
        });
    })?;
    new.close()?;
    slot.tell(Message::Adopt { path, head });
    Ok(())
}
