#!/bin/bash --login
#SBATCH --job-name=5e7a1f00-0000-5000-8000-000000000001
#SBATCH --comment=5e7a1f00-0000-5000-8000-000000000001
#SBATCH --account=pawsey0411
#SBATCH --partition=work
#SBATCH --qos=high
#SBATCH --constraint="milan&bigmem"
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=90
#SBATCH --output=/scratch/survey/dlg/workspace/5e7a1f00-0000-5000-8000-000000000001/slurm.out
#SBATCH --error=/scratch/survey/dlg/workspace/5e7a1f00-0000-5000-8000-000000000001/slurm.err
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --gres=gpu:1
#SBATCH --reservation=survey

# One job a session: who comes second finds the mark and ends.
cd /scratch/survey/dlg/workspace/5e7a1f00-0000-5000-8000-000000000001 || exit 73
mkdir started || {
    [ -d started ] || exit 73
    echo "this session is taken by job $(cat started/job || echo '(none)')" >&2
    exit 75
}
echo "$SLURM_JOB_ID" >started/job
trap 'code=$?; echo "$code" >ended.part && mv ended.part ended' EXIT

# The site's environment, as the profile gives it.
export DLG_ROOT=/scratch/survey/dlg
module load python/3.11
module load py-mpi4py
source /software/survey/venv/bin/activate
export OMP_NUM_THREADS=4

# The launcher decides the exit code; what the job is told, it is told too.
cd /scratch/survey/dlg/workspace/5e7a1f00-0000-5000-8000-000000000001 || exit 73
srun --nodes=2 --ntasks-per-node=1 python3 -u launch.py \
    --session 5e7a1f00-0000-5000-8000-000000000001 --template graph.json --run='HIPASS J1318-21' --max-threads 8 --verbose-level 1 &
launcher=$!
told=
trap 'told=1; kill -TERM "$launcher" 2>/dev/null' TERM INT
while :; do
    wait "$launcher"
    code=$?
    [ -n "$told" ] || break
    told=
done
exit "$code"
