#!/usr/bin/env bash
# A tool on a CPU: the teacher is told to work sums out with a calculator, the student is not and learns to. The table at the
# end has its controls; it fails where the student reaches less than 0.9 x the teacher's accuracy.
set -euo pipefail
OUT=${OUT:-outputs/tools_cpu}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1
TOOL=examples/calculator.py

$PYTHON -m verl_ext.demo.tools rows "$OUT/data"
$PYTHON -m verl_ext.demo.tools base "$OUT/base" --tools "$TOOL"
train() { # RUN_DIR, then further words
    local run_dir=$1
    shift
    $PYTHON -m recipe.on_policy_distillation platform=cpu task=demo student.path="$OUT/base" run_dir="$run_dir" \
        data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/heldout.parquet" \
        data.max_response_length=128 actor_rollout_ref.rollout.max_model_len=288 \
        actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent \
        actor_rollout_ref.rollout.multi_turn.function_tool_path="$TOOL" \
        trainer.total_training_steps=24 trainer.save_freq=24 trainer.val_before_train=true trainer.test_freq=24 \
        report.keep_samples=300 report.alternatives=0 "$@"
}
train "$OUT/run" "$@"
train "$OUT/control" method.control=constant_negative "$@"
$PYTHON -m verl_ext.demo.tools table "$OUT" --least 0.9
