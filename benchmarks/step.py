"""Where the seconds of a step go, ours beside stock verl's (no teacher), same model, rows and batch.

python -m benchmarks.step --json step.json
"""

from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import arguments, launch, report

STAGES = (
    ("sampling (ours: and scoring)", "timing_s/gen"),
    ("recomputed log-probs", "timing_s/old_log_prob"),
    ("advantage", "timing_s/adv"),
    ("update", "timing_s/update_actor"),
    ("weight sync", "timing_s/update_weights"),
    ("step", "timing_s/step"),
    ("a sample is at the teacher", "teacher/seconds"),
)
BAR = 1.05


def main() -> None:
    options = arguments("seconds of a step, ours and stock verl's", steps=12)
    ours = launch("recipe.on_policy_distillation", options.out / "ours", options.steps)
    stock = launch("benchmarks.arms.stock_verl", options.out / "stock", options.steps)
    table = Table(title=f"median seconds a step, steps 3 to {options.steps}, 32 prompts x 4 samples")
    for column in ("", "ours", "stock verl", "ours / stock"):
        table.add_column(column, justify="left" if not column else "right")
    rows = []
    for name, key in STAGES:
        mine, theirs = ours.median(key), stock.median(key)
        rows.append({"stage": name, "ours": mine, "stock": theirs})
        table.add_row(name, f"{mine:.3f}", f"{theirs:.3f}", f"{mine / theirs:.2f}" if theirs else "-")
    Console().print(table)
    step, stock_step = ours.median("timing_s/step"), stock.median("timing_s/step")
    without_teacher = step - ours.median("teacher/seconds")
    bars = [
        ("step_without_teacher_over_stock", without_teacher / stock_step, BAR),
        ("step_over_stock", step / stock_step, BAR),
    ]
    report(rows, bars, options.json)


if __name__ == "__main__":
    main()
