//! Named places where a test may end or stop the process, to show that nothing is lost or done twice whatever happens there.
//!
//! Only in builds with debug assertions; elsewhere [`point`] does nothing. `BEAMPIPE_TEST_CRASH_AT` names the place where the
//! process ends without any clean-up, `BEAMPIPE_TEST_STOP_AT` the one where it stops as by SIGSTOP until somebody continues
//! it; either is followed by `:n` when only its n-th passing counts.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Wanted {
    place: String,
    nth: u64,
    passed: AtomicU64,
    stop: bool,
}

static WANTED: OnceLock<Vec<Wanted>> = OnceLock::new();

/// Does here what a test asked for.
pub fn point(name: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    for wanted in WANTED.get_or_init(wanted).iter().filter(|wanted| wanted.place == name) {
        if wanted.passed.fetch_add(1, Ordering::SeqCst) + 1 != wanted.nth {
            continue;
        }
        tracing::warn!(
            place = name,
            stop = wanted.stop,
            "ending or stopping the process here, as a test asked"
        );
        if !wanted.stop {
            std::process::abort();
        }
        // Every thread of the process stops, as if the machine had been taken away for a while.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        // The signal may reach another thread first; this one does nothing more until it is stopped, too.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

fn wanted() -> Vec<Wanted> {
    [("BEAMPIPE_TEST_CRASH_AT", false), ("BEAMPIPE_TEST_STOP_AT", true)]
        .into_iter()
        .filter_map(|(variable, stop)| {
            #[expect(
                clippy::disallowed_methods,
                reason = "a switch for tests, deliberately not part of the configuration"
            )]
            let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
            let counted = text.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok()?)));
            let (place, nth) = counted.unwrap_or((&text, 1));
            Some(Wanted { place: place.to_owned(), nth, passed: AtomicU64::new(0), stop })
        })
        .collect()
}
