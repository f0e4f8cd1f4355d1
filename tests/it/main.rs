//! One test binary: the suites beside it, one module each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod archives;
mod project;
