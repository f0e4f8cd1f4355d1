//! SSH against a real server: who is let in and who is not (`access`), commands, files. `login` is that server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod access;
mod commands;
mod files;
pub mod login;
pub mod relay;
