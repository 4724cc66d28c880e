#!/usr/bin/env bash
#SBATCH --job-name=verl-opd --nodes=3 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=96 --exclusive
# Slurm: a Ray cluster over the job's nodes, then an example that finds it (EXAMPLE, default on_policy_ray_cluster.sh).
#     sbatch --export=ALL,TEACHER_API_KEY=... examples/slurm.sh
set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
RAY=${RAY:-.venv/bin/ray}
export RAY_ADDRESS=$HEAD:${RAY_PORT:-6379} RAY_AUTH_MODE=token

(umask 077; "$RAY" get-auth-token --generate > /dev/null) # into ~/.ray, which the nodes share, for nobody else to read
srun --overlap --nodes=1 --nodelist="$HEAD" "$RAY" start --head --port="${RAY_PORT:-6379}" --block &
sleep "${RAY_HEAD_SECONDS:-20}"
srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$HEAD" "$RAY" start --address="$RAY_ADDRESS" --block &
sleep "${RAY_WORKER_SECONDS:-20}"
srun --overlap --nodes=1 --nodelist="$HEAD" bash "${EXAMPLE:-examples/on_policy_ray_cluster.sh}" "$@"
