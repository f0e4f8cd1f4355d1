//! The command line as its users have it: the real binary, its output and its exit status.

mod asking;
mod copying;
mod offline;
pub mod run;
mod served;
mod slurm;
mod story;
mod tail;

/// A deployment profile for a Slurm cluster, in YAML.
const SLURM_PROFILE: &str = "\
name: hpc
translation: {algo: metis, num_par: 1, num_islands: 1}
deployment:
  kind: slurm_remote
  login_node: hpc.example.org
  account: survey
  home_dir: /home/survey
  log_dir: /scratch/log
  dlg_root: /scratch/dlg
  venv: source /venv/bin/activate
  exec_prefix: srun
  facility: hpc
  job_duration_minutes: 30
  container_runtime: null
  resources: {partition: work, memory: 8G}
";
