#!/usr/bin/env bash
# On-policy prompt distillation on a CPU: sentences, tiny pair, the student's own samples scored by the teacher, table.
set -euo pipefail
OUT=${OUT:-outputs/on_policy_cpu}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

$PYTHON -m recipe.create_data out_dir="$OUT/data" max_chars=64
$PYTHON -m recipe.tiny_pair data_dir="$OUT/data" out_dir="$OUT/base"
$PYTHON -m recipe.on_policy_distillation platform=cpu task=demo student.path="$OUT/base" run_dir="$OUT/run" \
    data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" \
    trainer.total_training_steps=16 "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    base="$OUT/base" teacher="$OUT/base" student="$OUT/run/student" out="$OUT/eval.json" max_tokens=8 dtype=float32
