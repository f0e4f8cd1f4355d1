//! Named places where a test may end the process, to show that nothing is lost or done twice whatever happens there.
//!
//! Only in builds with debug assertions; elsewhere [`point`] does nothing. `BEAMPIPE_TEST_CRASH_AT` names the place,
//! followed by `:n` when only its n-th passing counts.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Ends the process without any clean-up if a test asked for it here.
pub fn point(name: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a switch for tests, deliberately not part of the configuration"
    )]
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("BEAMPIPE_TEST_CRASH_AT").ok().filter(|text| !text.is_empty())?;
        let (name, nth) =
            text.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok()?))).unwrap_or((&text, 1));
        Some((name.to_owned(), nth))
    });
    let Some((place, nth)) = wanted else { return };
    if place == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        tracing::warn!(place, "ending the process here, as a test asked");
        std::process::abort();
    }
}
