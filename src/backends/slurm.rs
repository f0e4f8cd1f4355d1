//! **Slurm**: a facility's cluster, reached through its login node.
//!
//! `cluster` is the remote side: session directories, the marks in them, submission. `quote` makes a text one word of a
//! POSIX shell.

pub mod cluster;
pub mod quote;
