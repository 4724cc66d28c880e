"""Settings, environment and commands of a run, as they may be shown to others: no secrets, no paths of this machine."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_ext.checks.report import hide, settings_without_secrets
from verl_ext.report.blocks import Block, Code, Missing, Table
from verl_ext.report.files import RunFiles
from verl_ext.report.text import counted, short
from verl_ext.run.command import as_typed
from verl_ext.run.environment import installed, machine
from verl_ext.run.next_command import evaluation_of

VALUE = 120
"""Characters of a setting's value."""
DIFFERING = 60
"""Settings in the table of what differs between arms."""


def public(text: str) -> str:
    """Without the folder that this command runs in, the home directory, and what looks like a secret."""
    return hide(text.replace(f"{Path.cwd()}/", ""), [])


def here(run: RunFiles, text: str) -> str:
    """`public`, and with the run's folder as it is called now."""
    asked = str(OmegaConf.select(run.config, "run_dir")) if run.config is not None else ""
    return public(text.replace(asked, str(run.folder)) if asked.startswith("/") else text)


def settings_of_run(run: RunFiles) -> dict[str, str]:
    """Every resolved setting by its full key."""
    if run.config is None:
        return {}
    settings = settings_without_secrets(run.config)
    return {key: short(here(run, value), VALUE) for key, value in settings if not key.startswith("defaults")}


def configuration(run: RunFiles, departures: Sequence[str] | str) -> list[Block]:
    """What the run was told beyond its defaults, and everything."""
    if run.config is None:
        return [Missing("config.yaml, the run's settings", "Every run writes it.")]
    groups = OmegaConf.select(run.config, "defaults") or []
    chosen = [f"{name}={choice}" for group in groups for name, choice in group.items()]
    blocks: list[Block] = []
    if isinstance(departures, str):
        blocks.append(Missing(f"what differs from the defaults: {departures}", "All settings are below."))
    else:
        own = [word for word in departures if word not in chosen]
        rows = tuple(tuple(short(here(run, part), VALUE) for part in word.partition("=")[::2]) for word in own)
        caption = f"{counted(len(own), 'departure')} from the defaults" + (f" of {', '.join(chosen)}" if chosen else "")
        blocks.append(Table(caption, ("setting", "value"), rows, texts=2))
    everything = settings_of_run(run)
    blocks.append(
        Table(f"All {len(everything)} settings", ("setting", "value"), tuple(everything.items()), 2, folded=True)
    )
    return blocks


def differences(settings: Mapping[str, Mapping[str, str]]) -> list[Block]:
    """The settings in which arms differ; `settings` by arm."""
    keys = sorted({key for each in settings.values() for key in each})
    differing = [key for key in keys if len({each.get(key, "–") for each in settings.values()}) > 1]
    if not differing:
        return [Missing("a difference", "The arms' settings are the same.")]
    rows = tuple((key, *(short(each.get(key, "–"), 40) for each in settings.values())) for key in differing[:DIFFERING])
    left = f"; {len(differing) - DIFFERING} more are left out" if len(differing) > DIFFERING else ""
    caption = f"{counted(len(differing), 'setting')} in which the arms differ (of {len(keys)}){left}"
    return [Table(caption, ("setting", *settings), rows, texts=1 + len(settings))]


@lru_cache(maxsize=1)
def _here() -> dict[str, str]:
    return installed() | machine()


def environment(origin: Mapping[str, Any] | None, runs: Sequence[Mapping[str, str]]) -> list[Block]:
    """What a run wrote down of its beginning, what the `runs` were made with, and what this report was written with."""
    blocks: list[Block] = []
    if origin is None:
        blocks.append(Missing("origin.json, what the run was begun with", "Every run writes it."))
    else:
        rows = tuple((key, short(public(value), VALUE)) for key, value in flat(origin))
        blocks.append(
            Table(
                "What decided the student, as the run wrote it down when it began",
                ("what", "value"),
                rows,
                texts=2,
                folded=True,
            )
        )
    if not runs:
        blocks.append(Missing("environment.json, what the run was made with", "Every run writes it."))
    names = list(dict.fromkeys(name for each in runs for name in each))
    of_runs = {name: " / ".join(dict.fromkeys(each.get(name, "–") for each in runs)) for name in names}
    for caption, values in (
        ("What trained, at the last start", of_runs),
        ("What this report was written with, on this machine", _here()),
    ):
        rows = tuple((name, short(public(value), VALUE)) for name, value in values.items())
        if rows:
            blocks.append(Table(caption, ("what", "value"), rows, texts=2))
    return blocks


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a JSON object by their full keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def commands(run: RunFiles, departures: Sequence[str] | str) -> list[Block]:
    """What was typed, or does the same; then the evaluation and this report."""
    if run.config is None:
        return [Missing("the run's command", "config.yaml, from which it follows, is not there.")]
    module = "on_policy_distillation" if run.on_policy else "sft"
    words = [f"{run.folder}/config.yaml"] if isinstance(departures, str) else [*departures]
    lines = [f"python -m recipe.{module} " + " \\\n    ".join(here(run, shlex.quote(word)) for word in words)]
    evaluation = evaluation_of(run.config) if OmegaConf.select(run.config, "data") is not None else None
    if evaluation is not None:
        lines.append(here(run, evaluation))
    lines.append(public(f"python -m recipe.report {shlex.quote(str(run.folder))}"))
    return [Code("Train, evaluate, and write this page", as_typed("\n".join(lines)))]
