//! The command line as its users have it: the real binary, its output and its exit status.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod offline;
mod run;
mod tail;
