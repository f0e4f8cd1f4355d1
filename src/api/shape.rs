//! Rows of the read models as the objects of the API. Pure: a row and what is volatile in, JSON out.
//!
//! Every field that a client may look for is there, null when it is unknown.

// Executions.
pub mod execution;
// What a backend was seen to do with an execution.
pub mod run_record;
// Sources.
pub mod source;
// What something waits for.
pub mod why;
