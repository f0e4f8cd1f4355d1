//! Backends and the translator: reading what DALiuGE answered (`golden`), talking to a real one (`dim`,
//! `translator`), what a peer may do instead of answering (`faults`), the simulated one, and
//! the remote side of Slurm (`slurm_cluster`, on a `slurm_site`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

pub mod daliuge;
mod dim;
mod faults;
mod golden;
mod simulated;
mod slurm_cluster;
pub mod slurm_site;
mod translator;
