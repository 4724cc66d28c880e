#!/usr/bin/env bash
# Tinker's prompt distillation on GPUs: labels from the prompted 30B teacher, a LoRA on the 4B student without the prompt.
set -euo pipefail
TEACHER=${TEACHER:-Qwen/Qwen3-30B-A3B-Instruct-2507}
STUDENT=${STUDENT:-Qwen/Qwen3-4B-Instruct-2507}
GPUS=${GPUS:-8}
OUT=${OUT:-outputs/sft}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.create_data out_dir="$OUT/data" prompt=tinker teacher="$TEACHER" \
    labels.policy=tinker engine.tp="${TP:-1}" engine.dtype=bfloat16
$PYTHON -m torch.distributed.run --standalone --nproc-per-node "$GPUS" -m recipe.sft \
    preset=tinker platform=cuda student.path="$STUDENT" \
    data.train_files="$OUT/data/conversations.parquet" run_dir="$OUT/run" "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" extract_prompted=final_answer \
    base="$STUDENT" base_prompted="$STUDENT" teacher="$TEACHER" student="$OUT/run/student" out="$OUT/eval.json" \
    tp="${TP:-1}" dtype=bfloat16
