#!/usr/bin/env bash
# The same way on a CPU: our 20 problems, two tiny models that know no mathematics, 2 steps. Every accuracy is 0 or near it;
# what it shows is that the way is open.
set -euo pipefail
OUT=${OUT:-outputs/math_reasoning_cpu}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

$PYTHON -m recipe.create_data out_dir="$OUT/sentences" max_chars=64
$PYTHON -m recipe.tiny_pair data_dir="$OUT/sentences" out_dir="$OUT/small" steps=20
$PYTHON -m recipe.tiny_pair data_dir="$OUT/sentences" out_dir="$OUT/other" steps=20 seed=1
$PYTHON -m recipe.create_data source=hub hub.path=data/math_sample.jsonl hub.text=text hub.answer=label \
    prompt=math student_prompt=math data_source=math heldout_fraction=0.2 out_dir="$OUT/data"
$PYTHON -m recipe.on_policy_distillation platform=cpu task=math_reasoning \
    student.path="$OUT/small" teacher.model_path="$OUT/other" run_dir="$OUT/run" \
    data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" data.train_batch_size=8 \
    data.max_response_length=32 actor_rollout_ref.rollout.max_model_len=1056 teacher.max_total_tokens=65536 \
    trainer.total_training_steps=2 "$@"
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" max_tokens=32 dtype=float32 \
    base="$OUT/small" teacher="$OUT/other" student="$OUT/run/student" out="$OUT/eval.json"
