//! The service: commands in, events appended, work done, answers given.
//!
//! This list is the map of the tree; `docs/architecture.md` walks through it.

// The documentation is built with private items: it is for those who work in here.
#![allow(rustdoc::private_intra_doc_links)]

// What alerts call for is told to people.
pub mod alerts;
// The HTTP API.
pub mod api;
// Wires everything; start and orderly stop.
pub mod app;
// Archives: where data is discovered (IVOA TAP).
pub mod archives;
// Large bytes by their digest.
pub mod artifacts;
// Passwords, tokens, and what they prove.
pub mod auth;
// Where executions run: DALiuGE over REST, and a simulated one for load tests.
pub mod backends;
// The command line.
pub mod cli;
// Time, ids and randomness.
pub mod clock;
// Events to JSON and back.
pub mod codec;
// One configuration, read once.
pub mod config;
pub mod engine;
// Places where a test may end the process.
pub mod fault;
// Load, decide, append; decide again on conflict.
pub mod handle;
// Everything that Prometheus scrapes.
pub mod metrics;
// Requests to addresses that people configure.
pub mod outgoing;
// Project configurations: what a survey says about discovery, manifests and graphs.
pub mod project;
// Secrets that only this service can read again.
pub mod sealing;
// References to secrets.
pub mod secrets;
// Connections to login nodes.
pub mod ssh;
// What the service says while it runs.
pub mod telemetry;
// Scheduler, queue and workers.
pub mod work;
