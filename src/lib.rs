//! The service: commands in, events appended, work done, answers given.
//!
//! This list is the map of the tree; `docs/architecture.md` walks through it.

/// Time, ids and randomness.
pub mod clock;
/// Events to JSON and back.
pub mod codec;
/// Load, decide, append; decide again on conflict.
pub mod handle;
