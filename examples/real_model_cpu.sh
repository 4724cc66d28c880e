#!/usr/bin/env bash
# A real model on a CPU: SmolLM2-135M-Instruct out of a registry's wheel (98 MB, Apache-2.0), converted here. The teacher sees
# examples of each answer, the student the question alone; SFT on the teacher's labels beside on-policy, one seed each.
set -euo pipefail
OUT=${OUT:-outputs/real_model_cpu}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

$PYTHON -m recipe.compare run task=real out="$OUT" 'only=[sft_tinker,on_policy]' 'arms.sft_tinker.seeds=[0]' \
    'arms.on_policy.seeds=[0]' "$@"
