//! Slurm as text: what it printed (`words`), what an end means (`outcome`), the script of a job (`script`), and the launcher
//! with a real DALiuGE (`launch`).

mod launch;
mod outcome;
mod script;
pub mod words;

use beampipe_domain::profile::{SlurmRemote, SlurmResources};

pub const SESSION: &str = "5e7a1f00-0000-5000-8000-000000000001";

/// A profile that can be run, with everything in it that a job's script is made of.
pub fn remote() -> SlurmRemote {
    SlurmRemote {
        login_node: "login.example.org".into(),
        ssh_port: Some(2222),
        remote_user: Some("survey".into()),
        ssh_credential: Some("setonix".into()),
        account: "pawsey0411".into(),
        home_dir: "/home/survey".into(),
        log_dir: "/scratch/survey/log".into(),
        dlg_root: "/scratch/survey/dlg".into(),
        modules: Some("module load python/3.11\nmodule load py-mpi4py".into()),
        venv: Some("source /software/survey/venv/bin/activate".into()),
        environment_setup: Some("export OMP_NUM_THREADS=4".into()),
        exec_prefix: "srun --nodes=2 --ntasks-per-node=1".into(),
        facility: "setonix".into(),
        job_duration_minutes: 60,
        num_nodes: 1,
        num_islands: 1,
        verbose_level: 1,
        max_threads: 8,
        slurm_template: Some("#SBATCH --gres=gpu:1\n#SBATCH --reservation=survey".into()),
        resources: Some(SlurmResources {
            partition: Some("work".into()),
            nodes: Some(2),
            tasks: Some(2),
            cpus_per_task: Some(16),
            memory: Some("64G".into()),
            wall_time_minutes: Some(90),
            constraint: Some("milan&bigmem".into()),
            quality_of_service: Some("high".into()),
        }),
        ..SlurmRemote::default()
    }
}
