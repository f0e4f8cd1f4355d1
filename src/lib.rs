//! The service: commands in, events appended, work done, answers given.
//!
//! This list is the map of the tree; `docs/architecture.md` walks through it.

/// Large bytes by their digest.
pub mod artifacts;
/// Time, ids and randomness.
pub mod clock;
/// Events to JSON and back.
pub mod codec;
/// One configuration, read once.
pub mod config;
/// Load, decide, append; decide again on conflict.
pub mod handle;
//! beampipe.

/// Where executions run: DALiuGE over REST, and a simulated one for load tests.
pub mod backends;
