"""What overlap gives: the demo's training in each `pipeline.mode`, who was busy when, and who waited.

    python -m benchmarks.pipeline --plot pipeline.svg --json pipeline.json

The same rows, batch and number of samples in every mode; real engines, one teacher server for all of them, rounds
interleaved. Seconds are those between the end of the second step and the end of the last one, so that start-up and
warm-up are outside. On a CPU the stages share the cores: overlap fills what one of them leaves idle, and no more.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms.runs import launch, report, show
from benchmarks.method_ablation import demo_teacher
from verl_ext.run.timeline import WAITING, Span, lanes, length, read_timeline

TRUNCATED = ("method.policy_loss.kind=truncated_importance_sampling", "method.student_logprobs=current")
MODES: dict[str, tuple[str, ...]] = {
    "sync": (),
    "one_step_off": ("pipeline.mode=one_step_off",),
    "stream": ("pipeline.mode=stream", "pipeline.max_staleness=2", *TRUNCATED),
}
SAMPLES = 128
"""Of a step of the demo."""
WARM_UP = 2
WAITING_BAR = 0.10
"""Share of its time for which the trainer may wait for samples where the next ones are made meanwhile."""
SHOWN_S = 8.0


def measured(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds, samples/s and idle shares of the steps after the warm-up."""
    start, end = steps[WARM_UP - 1]["stages"][-1][1], steps[-1]["stages"][-1][1]
    seconds = end - start
    busy = {name: length(within(spans, start, end)) / seconds for name, spans in lanes(steps).items()}
    waited = sum(
        later - begun
        for step in steps[WARM_UP:]
        for (name, begun), (_, later) in zip(step["stages"], step["stages"][1:], strict=False)
        if name == WAITING
    )
    return {
        "seconds_a_step": seconds / (len(steps) - WARM_UP),
        "samples_per_s": SAMPLES * (len(steps) - WARM_UP) / seconds,
        "trainer_waits": waited / seconds,
        **{f"{name}_idle": 1 - share for name, share in busy.items() if name != "weight sync"},
    }


def within(spans: Sequence[Span], start: float, end: float) -> list[Span]:
    return [(max(start, a), min(end, b)) for a, b in spans if a < end and b > start]


def summary(mode: str, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"mode": mode} | {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}


def bars(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float]]:
    by_mode = {row["mode"]: row for row in rows}
    found = []
    for mode in ("one_step_off", "stream"):
        if mode in by_mode and "sync" in by_mode:
            found.append(
                (f"{mode}_over_sync", by_mode[mode]["seconds_a_step"] / by_mode["sync"]["seconds_a_step"], 1.0)
            )
            found.append((f"{mode}_trainer_waits", by_mode[mode]["trainer_waits"], WAITING_BAR))
    return found


def draw(timelines: dict[str, Sequence[dict[str, Any]]], file: Path) -> None:
    """Who was busy during the same number of seconds of each mode, from the end of its second step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 * len(timelines) + 0.6), layout="constrained")
    panels = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0]
    colours = {"student": "tab:blue", "teacher": "tab:orange", "trainer": "tab:green", "weight sync": "tab:red"}
    for axes, (mode, steps) in zip(panels, timelines.items(), strict=True):
        start = steps[WARM_UP - 1]["stages"][-1][1]
        for number, (lane, spans) in enumerate(lanes(steps).items()):
            shown = [(a - start, b - a) for a, b in within(spans, start, start + SHOWN_S)]
            axes.broken_barh(shown, (number - 0.4, 0.8), color=colours[lane])
        for step in steps[WARM_UP:]:
            axes.axvline(step["stages"][-1][1] - start, color="black", linewidth=0.5, linestyle=":")
        axes.set(yticks=range(len(colours)), yticklabels=list(colours), xlim=(0, SHOWN_S), title=mode)
        axes.invert_yaxis()
    panels[-1].set_xlabel("seconds; dotted: a step ends")
    figure.savefig(file)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the demo's training in each pipeline.mode")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {', '.join(MODES)}")
    parser.add_argument("--steps", type=int, default=12, help="training steps of each run, above 2")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each mode, interleaved")
    parser.add_argument("--out", type=Path, help="folder for the runs; default: a new temporary one")
    parser.add_argument("--plot", type=Path, help="draw who was busy when; the ending chooses the format")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    options.out = options.out or Path(tempfile.mkdtemp(prefix="benchmark-"))
    options.modes = options.modes.split(",")
    if unknown := [mode for mode in options.modes if mode not in MODES]:
        parser.error(f"--modes: no mode {', '.join(unknown)}; there are {', '.join(MODES)}")
    if options.steps <= WARM_UP:
        parser.error(f"--steps={options.steps}: the first {WARM_UP} are not measured")
    return options


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    timelines: dict[str, Sequence[dict[str, Any]]] = {}
    rounds: dict[str, list[dict[str, Any]]] = {mode: [] for mode in options.modes}
    with demo_teacher(options.out) as teacher:
        for number in range(options.rounds):
            for mode in options.modes:
                folder = options.out / f"{mode}-{number}"
                launch("recipe.on_policy_distillation", folder, options.steps, *teacher, *MODES[mode])
                timelines[mode] = read_timeline(folder / "timeline.jsonl")
                rounds[mode].append(measured(timelines[mode]))
    rows = [summary(mode, rounds[mode]) for mode in options.modes]
    show(rows, f"{options.steps} steps of {SAMPLES} samples, {options.rounds} rounds", numbers=".3f")
    if options.plot:
        draw(timelines, options.plot)
    report(rows, bars(rows), options.json)


if __name__ == "__main__":
    main()
