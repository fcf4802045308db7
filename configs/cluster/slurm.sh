#!/usr/bin/env bash
#SBATCH --job-name=longattn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
# One run on nodes of Slurm: sbatch configs/cluster/slurm.sh CONFIG [--set FIELD=VALUE ...]
# Submitted again after its time is up, it goes on where it stopped.
set -euo pipefail

config=${1:?a config is wanted: sbatch configs/cluster/slurm.sh CONFIG [--set FIELD=VALUE ...]}
shift
source "${LONGATTN_VENV:-.venv}/bin/activate"

# A port and a folder of this job's own; a token, since others can reach its nodes.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$head:$port" RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
folder=/tmp/ray-$SLURM_JOB_ID

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --block --port="$port" --temp-dir="$folder" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --dashboard-host=127.0.0.1 &
until srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap ray status > /dev/null 2>&1; do sleep 2; done
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) \
    --exclude="$head" --overlap \
    ray start --block --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

# The exit status of the run is that of the job; Slurm ends Ray with it.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap longattn run "$config" "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"
