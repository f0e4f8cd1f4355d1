//! One test binary: the suites beside it, one module each (two cores link slowly).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;
mod archives;
mod artifacts;
mod backends;
mod cli;
mod flows;
mod project;
mod ssh;
mod support;
mod tidy;
