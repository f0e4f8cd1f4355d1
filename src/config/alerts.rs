//! What alerting is told by the configuration.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Rules and whom they tell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// A channel on which every attempt failed for so long is disabled, and the other channels are told.
    pub disable_channel_after_hours: u32,
}

impl Default for Alerts {
    fn default() -> Self {
        Self { disable_channel_after_hours: 24 }
    }
}

impl Alerts {
    pub fn disable_channel_after(&self) -> TimeDelta {
        TimeDelta::hours(self.disable_channel_after_hours.into())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.disable_channel_after_hours == 0 {
            let detail = "has to be at least 1: a receiver may be restarted".to_owned();
            return Err(ConfigError::Invalid { field: "alerts.disable_channel_after_hours", detail });
        }
        Ok(())
    }
}
