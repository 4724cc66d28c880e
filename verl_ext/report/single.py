"""The report of one run."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from verl_ext.ledger.entries import SFT, TRAIN
from verl_ext.ledger.ledger import totals
from verl_ext.report.answers import answers_of, tokens_of
from verl_ext.report.blocks import Block, Fact, Facts, Missing, Paragraph, Report, Section
from verl_ext.report.curves import curves_of
from verl_ext.report.evaluated import arms_in, estimates_of, right_and_wrong
from verl_ext.report.files import RunFiles
from verl_ext.report.settings import commands, configuration, environment
from verl_ext.report.spent import spent
from verl_ext.report.stages import time_of
from verl_ext.report.text import counted, duration, interval, number, scaled

EVALUATE = "`verl-opd evaluate student=RUN/student ...` writes it; training's last line has the whole command."


def report_of(run: RunFiles, departures: Sequence[str] | str) -> Report:
    """The page of a run.

    Args:
        run: its folder.
        departures: overrides that make its configuration from the defaults, or why they are not known.
    """
    sections = [
        Section("answer", "Did it learn?", answer(run)),
        Section("curves", "Curves", curves_of(run)),
        Section("cost", "What it cost", spent(run)),
        Section("time", "Where the time went", time_of(run)),
        Section("classes", "What is right and what is wrong", right_and_wrong(run.evaluation)),
        Section("answers", "The same prompts over the steps", answers_of(run.samples.rows)),
        Section("tokens", "Token by token", tokens_of(run.samples.rows)),
        Section("settings", "Settings", configuration(run, departures)),
        Section("environment", "Environment", environment(run.origin, [run.environment] if run.environment else [])),
        Section("commands", "Commands", commands(run, departures)),
    ]
    kind = (
        "On-policy distillation" if run.on_policy else "Supervised fine-tuning" if run.config is not None else "A run"
    )
    made = f"Written {time.strftime('%Y-%m-%d %H:%M:%S %Z')} from {run.name}/."
    return Report(title_of(run), kind, " ".join([made, *(f"{note}." for note in run.notes())]), sections)


def title_of(run: RunFiles) -> str:
    """Base and teacher by the last part of their names."""
    if run.config is None:
        return run.name
    base = str(OmegaConf.select(run.config, "student.path")).rstrip("/").rpartition("/")[2]
    if not run.on_policy:
        return f"{base}, taught by answers"
    teacher = str(OmegaConf.select(run.config, "teacher.model_path")).rstrip("/").rpartition("/")[2]
    return f"{base}, taught by itself with the prompt" if teacher == base else f"{base}, taught by {teacher}"


def answer(run: RunFiles) -> list[Block]:
    """What came of it, in a sentence, in numbers, in a picture."""
    arms, blocks = arms_in(run.evaluation), [Paragraph(" ".join(sentences(run)), lead=True)]
    found: list[Block] = [*blocks, Facts(tuple(facts(run)))]
    if arms:
        found.append(estimates_of(arms))
        step = (run.evaluation or {}).get("step")
        last = max(run.by_step, default=None)
        if step is not None and last is not None and step != last:
            found.append(Paragraph(f"The evaluation is of step {number(step)}; the run is at step {last} now."))
    else:
        found.append(
            Missing("eval.json, accuracy before and after training and the teacher's, with intervals", EVALUATE)
        )
    return found


def sentences(run: RunFiles) -> list[str]:
    """The answer."""
    found, arms = [], arms_in(run.evaluation)
    if "student" in arms:
        found.append(_evaluated(arms))
    elif run.accuracy.rows:
        first, last = run.accuracy.rows[0], run.accuracy.rows[-1]
        found.append(
            f"Held-out accuracy went from {first['accuracy']:.3f} at step {first['step']} to {last['accuracy']:.3f} "
            f"at step {last['step']}, on {counted(last['rows'], 'row')}."
        )
    kl = run.metric("teacher_kl")
    if len(kl.values) > 1:
        moved = "fell" if kl.values[-1] < kl.values[0] else "rose"
        found.append(
            f"In {counted(max(run.by_step), 'step')} the reverse KL from the teacher {moved} from "
            f"{number(kl.values[0], 3)} to {number(kl.values[-1], 3)} nats a token."
        )
    loss = run.metric("train/loss")
    if len(loss.values) > 1:
        found.append(
            f"In {counted(max(run.by_step), 'step')} the loss went from {number(loss.values[0], 3)} to "
            f"{number(loss.values[-1], 3)} nats a token."
        )
    return found or [f"The run has finished {counted(max(run.by_step, default=0), 'step')}; there is no result yet."]


def _evaluated(arms: Mapping[str, Mapping[str, Any]]) -> str:
    student = arms["student"]
    low, high = student["accuracy_interval_95"]
    rows = counted(student["rows"], "held-out row")
    text = f"After training the student is right on {student['accuracy']:.1%} of {rows}"
    text += f" (95 % interval {low:.1%} to {high:.1%})"
    others = []
    if "base" in arms:
        others.append(f"before it, on {arms['base']['accuracy']:.1%}")
    if "teacher" in arms:
        sees = ", which sees the prompt," if arms["teacher"]["sees_prompt"] and not student["sees_prompt"] else ""
        others.append(f"the teacher{sees} on {arms['teacher']['accuracy']:.1%}")
    return f"{text}; {'; '.join(others)}." if others else f"{text}."


def facts(run: RunFiles) -> list[Fact]:
    """The numbers that one looks for first."""
    found, arms = [], arms_in(run.evaluation)
    if "student" in arms:
        one = arms["student"]
        found.append(
            Fact("accuracy", f"{one['accuracy']:.3f}", interval(one["accuracy"], *one["accuracy_interval_95"])[6:])
        )
    if "base" in arms and "student" in arms:
        found.append(
            Fact("before training", f"{arms['base']['accuracy']:.3f}", f"of {counted(arms['base']['rows'], 'row')}")
        )
    total, kl = run.metric("training/total_steps").values, run.metric("teacher_kl").values
    steps = max(run.by_step, default=0)
    found.append(Fact("steps", f"{steps:,}", f"of {number(total[-1])}" if total.size else ""))
    if kl.size:
        found.append(Fact("reverse KL", number(kl[-1], 3), f"nats a token, {number(kl[0], 3)} at the first step"))
    if run.ledger and run.ledger.entries:
        sums = totals([entry for entry in run.ledger.entries if entry.phase in (TRAIN, SFT)])
        found.append(Fact("samples", f"{sums.samples:,}"))
        flops = sums.flops.total if sums.flops else None
        found.append(Fact("computed", scaled(flops, "FLOP"), "sampling, scoring, training"))
    elif samples := run.metric("teacher/scored").values.sum():
        found.append(Fact("samples", number(float(samples))))
    if (seconds := run.metric("timing_s/step").values).size:
        found.append(
            Fact("time in steps", duration(float(seconds.sum())), f"{number(float(seconds.mean()), 3)} s a step")
        )
    return found
