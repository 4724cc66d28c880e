"""What an evaluation looks like: tables on the console, confusion matrices as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from verl_ext.evaluation.labels import Agreement, Evaluation, Proportion
from verl_ext.run.terminal import Terminal


@dataclass(frozen=True)
class ArmResult:
    """All that is known about one arm. What is None was not asked for, or had no rows."""

    model: str
    sees_prompt: bool
    gold: Evaluation
    """Against the right answers."""
    languages: dict[str, Proportion]
    """Accuracy by language of the source, which is finer than the label."""
    agreement: Agreement | None
    """With the teacher's answers, on the same rows; None without a teacher, and for the teacher itself."""
    edge: Agreement | None
    """The same on the edge cases, which have no right answer."""

    def as_dict(self) -> dict[str, Any]:
        return self.gold.as_dict() | {
            "model": self.model,
            "sees_prompt": self.sees_prompt,
            "languages": {language: share.as_dict() for language, share in self.languages.items()},
            "agreement_with_teacher": self.agreement.as_dict() if self.agreement else None,
            "edge_agreement_with_teacher": self.edge.as_dict() if self.edge else None,
        }


def with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table that fits 80 columns, whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def accuracy_table(results: Mapping[str, ArmResult]) -> Table:
    rows = []
    for arm, result in results.items():
        gold = result.gold
        accuracy = with_interval(gold.accuracy.value, gold.accuracy.interval)
        f1 = with_interval(gold.macro_f1, gold.macro_f1_interval)
        rows.append((arm, "yes" if result.sees_prompt else "no", accuracy, f1, str(gold.invalid.hits)))
    n = next(iter(results.values())).gold.accuracy.n
    columns = ("arm", "prompt", "accuracy (95 %)", "macro-F1 (95 %)", "invalid")
    return table_of(f"against the right answers, {n} rows", columns, rows)


def agreement_table(results: Mapping[str, ArmResult]) -> Table | None:
    """None where nothing was compared with a teacher."""

    def cell(part: Agreement | None) -> str:
        if part is None or part.same is None:
            return "-"
        return f"{with_interval(part.same.value, part.same.interval)} of {part.same.n}"

    rows = [(arm, cell(r.agreement), cell(r.edge)) for arm, r in results.items() if r.agreement is not None]
    columns = ("arm", "same rows (95 %)", "edge cases (95 %)")
    return table_of("the teacher's answer given, right or wrong", columns, rows) if rows else None


def class_table(results: Mapping[str, ArmResult]) -> Table:
    """F1, with correct / rows, of each class that occurs; then the languages that share a label."""

    def cell(f1: str, part: Proportion) -> str:
        return f"{f1}  {part.hits:>3}/{part.n:<3}"

    rows = []
    first = next(iter(results.values()))
    for number, label in enumerate(first.gold.labels):
        classes = [result.gold.classes[number] for result in results.values()]
        if classes[0].n:
            rows.append((label, *(cell(f"{c.f1:.2f}", Proportion(c.correct, c.n)) for c in classes)))
    for language in languages_apart(first):
        parts = (result.languages[language] for result in results.values())
        rows.append((f"  {language}", *(cell("    ", part) for part in parts)))
    title = "F1, correct / rows; indented: languages of one label"
    return table_of(title, ("label", *results), rows)


def languages_apart(result: ArmResult) -> list[str]:
    """Languages that are not the whole of the label of their name, such as bg and ru, which both have the label ru."""
    rows = {row.label: row.n for row in result.gold.classes}
    return [name for name, share in result.languages.items() if name and share.n != rows.get(name)]


def print_tables(results: Mapping[str, ArmResult]) -> None:
    console = Terminal()
    for table in (accuracy_table(results), agreement_table(results), class_table(results)):
        if table is not None:
            console.print(table)


def plot_confusion(results: Mapping[str, ArmResult], path: Path) -> None:
    """One matrix an arm: rows are right answers, columns given ones, colour is the share of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, len(results))
    lines = -(-len(results) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(6.6 * columns + 0.7, 6.9 * lines), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    image = None
    for axis, (arm, result) in zip(axes[: len(results)], results.items(), strict=True):
        image = draw_matrix(axis, arm, result)
    for axis in axes[len(results) :]:
        axis.set_axis_off()
    assert image is not None  # there is at least one arm
    bar = figure.colorbar(image, ax=list(axes), aspect=35, shrink=0.6, pad=0.015)
    bar.set_label("share of the rows with that right answer")
    bar.outline.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.2)


def draw_matrix(axis: Any, arm: str, result: ArmResult) -> Any:
    """One arm's matrix with its counts; returns the image, for the colour bar."""
    gold = result.gold
    counts = np.array(gold.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.55 else "#222222"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(gold.labels) + 1), [*gold.labels, "invalid"])
    axis.get_xticklabels()[-1].set_rotation(90)
    axis.set_yticks(range(len(gold.labels)), gold.labels)
    axis.axvline(len(gold.labels) - 0.5, color="#888888", linewidth=1)
    axis.set_xticks(np.arange(-0.5, len(gold.labels) + 1), minor=True)
    axis.set_yticks(np.arange(-0.5, len(gold.labels)), minor=True)
    axis.grid(which="minor", color="#e6e6e6", linewidth=0.6)
    axis.tick_params(which="both", length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_xlabel("answer")
    axis.set_ylabel("right answer")
    prompt = "sees the prompt" if result.sees_prompt else "without the prompt"
    low, high = gold.accuracy.interval
    axis.set_title(
        f"{arm}, {prompt}\naccuracy {gold.accuracy.value:.3f} (95 %: {low:.3f}-{high:.3f}), "
        f"macro-F1 {gold.macro_f1:.3f}, {gold.accuracy.n} rows",
        fontsize=10.5,
        loc="left",
    )
    return image
