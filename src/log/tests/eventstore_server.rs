//! The contract against a real EventStoreDB or KurrentDB server: `make test-esdb`. Each clause has streams of its own there,
//! by a name before theirs, and leaves them behind: use a server that can be thrown away.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use beampipe_log::contract::{random_id, ticking_clock};
use beampipe_log::{EventStoreLog, EventStoreOptions, Log};

const VARIABLE: &str = "BEAMPIPE_TEST_EVENTSTORE_URL";
const HOW: &str = "is not set. These tests need a server of their own to write to; bring one up with
    docker compose --profile eventstore up -d --wait
and name it as docs/operating.md says, for example
    BEAMPIPE_TEST_EVENTSTORE_URL='esdb://admin:changeit@localhost:2113?tls=false' make test-esdb";

/// The address without its user, and the user.
fn server() -> (String, Option<(String, String)>) {
    #[expect(clippy::disallowed_methods, reason = "how a person tells these tests where the server is")]
    let url = std::env::var(VARIABLE).unwrap_or_else(|_| panic!("{VARIABLE} {HOW}"));
    let Some((scheme, rest)) = url.split_once("://") else { return (url, None) };
    match rest.split_once('@') {
        None => (url, None),
        Some((user, rest)) => {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            (format!("{scheme}://{rest}"), Some((user.to_owned(), password.to_owned())))
        }
    }
}

async fn make() -> (Arc<dyn Log>, ()) {
    let (url, credentials) = server();
    let namespace = format!("test{}.", random_id().simple());
    let options =
        EventStoreOptions { credentials, namespace, ..EventStoreOptions::new(url, ticking_clock()) };
    (Arc::new(EventStoreLog::open(options).await.unwrap()), ())
}

beampipe_log::log_contract!(make);
