//! The contract over the engines of this crate.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod memory {
    use std::sync::Arc;

    use beampipe_log::contract::ticking_clock;
    use beampipe_log::{Log, MemoryLog};

    async fn make() -> (Arc<dyn Log>, ()) {
        (Arc::new(MemoryLog::new(ticking_clock())), ())
    }

    beampipe_log::log_contract!(make);
}

mod sqlite {
    use std::sync::Arc;

    use beampipe_log::contract::ticking_clock;
    use beampipe_log::{Log, SqliteLog, SqliteOptions};

    async fn make() -> (Arc<dyn Log>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let log = SqliteLog::open(directory.path().join("log.sqlite"), SqliteOptions::new(ticking_clock()))
            .unwrap();
        (Arc::new(log), directory)
    }

    beampipe_log::log_contract!(make);
}

mod postgres_server;

mod postgres {
    use std::sync::Arc;

    use beampipe_log::Log;

    use super::postgres_server::Scratch;

    async fn make() -> (Arc<dyn Log>, Scratch) {
        let scratch = Scratch::new();
        (Arc::new(scratch.open().await), scratch)
    }

    beampipe_log::log_contract!(make);
}
