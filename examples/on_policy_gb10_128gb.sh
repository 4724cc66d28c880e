#!/usr/bin/env bash
# One GB10 (DGX Spark): 128 GB shared by CPU and GPU hold student, trainer and the 30B teacher in FP8; LoRA.
set -euo pipefail
OUT=${OUT:-outputs/on_policy_gb10_128gb}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.create_data out_dir="$OUT/data" prompt=tinker
$PYTHON -m recipe.on_policy_distillation model=qwen3_4b_from_30b hardware=gb10_128gb update=lora teacher=fp8 \
    run_dir="$OUT/run" data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    extract=final_answer extract_prompted=final_answer dtype=bfloat16 gpu_memory_utilization=0.6 \
    base=Qwen/Qwen3-4B-Instruct-2507 teacher=Qwen/Qwen3-30B-A3B-Instruct-2507 student="$OUT/run/student" out="$OUT/eval.json"
