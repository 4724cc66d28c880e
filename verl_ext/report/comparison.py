"""The report of a comparison: the same task and evaluation, several ways to train, each with its seeds."""

import time
from pathlib import Path

from verl_ext.comparison.prices import Prices
from verl_ext.report.accounts import costs_to_target
from verl_ext.report.answers import answers_of, tokens_of
from verl_ext.report.arm_charts import accuracies, curves
from verl_ext.report.arms import Comparison, read_comparison
from verl_ext.report.blocks import (
    Block,
    Code,
    Confusion,
    Estimate,
    Estimates,
    Missing,
    Paragraph,
    Report,
    Section,
    Table,
)
from verl_ext.report.evaluated import class_table, confusion_of
from verl_ext.report.files import read_object
from verl_ext.report.settings import differences, environment, public, settings_of_run
from verl_ext.report.spent import spent
from verl_ext.report.stages import time_of
from verl_ext.report.text import clipped, counted, number, short
from verl_ext.report.verdict import answer, seeds_of, share

MATRICES = 6
"""Arms whose confusion matrix is shown."""
COLUMNS = 8
"""Arms side by side in a table of settings."""


def comparison_report(folder: Path, prices: Prices | None = None) -> Report:
    """The page of a comparison, money by `prices`. Raises ValueError where the folder has none."""
    found = read_comparison(folder)
    sections = [
        Section("answer", str(found.record["question"]), answer(found), "Answer"),
        Section("accuracy", "Accuracy against what was spent", accuracies(found)),
        Section("target", "What it takes to get there", costs_to_target(found, prices)),
        Section("cost", "What each arm spent", costs(found)),
        Section("final", "In the end", final(found)),
        Section("controls", "Controls", controls(found)),
        Section("curves", "Curves", curves(found)),
        Section("time", "Where the time went", times(found)),
        Section("answers", "The same prompts over the steps", _of_best(found, "answers")),
        Section("tokens", "Token by token", _of_best(found, "tokens")),
        Section("settings", "Settings", settings(found)),
        Section("parity", "Parity with Tinker", parity(found)),
        Section("environment", "Environment", _environment(found)),
        Section("commands", "Commands", commands(found)),
    ]
    made = f"Written {time.strftime('%Y-%m-%d %H:%M:%S %Z')} from {folder.resolve().name}/."
    return Report(f"SFT or on-policy: {found.record['task']}", "Comparison", made, sections)


def costs(found: Comparison) -> list[Block]:
    """What the first run of each arm spent, by phase."""
    blocks: list[Block] = []
    for arm in found.arms[:COLUMNS]:
        if arm.done:
            first = spent(arm.done[0])[0]
            if isinstance(first, Table):
                rows = tuple((f"{arm.name}: {row[0]}", *row[1:]) for row in first.rows)
                blocks.append(Table(first.caption, first.columns, rows, first.texts))
    if not blocks:
        return [Missing("ledger.jsonl of a run", "Runs of this version write it.")]
    tables = [block for block in blocks if isinstance(block, Table)]
    together = Table(
        "The first seed of each arm", tables[0].columns, tuple(row for table in tables for row in table.rows)
    )
    left = len(found.arms) - COLUMNS
    return [together] if left <= 0 else [together, Paragraph(f"{counted(left, 'further arm')} left out here.")]


def final(found: Comparison) -> list[Block]:
    """The last accuracy of every run, classes, confusions."""
    rows = []
    for arm in found.arms:
        for run in arm.runs:
            one = (run.files.evaluation or {}).get("student") if run.files else None
            if one:
                low, high = one["accuracy_interval_95"]
                cells = (
                    f"{one['accuracy']:.3f} ({low:.3f}–{high:.3f})",
                    number(one.get("macro_f1"), 3),
                    f"{one['rows']:,}",
                )
                rows.append(
                    Estimate(f"{arm.name}, seed {run.record['seed']}", one["accuracy"], low, high, cells, arm.colour)
                )
    if not rows:
        return [Missing("eval.json of a run", "`verl-opd compare run` evaluates each run at its end.")]
    best = max(rows, key=lambda row: row.value)
    columns = ("accuracy (95 %)", "macro-F1", "rows")
    said = f"{best.name} has the highest, {best.value:.3f}. Intervals are over the rows of one run; seeds differ too."
    firsts = {short(arm.name, 24): arm.done[0].evaluation for arm in found.arms if arm.done}
    students = {name: each["student"] for name, each in firsts.items() if each and "student" in each}
    matrices = [(name, confusion_of(f"{name}, first seed", one)) for name, one in students.items()]
    shown: list[Confusion] = [matrix for _, matrix in matrices if matrix][:MATRICES]
    classes = class_table(dict(list(students.items())[:COLUMNS]))
    return [
        Estimates("Held-out accuracy of every run", columns, tuple(rows), said),
        *([classes] if classes else []),
        *shown,
    ]


MEANING = (
    "A control breaks the one thing that is supposed to teach: the teacher's log-probs are shuffled or random, or the "
    "advantage is the same everywhere. If it learns as the real arms do, what they learn is not the teacher's doing."
)


def controls(found: Comparison) -> list[Block]:
    """What the broken arms came to."""
    if not found.controls:
        return [
            Missing(
                "a control arm",
                "An arm of the kind `control` (`method.control=...`) shows that it is the teacher who teaches.",
            )
        ]
    headroom = found.record["headroom"]
    rows = []
    for arm in found.controls:
        said = "no result yet"
        if arm.mean is not None and headroom:
            gained = (arm.mean - headroom["base"]) / max(headroom["teacher"] - headroom["base"], 1e-9)
            said = (
                "does not learn, as it should" if gained < 0.25 else f"gains {gained:.0%} of the headroom: look into it"
            )
        rows.append((arm.name, said, share(arm.mean), seeds_of(arm)))
    return [Paragraph(MEANING), Table("Controls", ("arm", "what it says", "accuracy", "seeds"), tuple(rows), texts=2)]


def times(found: Comparison) -> list[Block]:
    """The stages of the first run of the arms that have a timeline."""
    for arm in found.tried:
        for files in arm.done:
            if files.timeline.rows:
                return [Paragraph(f"Of {arm.name}, {files.name}; each run's own page has its own."), *time_of(files)]
    return [Missing("timeline.jsonl of a run", "On-policy training writes it.")]


def _of_best(found: Comparison, what: str) -> list[Block]:
    """Samples of the arm that ended best among those that kept some."""
    arms = sorted(found.tried, key=lambda arm: -(arm.mean or 0.0))
    for arm in arms:
        for files in arm.done:
            if files.samples.rows:
                shown = answers_of(files.samples.rows) if what == "answers" else tokens_of(files.samples.rows)
                return [Paragraph(f"Of {arm.name}, {files.name}, the best arm that kept answers."), *shown]
    return answers_of([]) if what == "answers" else tokens_of([])


def settings(found: Comparison) -> list[Block]:
    """What makes the arms different."""
    rows = [(arm.name, arm.kind, public(" ".join(arm.runs[0].record["overrides"]))) for arm in found.arms]
    given = Table("What each arm was told", ("arm", "kind", "overrides of its first seed"), tuple(rows), texts=3)
    of = {short(arm.name, 24): settings_of_run(arm.done[0]) for arm in found.arms[:COLUMNS] if arm.done}
    own = {
        name: {k: v for k, v in each.items() if not k.startswith(("run_dir", "trainer.default_local_dir"))}
        for name, each in of.items()
    }
    left = len(found.arms) - COLUMNS
    blocks: list[Block] = [given, *(differences(own) if len(own) > 1 else [])]
    return (
        blocks
        if left <= 0
        else [*blocks, Paragraph(f"{counted(left, 'further arm')} left out of the table of settings.")]
    )


def parity(found: Comparison) -> list[Block]:
    """What `compare parity` found, where it was kept beside the comparison."""
    content = read_object(found.folder / "parity.json")
    if content is None:
        return [
            Missing(
                "parity.json",
                "`verl-opd compare parity out=OUT/parity.json` compares our SFT with Tinker's installed code.",
            )
        ]
    rows = tuple(
        (each["name"], each["area"], each["tinker"], each["ours"], each["status"], each["reason"])
        for each in content["comparisons"]
    )
    counts = {status: sum(row[4] == status for row in rows) for status in ("match", "differs", "unknowable")}
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    said = ", ".join(f"{n} {status}" for status, n in counts.items())
    verdict = "every difference is explained" if content["ok"] else "a difference is not explained"
    table = Table("Value by value", ("value", "area", "Tinker", "ours", "", "why"), rows, texts=6, folded=True)
    return [Paragraph(f"Against {versions}, as installed: {said}; {verdict}."), table]


def _environment(found: Comparison) -> list[Block]:
    firsts = [files for arm in found.arms for files in arm.done]
    return environment(firsts[0].origin if firsts else None, [each.environment for each in firsts if each.environment])


def commands(found: Comparison) -> list[Block]:
    """What was typed."""
    text, left = clipped("\n".join(map(public, found.record["commands"])), 20_000)
    if not text:
        return [Missing("the commands", "`verl-opd compare run` writes them down.")]
    return [Code("As they were run" + (f" ({left:,} characters left out)" if left else ""), text)]
