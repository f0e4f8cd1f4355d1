//! **Slurm**: a facility's cluster, reached through its login node.
//!
//! What is text is pure: what is asked on a login node and how the answers are read (`squeue`, `sacct`, `poll`,
//! `sbatch`), the script
//! that a job runs (`script`) with the launcher inside it (`launch.py`), what is wrong with a profile (`check`), why a job
//! waits (`reason`) and what its end means (`outcome`). `cluster` is the remote side over SSH: session directories, the
//! marks in them, submission.
//!
//! Invariant: text of a user's enters a command line or a script only through `quote`; what is not understood is an error or
//! [`job::State::Other`], never an end.

pub mod check;
pub mod cluster;
pub mod job;
pub mod outcome;
pub mod poll;
pub mod quote;
pub mod reason;
pub mod sacct;
pub mod sbatch;
pub mod script;
pub mod session_file;
pub mod squeue;
pub mod table;

pub use table::{Limit, PollError, Printed};
