//! What has ended, counted by the minute.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

words! {
    /// What is counted.
    pub enum Count {
        Completed = "completed",
        Failed = "failed",
        Cancelled = "cancelled",
        NotSubmitted = "not_submitted",
        Changed = "changed",
        Unchanged = "unchanged",
        NoDatasets = "no_datasets",
        TapSkipped = "tap_skipped",
        DiscoveryError = "discovery_error",
        DiscoveryTimeout = "discovery_timeout",
    }
}

/// The longest window that a rule can ask for: a month.
pub const WINDOW_MINUTES: u64 = 44_640;

/// Counts by the minute, for as long as a rule can look back.
#[derive(Clone, Debug, Default)]
pub struct Minutes(BTreeMap<i64, [u32; Count::ALL.len()]>);

fn minute(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(60)
}

impl Minutes {
    /// Counts one.
    pub fn add(&mut self, at: DateTime<Utc>, count: Count) {
        let now = minute(at);
        self.0.entry(now).or_default()[count as usize] += 1;
        let oldest = now - WINDOW_MINUTES as i64;
        while let Some(entry) = self.0.first_entry()
            && *entry.key() < oldest
        {
            entry.remove();
        }
    }

    /// How many there were in the whole minutes of the window that ends at `at`, the minute of `at` included.
    pub fn within(&self, at: DateTime<Utc>, window_minutes: u64, count: Count) -> u64 {
        let (now, window) = (minute(at), window_minutes.min(WINDOW_MINUTES) as i64);
        self.0.range(now - window + 1..=now).map(|(_, counts)| u64::from(counts[count as usize])).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_its_minutes_and_what_is_older_than_any_window_is_forgotten() {
        let at = |minute: i64| DateTime::from_timestamp(minute * 60 + 59, 0).unwrap();
        let mut minutes = Minutes::default();
        for minute in [100, 100, 101, 104] {
            minutes.add(at(minute), Count::Failed);
        }
        assert_eq!(minutes.within(at(104), 4, Count::Failed), 2);
        assert_eq!(minutes.within(at(104), 5, Count::Failed), 4);
        assert_eq!(minutes.within(at(104), 5, Count::Completed), 0);
        minutes.add(at(101 + WINDOW_MINUTES as i64), Count::Failed);
        assert_eq!(minutes.0.len(), 3, "what no rule can ask for is gone: {minutes:?}");
    }
}
