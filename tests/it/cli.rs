//! The command line as its users have it: the real binary, its output and its exit status.

mod asking;
mod copying;
mod offline;
mod run;
mod served;
mod slurm;
mod story;
mod tail;
