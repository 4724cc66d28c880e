#!/usr/bin/env bash
# Several nodes, shown on one machine without a GPU: two Ray nodes, a trainer rank and a vLLM on each, one teacher for both.
set -euo pipefail
OUT=${OUT:-outputs/two_ray_nodes}
PYTHON=${PYTHON:-.venv/bin/python}
RAY=${RAY:-.venv/bin/ray}
HEAD=127.0.0.1:${RAY_PORT:-6390}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 RAY_agent_register_timeout_ms=300000 RAY_AUTH_MODE=token
mkdir -p "$OUT"
NODE="--num-cpus=16 --num-gpus=1 --object-store-memory=268435456 --disable-usage-stats --block"
RAY_FILES=$(mktemp -d /tmp/ray-XXXXXX) # of its own: Ray's usual one would make every later `ray.init()` look for this cluster
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$RAY_FILES"' EXIT

$PYTHON -m recipe.create_data out_dir="$OUT/data" max_chars=64
$PYTHON -m recipe.tiny_pair data_dir="$OUT/data" out_dir="$OUT/base"
(umask 077; $RAY get-auth-token --generate > /dev/null) # into ~/.ray, for nodes and driver alone
$RAY start --head --port="${HEAD#*:}" --include-dashboard=false --temp-dir="$RAY_FILES" $NODE > "$OUT/ray-head.log" 2>&1 &
sleep "${RAY_HEAD_SECONDS:-20}"
$RAY start --address="$HEAD" $NODE > "$OUT/ray-node.log" 2>&1 &
sleep "${RAY_WORKER_SECONDS:-20}"
$PYTHON -m recipe.on_policy_distillation hardware=cpu_2_nodes task=demo update=lora student.path="$OUT/base" \
    ray_kwargs.ray_init.address="$HEAD" actor_rollout_ref.actor.optim.lr=5e-3 run_dir="$OUT/run" \
    data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" \
    trainer.total_training_steps=12 "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    base="$OUT/base" teacher="$OUT/base" student="$OUT/run/student" out="$OUT/eval.json" max_tokens=8 dtype=float32
