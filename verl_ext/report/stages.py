"""Where the time went: the last steps as lanes, the stages of all of them as a table, and the start."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verl_ext.report.blocks import Block, Lanes, Missing, Span, Table
from verl_ext.report.files import RunFiles
from verl_ext.report.text import counted, duration, number

STEPS = 6
"""Steps that the picture shows, the last ones."""
WAITING = "samples and scores"
Timed = Mapping[str, Any]


def time_of(run: RunFiles) -> list[Block]:
    """Lanes and tables of a run's time."""
    blocks: list[Block] = []
    steps = [row for row in run.timeline.rows if row.get("stages")]
    if steps:
        blocks += [lanes_of(steps), stage_table(steps)]
    else:
        missing = "timeline.jsonl, when student, teacher and trainer were busy"
        blocks.append(Missing(missing, "On-policy training writes it; SFT does not."))
    return [*blocks, *start_of(run)]


def lanes_of(steps: Sequence[Timed]) -> Lanes:
    """The last steps: student, teacher, and the trainer's stages."""
    shown = steps[-STEPS:]
    left, right = shown[0]["stages"][0][1], shown[-1]["stages"][-1][1]
    width = max(right - left, 1e-9)

    def within(spans: Sequence[Sequence[float]], kind: str) -> tuple[Span, ...]:
        cut = ((max(start, left) - left, min(end, right) - left) for start, end in spans)
        return tuple(Span(start, end, kind) for start, end in cut if end > start)

    who = {
        name: within([tuple(span) for step in shown for span in step[name]], name) for name in ("student", "teacher")
    }
    trainer = tuple(
        Span(start - left, end - left, f"trainer: {name}")
        for step in shown
        for (name, start), (_, end) in itertools.pairwise(step["stages"])
        if name != WAITING
    )
    busy = {name: sum(span.end - span.start for span in spans) for name, spans in (who | {"trainer": trainer}).items()}
    first, last = shown[0]["step"], shown[-1]["step"]
    said = ", ".join(f"the {name} {seconds / width:.0%}" for name, seconds in busy.items())
    return Lanes(
        title=f"Who was busy, steps {first} to {last}" + (f" of {steps[-1]['step']}" if len(steps) > STEPS else ""),
        lanes=(("student", who["student"]), ("teacher", who["teacher"]), ("trainer", trainer)),
        marks=tuple(
            (step["stages"][0][1] - left, f"{'' if at else 'step '}{step['step']}") for at, step in enumerate(shown)
        ),
        seconds=width,
        sentence=f"Of these {duration(width)} were busy: {said}. The trainer waits for samples and scores in the rest.",
    )


def stage_table(steps: Sequence[Timed]) -> Table:
    """Median and sum of every stage."""
    seconds: dict[str, list[float]] = {}
    for step in steps:
        for (name, start), (_, end) in itertools.pairwise(step["stages"]):
            seconds.setdefault(name, []).append(end - start)
    total = sum(map(sum, seconds.values()))
    rows = [
        (
            name,
            number(float(np.median(each)), 3),
            number(max(each), 3),
            number(sum(each), 3),
            f"{sum(each) / total:.0%}",
        )
        for name, each in seconds.items()
    ]
    whole = [step["stages"][-1][1] - step["stages"][0][1] for step in steps]
    rows.append(("step", number(float(np.median(whole)), 3), number(max(whole), 3), number(sum(whole), 3), ""))
    columns = ("the trainer's stage, seconds", "median", "longest", "sum", "share")
    return Table(f"Stages of {counted(len(steps), 'step')}", columns, tuple(rows))


def start_of(run: RunFiles) -> list[Block]:
    """What was up when, of the last start."""
    marks = run.starting.rows
    if not marks:
        return []
    begun = [index for index, mark in enumerate(marks) if mark["stage"] == "settings are checked"]
    last = marks[begun[-1] :] if begun else marks
    rows = tuple((mark["stage"], number(mark["time"] - last[0]["time"], 3)) for mark in last)
    starts = f", the last of {len(begun)} starts" if len(begun) > 1 else ""
    return [
        Table(f"The start{starts}", ("what became true", "seconds since the settings were checked"), rows, folded=True)
    ]
