#!/usr/bin/env bash
# SFT prompt distillation on a CPU: sentences, tiny pair, the prompted teacher's labels, training without the prompt, table.
set -euo pipefail
OUT=${OUT:-outputs/sft_cpu}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

$PYTHON -m recipe.create_data out_dir="$OUT/data" max_chars=64
$PYTHON -m recipe.tiny_pair data_dir="$OUT/data" out_dir="$OUT/base"
$PYTHON -m recipe.create_data out_dir="$OUT/data" max_chars=64 teacher="$OUT/base" \
    labels.extract=whole labels.policy=strict sampling.max_tokens=8 engine.dtype=float32
$PYTHON -m torch.distributed.run --standalone --nproc-per-node "${RANKS:-1}" -m recipe.sft \
    preset=tinker platform=cpu task=demo student.path="$OUT/base" \
    data.train_files="$OUT/data/conversations.parquet" run_dir="$OUT/run" "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    base="$OUT/base" teacher="$OUT/base" student="$OUT/run/student" out="$OUT/eval.json" max_tokens=8 dtype=float32
