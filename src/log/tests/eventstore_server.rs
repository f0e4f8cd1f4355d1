//! The contract against a real EventStoreDB or KurrentDB server: `make test-esdb`. Each clause has streams of its own there,
//! by a name before theirs, and leaves them behind: use a server that can be thrown away.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use beampipe_log::contract::{random_id, ticking_clock};
use beampipe_log::{EventStoreLog, EventStoreOptions, Log};

const VARIABLE: &str = "BEAMPIPE_TEST_EVENTSTORE_URL";
const HOW: &str = "is not set. These tests need a server of their own to write to; bring one up with
    docker compose --profile eventstore up -d --wait
and name it, with its password, as docs/operating.md says:
    BEAMPIPE_TEST_EVENTSTORE_URL='esdb://admin:PASSWORD@eventstore-1:2111,eventstore-2:2112,eventstore-3:2113?tlsCaFile=ca.crt' make test-esdb";

/// The address without its password, and the password.
fn server() -> (String, Option<String>) {
    #[expect(clippy::disallowed_methods, reason = "how a person tells these tests where the server is")]
    let url = std::env::var(VARIABLE).unwrap_or_else(|_| panic!("{VARIABLE} {HOW}"));
    let found = url.split_once("://").and_then(|(scheme, rest)| {
        let (user, rest) = rest.split_once('@')?;
        let (user, password) = user.split_once(':')?;
        Some((format!("{scheme}://{user}@{rest}"), Some(password.to_owned())))
    });
    found.unwrap_or((url, None))
}

async fn make() -> (Arc<dyn Log>, ()) {
    let (url, password) = server();
    let namespace = format!("test{}.", random_id().simple());
    let options = EventStoreOptions { password, namespace, ..EventStoreOptions::new(url, ticking_clock()) };
    (Arc::new(EventStoreLog::open(options).await.unwrap()), ())
}

beampipe_log::log_contract!(make);
