#!/usr/bin/env bash
# Reasoning on one node of 8 H100: problems of the hub, the 4B student's own solutions scored by the 30B teacher (FP8).
# Both see the same prompt; the teacher is the larger model.
set -euo pipefail
OUT=${OUT:-outputs/math_reasoning}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.create_data source=hub hub.path="${HUB:-agentica-org/DeepScaleR-Preview-Dataset}" \
    hub.name="${NAME:-}" hub.text="${TEXT:-problem}" hub.answer="${ANSWER:-answer}" prompt=math student_prompt=math data_source=math \
    hub.max_chars=2000 heldout_fraction=0.0125 out_dir="$OUT/data"
$PYTHON -m recipe.on_policy_distillation task=math_reasoning model=qwen3_4b_from_30b hardware=h100_8x update=lora \
    teacher=fp8 run_dir="$OUT/run" data.train_files="$OUT/data/train.parquet" \
    data.val_files="$OUT/data/heldout.parquet" trainer.total_training_steps=200 "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" max_tokens=4096 dtype=bfloat16 \
    tp="${TP:-2}" gpu_memory_utilization="${SHARE:-0.8}" \
    base=Qwen/Qwen3-4B-Instruct-2507 teacher=Qwen/Qwen3-30B-A3B-Instruct-2507 student="$OUT/run/student" out="$OUT/eval.json"
