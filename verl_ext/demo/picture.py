"""The demo in one picture: how the student came to its teacher, and how good base, teacher and student are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ARMS = {"base": "base,\nno prompt", "teacher": "teacher,\nprompt", "student": "student,\nno prompt"}
COLOURS = {"base": "#999999", "teacher": "#4477aa", "student": "#228833"}


def draw(rows: Sequence[Mapping[str, float]], evaluation: Mapping[str, Any], file: Path) -> None:
    """Write the picture of a run's metrics and of its eval.json, as an SVG that is the same for the same numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "verl-opd", "font.size": 10}):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        curve, bars = figure.subplots(1, 2, width_ratios=[3, 2])
        steps = [row["step"] for row in rows]
        curve.plot(steps, [row["teacher_kl"] for row in rows], color=COLOURS["teacher"], marker="o", markersize=3)
        curve.set(xlabel="step", ylabel="reverse KL, nats a token", ylim=(0, None))
        reward = curve.twinx()
        rewards = [row["critic/rewards/mean"] for row in rows]
        reward.plot(steps, rewards, color=COLOURS["student"], marker="o", markersize=3)
        reward.set(ylabel="right answers sampled", ylim=(0, 1.05))
        for axis, colour in ((curve, COLOURS["teacher"]), (reward, COLOURS["student"])):
            axis.yaxis.label.set_color(colour)
            axis.spines["top"].set_visible(False)
        heights = [evaluation[arm]["accuracy"] for arm in ARMS]
        shown = bars.bar(list(ARMS.values()), heights, color=[COLOURS[arm] for arm in ARMS], width=0.6)
        bars.bar_label(shown, [f"{height:.3f}" for height in heights])
        bars.set(ylabel="held-out accuracy", ylim=(0, 1.15))
        bars.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None})
