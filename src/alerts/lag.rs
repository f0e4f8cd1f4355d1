//! How far the read models of this process are behind is volatile; that one fell behind, or caught up, becomes an event, so that
//! rules can see it and a backtest sees what they saw.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::follower::{Command, FellBehind, Follower};
use beampipe_projections::{Models, State};
use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use crate::handle::{Context, Handle};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(5);
/// What is this far behind has fallen behind.
const BEHIND_SECONDS: f64 = 30.0;

/// Watches the read models of a process until it stops. A process that ends is told of by its worker's end.
pub async fn run(handle: Handle, models: Arc<Models>, process: String, stop: CancellationToken) {
    let context = Context::system(handle.clock(), &format!("worker/{process}"));
    let mut behind = HashSet::new();
    let mut looks = tokio::time::interval(EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        // At the start everything is behind, and that is no news.
        if behind.is_empty() && models.bootstrap().is_none() {
            continue;
        }
        for status in models.status() {
            let is_behind = status.lag_seconds > BEHIND_SECONDS;
            if is_behind == behind.contains(status.name) {
                continue;
            }
            let command = if is_behind {
                let lag = TimeDelta::milliseconds((status.lag_seconds * 1000.0) as i64);
                let reason = match &status.state {
                    State::Stalled { why } | State::Stopped { why } => Some(why.clone()),
                    State::CatchingUp | State::Live => None,
                };
                Command::FallBehind(FellBehind {
                    projection: status.name.to_owned(),
                    process: process.clone(),
                    since: handle.clock().now() - lag,
                    reason,
                })
            } else {
                Command::CatchUp { projection: status.name.to_owned(), process: process.clone() }
            };
            let stream = format!("{process}.{}", status.name);
            match handle.handle::<Follower>(&stream, &context, command).await {
                Ok(_) if is_behind => drop(behind.insert(status.name)),
                Ok(_) => drop(behind.remove(status.name)),
                Err(error) => {
                    tracing::warn!(projection = status.name, %error, "its lag could not be recorded")
                }
            }
        }
    }
}
