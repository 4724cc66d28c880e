#!/usr/bin/env bash
# What of the SFT baseline is Tinker's, value by value, read from the installed tinker-cookbook. Needs no GPU.
set -euo pipefail
OUT=${OUT:-outputs/parity}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON -m recipe.compare parity out="$OUT/parity.json" "$@"
