//! Slows down whoever tries many logins: so many a minute for one user name from one address, and for one address.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::problem::Problem;

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// How many keys are kept before those that have been quiet are forgotten.
const KEPT: usize = 10_000;

/// The attempts of the last minute.
pub struct Throttle {
    by_user: Limiter<(String, Option<IpAddr>)>,
    by_address: Limiter<Option<IpAddr>>,
}

fn a_minute(attempts: u32) -> Quota {
    Quota::per_minute(NonZeroU32::new(attempts).unwrap_or(NonZeroU32::MIN))
}

impl Throttle {
    pub fn new(per_user: u32, per_address: u32) -> Self {
        Self {
            by_user: RateLimiter::hashmap(a_minute(per_user)),
            by_address: RateLimiter::hashmap(a_minute(per_address)),
        }
    }

    /// Counts an attempt, or says when the next one is let in.
    pub fn attempt(&self, username: &str, address: Option<IpAddr>) -> Result<(), Problem> {
        if self.by_user.len() > KEPT {
            self.by_user.retain_recent();
            self.by_user.shrink_to_fit();
        }
        if self.by_address.len() > KEPT {
            self.by_address.retain_recent();
            self.by_address.shrink_to_fit();
        }
        let now = DefaultClock::default().now();
        let mut wait: Option<Duration> = None;
        if let Err(not_until) = self.by_address.check_key(&address) {
            wait = wait.max(Some(not_until.wait_time_from(now)));
        }
        // By name and address together: nobody locks somebody else out from where they are.
        let user = (username.chars().take(200).collect::<String>().to_lowercase(), address);
        if let Err(not_until) = self.by_user.check_key(&user) {
            wait = wait.max(Some(not_until.wait_time_from(now)));
        }
        match wait {
            None => Ok(()),
            Some(wait) => {
                let seconds = wait.as_secs() + 1;
                let detail = format!(
                    "too many login attempts for this user name or from this address; wait {seconds} s"
                );
                Err(Problem::new("too-many-requests", detail).retry_after(seconds))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_attempt_after_too_many_is_told_when_to_come_back() {
        let throttle = Throttle::new(3, 100);
        for _ in 0..3 {
            assert!(throttle.attempt("Ada", None).is_ok());
        }
        assert_eq!(throttle.attempt("ada", None).unwrap_err().slug(), "too-many-requests");
        assert!(throttle.attempt("grace", None).is_ok());
    }
}
