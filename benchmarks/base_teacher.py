"""What `teacher.mode=base` saves and costs: the demo's pair with LoRA, taught by a served copy and by its own base.

    python -m benchmarks.base_teacher --json base_teacher.json

The third arm keeps the trainer's base in 4 bits besides (`update=qlora`). Memory: the most that all processes of a run
held at once, pages that they share counted once. On a CPU vLLM and SGLang hold caches of a set size, which tiny weights
vanish in: what is saved is a server, not a copy. The bars: both teachers say the same at the first step, where the
student is the base; the arm without a server takes less memory; all learn.
"""

import sys

from benchmarks.arms.runs import arguments, launch, report, show
from benchmarks.vs_peers import PeakMemory
from verl_ext.checks.config import FP32

RATE = "actor_rollout_ref.actor.optim.lr=5e-3"
ARMS = {
    "served copy": ("update=lora",),
    "base": ("update=lora", "teacher.mode=base"),
    "base, 4 bits": ("update=qlora", "teacher.mode=base"),
}
LEARNED = 0.5
"""Share of the first step's reverse KL that may be left at the last one."""


def main() -> None:
    options = arguments("memory, seconds and learning of LoRA with and without a teacher's server", steps=12)
    rows, first = [], {}
    for name, overrides in ARMS.items():
        folder = options.out / name.replace(", ", "-").replace(" ", "-")
        with PeakMemory() as peak:
            run = launch("recipe.on_policy_distillation", folder, options.steps, RATE, *overrides)
        first[name] = run.rows[0]["teacher_kl"]
        rows.append(
            {
                "teacher": name,
                "peak_gib": peak.gib,
                "seconds_a_step": run.median("timing_s/step"),
                "teacher_kl_first": first[name],
                "teacher_kl_last": run.rows[-1]["teacher_kl"],
                "rollout_gap_max": run.rows[-1]["actor/rollout_gap_max"],
            }
        )
    show(rows, f"{options.steps} steps of 32 prompts x 4 samples; nats a token")
    bars = [
        ("first_step_nats_apart", abs(first["base"] - first["served copy"]), FP32.max),
        ("memory_over_served", rows[1]["peak_gib"] / rows[0]["peak_gib"], 1.0),
        *((f"{row['teacher']}_kl_left", row["teacher_kl_last"] / row["teacher_kl_first"], LEARNED) for row in rows),
    ]
    report(rows, bars, options.json)


if __name__ == "__main__":
    sys.exit(main())
