#!/usr/bin/env bash
# One node of 8 H100: the 4B student samples without the prompt, the prompted 30B teacher (FP8, four GPUs) scores it.
set -euo pipefail
OUT=${OUT:-outputs/on_policy_h100_8x}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.create_data out_dir="$OUT/data" prompt=tinker
$PYTHON -m recipe.on_policy_distillation model=qwen3_4b_from_30b hardware=h100_8x update=full teacher=fp8 \
    run_dir="$OUT/run" data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    extract=final_answer extract_prompted=final_answer dtype=bfloat16 tp=2 \
    base=Qwen/Qwen3-4B-Instruct-2507 teacher=Qwen/Qwen3-30B-A3B-Instruct-2507 student="$OUT/run/student" out="$OUT/eval.json"
