#!/bin/sh
# TEACHER_PYTHON for a SGLang that is a folder instead of an environment: set SGLANG_SITE to the folder.
# (The teacher's process gets no PYTHONPATH of the trainer's: verl_ext/teacher/server/process.py takes it away.)
: "${SGLANG_SITE:?set it to the folder that holds sglang}"
export PYTHONPATH="$SGLANG_SITE"
export LD_LIBRARY_PATH="$SGLANG_SITE/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec python3 "$@"
