#!/usr/bin/env bash
# SFT as Tinker has it, SFT as the published table has it, on-policy and two controls, on answers of one label and on answers of
# 48 tokens: three seeds of the first and the third, one of the others. Killed, the same command goes on.
set -euo pipefail
OUT=${OUT:-outputs/comparison}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

failed=0 # an arm that fails does not keep the other task from being run
$PYTHON -m recipe.compare run task=classification out="$OUT/classification" "$@" || failed=1
$PYTHON -m recipe.compare run task=sequential out="$OUT/sequential" "$@" || failed=1
exit $failed
