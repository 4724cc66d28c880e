#!/usr/bin/env bash
# On-policy prompt distillation on GPUs: the 4B student samples without the prompt, the prompted 30B teacher scores it.
set -euo pipefail
TEACHER=${TEACHER:-Qwen/Qwen3-30B-A3B-Instruct-2507}
STUDENT=${STUDENT:-Qwen/Qwen3-4B-Instruct-2507}
OUT=${OUT:-outputs/on_policy}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.create_data out_dir="$OUT/data" prompt=tinker
$PYTHON -m recipe.on_policy_distillation platform=cuda task=prompt_distillation \
    student.path="$STUDENT" teacher.model_path="$TEACHER" run_dir="$OUT/run" \
    data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" \
    trainer.n_gpus_per_node="${STUDENT_GPUS:-4}" teacher.tp="${TEACHER_GPUS:-4}" teacher.dtype=bfloat16 \
    teacher.mem_fraction_static=0.8 "$@"
# The student learns to answer as its teacher does, `Final Answer: xx`.
$PYTHON -m recipe.evaluate data="$OUT/data/heldout.parquet" edge="$OUT/data/edge.parquet" \
    extract=final_answer extract_prompted=final_answer \
    base="$STUDENT" base_prompted="$STUDENT" teacher="$TEACHER" student="$OUT/run/student" out="$OUT/eval.json" \
    tp="${TP:-1}" dtype=bfloat16
