//! Backends and the translator: reading what DALiuGE answered (`golden`), talking to a real one (`dim`,
//! `translator`), what a peer may do instead of answering (`faults`), jobs of Slurm as text (`slurm`), the remote side of
//! Slurm (`slurm_cluster`, on a `slurm_site`), and the simulated one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

pub mod daliuge;
mod dim;
mod faults;
mod golden;
mod simulated;
mod slurm;
mod slurm_cluster;
pub mod slurm_site;
mod translator;
