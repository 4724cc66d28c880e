#!/usr/bin/env bash
# Tinker's own pair on 8 H100: Qwen3-30B-A3B is its own teacher, with the prompt; LoRA on attention.
set -euo pipefail
OUT=${OUT:-outputs/self_distillation_h100_8x}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.create_data out_dir="$OUT/data" prompt=tinker
$PYTHON -m recipe.on_policy_distillation model=qwen3_30b_a3b_self hardware=h100_8x update=lora teacher=bf16 \
    run_dir="$OUT/run" data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    extract=final_answer extract_prompted=final_answer dtype=bfloat16 tp=2 \
    base=Qwen/Qwen3-30B-A3B-Instruct-2507 teacher=Qwen/Qwen3-30B-A3B-Instruct-2507 student="$OUT/run/student" out="$OUT/eval.json"
