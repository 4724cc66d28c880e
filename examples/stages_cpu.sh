#!/usr/bin/env bash
# Each stage of on-policy distillation on its own, on a CPU: answers, their scores, training, answers and scores again, table.
set -euo pipefail
OUT=${OUT:-outputs/stages_cpu}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

$PYTHON -m recipe.create_data out_dir="$OUT/data" max_chars=64
$PYTHON -m recipe.tiny_pair data_dir="$OUT/data" out_dir="$OUT/base"
# What the student says without the prompt, and what the same model thinks of it with the prompt.
$PYTHON -m recipe.generate model="$OUT/base" data="$OUT/data/heldout.parquet" out="$OUT/before.parquet" n=4 \
    sampling.max_tokens=4 engine.dtype=float32
$PYTHON -m recipe.score data="$OUT/before.parquet" teacher.model_path="$OUT/base" teacher.store_path="$OUT/scores" \
    out="$OUT/before_scored.parquet"
# The pipeline of the two, with an update after each batch.
$PYTHON -m recipe.on_policy_distillation platform=cpu task=demo student.path="$OUT/base" run_dir="$OUT/run" \
    data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" \
    teacher.store_path="$OUT/scores" trainer.total_training_steps=16 "$@"
$PYTHON -m recipe.generate model="$OUT/run/student" data="$OUT/data/heldout.parquet" out="$OUT/after.parquet" n=4 \
    sampling.max_tokens=4 engine.dtype=float32 overwrite=true # of a student that was trained further
$PYTHON -m recipe.score data="$OUT/after.parquet" teacher.model_path="$OUT/base" teacher.store_path="$OUT/scores" \
    out="$OUT/after_scored.parquet"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    base="$OUT/base" teacher="$OUT/base" student="$OUT/run/student" out="$OUT/eval.json" max_tokens=8 dtype=float32
