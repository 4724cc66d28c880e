"""A run's throughput as tables, as words, and as a picture."""

from pathlib import Path

from rich.table import Table

from verl_ext.plan.throughput import (
    STUDENT,
    TEACHER,
    TRAINER,
    Engines,
    Outlook,
    Stages,
    balanced,
    bound_now,
    now,
    one_step_off,
    stream,
)

WORTH = 1.05
"""How many times faster a step must become for a change to be proposed."""
COLOURS = {STUDENT: "#4477aa", TEACHER: "#ccbb44", TRAINER: "#228833", "sync": "#bbbbbb"}
DRAWN_STEPS = 4


def stage_table(stages: Stages) -> Table:
    """Seconds of each stage, and its share of the step."""
    table = Table(title="a step, seconds", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("of the step", justify="right")
    rows = [
        ("waiting for samples and scores", stages.waiting),
        ("training", stages.training),
        ("weight sync", stages.sync),
        ("between them", stages.rest),
    ]
    for name, seconds in rows:
        table.add_row(name, f"{seconds:.3g}", f"{seconds / stages.whole:.0%}")
    table.add_section()
    table.add_row("step", f"{stages.whole:.3g}", "")
    table.add_section()
    table.add_row("a sample is at the student", f"{stages.student:.3g}", f"{stages.student / stages.whole:.0%}")
    table.add_row("a sample is at the teacher", f"{stages.teacher:.3g}", f"{stages.teacher / stages.whole:.0%}")
    seldom = (("checkpoint", stages.saving, stages.saves), ("validation", stages.testing, stages.tests))
    for name, each, times in seldom:
        if times:
            table.add_row(f"{name} ({times} of {stages.steps} steps)", f"+{each:.3g}", f"+{each / stages.whole:.0%}")
    return table


def outlook_table(outlooks: list[Outlook], samples: int) -> Table:
    """A step now, overlapped, and with other numbers of replicas; the first is what the others are compared with."""
    title = "at best; under student, teacher, trainer how busy they are, %"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("mode")
    for name in ("vLLM", "SGLang", "s/step", "samples/s", "times", "student", "teacher", "trainer"):
        table.add_column(name, justify="right")
    table.add_column("bound by")
    for number, each in enumerate(outlooks):
        counts = (str(each.students), str(each.teachers), f"{each.seconds:.3g}", f"{samples / each.seconds:.4g}")
        faster = f"{outlooks[0].seconds / each.seconds:.2f}" if number else ""
        busy = (f"{100 * each.busy[worker]:.0f}" for worker in (STUDENT, TEACHER, TRAINER))
        table.add_row(each.name, *counts, faster, *busy, each.bound)
    return table


def outlooks_of(stages: Stages, engines: Engines) -> list[Outlook]:
    """As measured; the same engines overlapped; then balanced numbers of replicas, those that are not there yet."""
    same = stream(stages, engines, engines.students, engines.teachers)
    found = [now(stages, engines)]
    if not engines.ahead:
        found.append(one_step_off(stages, engines))
        found += [same] if same.seconds < found[-1].seconds else []
    seen = {(each.students, each.teachers) for each in found}
    return found + [each for each in balanced(stages, engines) if (each.students, each.teachers) not in seen]


def bound_in_words(stages: Stages, engines: Engines) -> str:
    """What the step waits for, and how it is known."""
    bound = bound_now(stages, engines)
    if bound == TRAINER:
        hidden = ", behind which sampling and scoring are hidden" if engines.ahead else ""
        return f"bound by training: {stages.trainer / stages.whole:.0%} of the step{hidden}"
    waits = f"{stages.waiting / stages.whole:.0%} of the step waits for samples and scores"
    slots = f"{stages.in_flight:.1f} of {engines.slots} requests in flight while a sample is there"
    return f"bound by the {bound}: {waits}; the teacher: {slots}"


def advice(stages: Stages, engines: Engines, run: str, shared: list[str], managed: bool) -> list[str]:
    """What to do next, the command first. `shared`: who work on the trainer's own devices."""
    lines, bound = [], bound_now(stages, engines)
    if not engines.ahead and stages.whole / one_step_off(stages, engines).seconds >= WORTH:
        words = f"{run}/config.yaml pipeline.mode=one_step_off run_dir={run}-one_step_off"
        lines.append(f"next: python -m recipe.on_policy_distillation {words}")
    elif bound == TRAINER:
        lines.append("overlap and replicas give nothing more: training itself must become faster")
    elif bound == TEACHER and TEACHER not in shared:
        more = stream(stages, engines, engines.students, engines.teachers + 1)
        change = f"teacher.dp={more.teachers}" if managed else "one more server in teacher.urls"
        lines.append(f"next: a teacher more, {change}: {stages.whole / more.seconds:.2f} times as fast at best")
    else:
        most = balanced(stages, engines)[-1]
        lines.append(
            f"next: more devices for the {bound}, until there are {most.students} students, {most.teachers} teachers"
        )
    who = " and ".join(f"the {each}" for each in shared) + (" work" if len(shared) > 1 else " works")
    lines.append(
        f"{who} on the trainer's own devices: overlap gives as much as those are idle now, and more replicas want more "
        "devices"
    )
    return lines


def draw(stages: Stages, engines: Engines, file: Path) -> None:
    """Who works when, by the model: one batch after the other, and one step off. The ending of `file` is its format."""
    import matplotlib
    from matplotlib.figure import Figure

    ahead = one_step_off(stages, engines).seconds
    with matplotlib.rc_context({"svg.hashsalt": "verl-opd", "font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        in_turn = stages.answering + stages.trainer + stages.sync
        for axes, name, seconds, first in zip(
            panels, ("sync", "one_step_off"), (in_turn, ahead), (stages.answering, 0.0), strict=True
        ):
            for step in range(DRAWN_STEPS):
                start = step * seconds
                late = start + stages.answering - stages.teacher
                axes.broken_barh([(start, stages.student)], (2, 0.8), color=COLOURS[STUDENT])
                axes.broken_barh([(late, stages.teacher)], (1, 0.8), color=COLOURS[TEACHER])
                axes.broken_barh([(start + first, stages.trainer)], (0, 0.8), color=COLOURS[TRAINER])
                axes.broken_barh([(start + seconds - stages.sync, stages.sync)], (0, 2.8), color=COLOURS["sync"])
            axes.set_yticks([0.4, 1.4, 2.4], ["trainer", TEACHER, STUDENT])
            axes.set_title(f"{name}: {seconds:.3g} s a step{' at best' if name != 'sync' else ''}", loc="left")
        panels[-1].set_xlabel("seconds; grey: weight sync")
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
