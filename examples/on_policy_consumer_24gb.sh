#!/usr/bin/env bash
# A first try on one GPU of 24 GB: Qwen3-0.6B from Qwen3-1.7B, every weight.
set -euo pipefail
OUT=${OUT:-outputs/on_policy_consumer_24gb}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.create_data out_dir="$OUT/data" prompt=tinker
$PYTHON -m recipe.on_policy_distillation model=qwen3_0p6b_from_1p7b hardware=consumer_24gb update=full teacher=bf16 \
    run_dir="$OUT/run" data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    extract=final_answer extract_prompted=final_answer dtype=bfloat16 enable_thinking=false \
    base=Qwen/Qwen3-0.6B teacher=Qwen/Qwen3-1.7B student="$OUT/run/student" out="$OUT/eval.json"
