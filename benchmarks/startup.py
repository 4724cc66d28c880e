"""Where the seconds go from launch to the first finished step, ours (teacher included) beside stock verl (none).

python -m benchmarks.startup --json startup.json
"""

import json

from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import Run, arguments, launch, report

BAR = 0.35


def stages(run: Run) -> list[tuple[str, float]]:
    """(what became true, seconds since launch), in the order of time."""
    lines = (run.folder / "stages.jsonl").read_text().splitlines()
    marks = [json.loads(line) for line in lines]
    return sorted(((mark["stage"], mark["time"] - run.launched) for mark in marks), key=lambda pair: pair[1])


def first_step_done(run: Run) -> float:
    """Seconds from launch until the metrics of the first step were written."""
    file = "stock.jsonl" if (run.folder / "stock.jsonl").exists() else "metrics.jsonl"
    return (run.folder / file).stat().st_mtime - run.launched


def main() -> None:
    options = arguments("seconds from launch to the first step, ours and stock verl's", steps=1)
    ours = launch("recipe.on_policy_distillation", options.out / "ours", 1)
    stock = launch("benchmarks.arms.stock_verl", options.out / "stock", 1)
    table = Table(title="start-up, seconds since launch")
    for column in ("what became true", "at", "after the one before"):
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    rows, previous = [], 0.0
    for name, at in [*stages(ours), ("ours: the first step is done", first_step_done(ours))]:
        rows.append({"stage": name, "seconds": at})
        table.add_row(name, f"{at:.1f}", f"{at - previous:.1f}")
        previous = at
    rows.append({"stage": "stock verl: the first step is done", "seconds": first_step_done(stock)})
    table.add_row("stock verl, no teacher: the first step is done", f"{first_step_done(stock):.1f}", "")
    Console().print(table)
    report(rows, [("startup_over_stock", first_step_done(ours) / first_step_done(stock), BAR)], options.json)


if __name__ == "__main__":
    main()
