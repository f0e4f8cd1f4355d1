//! The one place where time, ids and randomness come in, so that tests move time by hand.

use std::sync::Arc;

use chrono::{DateTime, Duration, SubsecRound, Utc};
use parking_lot::Mutex;
use uuid::Uuid;

/// Where time, ids and random bytes come from.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<Mutex<DateTime<Utc>>>),
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Source::System => "Clock(system)",
            Source::Manual(_) => "Clock(by hand)",
        })
    }
}

impl Clock {
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands until [`Clock::advance`] moves it.
    pub fn by_hand(start: DateTime<Utc>) -> Self {
        Self(Source::Manual(Arc::new(Mutex::new(start))))
    }

    /// Now, in whole microseconds: what the log keeps.
    #[expect(clippy::disallowed_methods, reason = "this is the one place where the time comes in")]
    pub fn now(&self) -> DateTime<Utc> {
        match &self.0 {
            Source::System => Utc::now().trunc_subsecs(6),
            Source::Manual(now) => *now.lock(),
        }
    }

    /// Moves a clock that is moved by hand; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            *now.lock() += by;
        }
    }

    /// A new id, ordered by time.
    #[expect(clippy::disallowed_methods, reason = "this is the one place where ids come in")]
    pub fn id(&self) -> Uuid {
        Uuid::now_v7()
    }

    /// Random bytes that nobody can guess.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes once it has started");
        bytes
    }

    /// A factor between 0.5 and 1.5 to spread retries.
    pub fn jitter(&self) -> f64 {
        0.5 + f64::from(u32::from_be_bytes(self.random::<4>())) / f64::from(u32::MAX)
    }
}
