"""Where a run goes on, and with what: the newest whole checkpoint, what changed since, and what is said about it.

A checkpoint holds the `config.yaml` and the `origin.json` of the run that made it. What decides the student
(`verl_ext.run.origin`) must be as it was, or `resume_anyway=true`; all else is taken as it is now. Both are shown.
"""

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.run.checkpoints import (
    MANIFEST,
    STEP,
    TRACKER,
    Saved,
    flaw_of,
    latest_step,
    saved_in,
    set_torn_aside,
    step_of,
    tracked,
)
from verl_ext.run.environment import note_environment
from verl_ext.run.files import RESOLVED, write_atomically, write_json
from verl_ext.run.lines import mend
from verl_ext.run.metrics import METRICS, forget_place, read_metrics
from verl_ext.run.origin import DATA, MODEL_FILES, ORIGIN, RESUMED, is_of_origin, origin_of, set_aside
from verl_ext.run.outputs import differing

NAMED = 5
"""Settings that a line lists."""
UNREMARKABLE = (
    *("defaults", "environment", "hydra", "ray_kwargs", "run_dir", "resume_anyway"),
    *("trainer.resume_mode", "trainer.resume_from_path", "trainer.default_local_dir"),
)
"""Where a run is, not what it does."""
SHARDS = "fsdp_config.json"
"""verl's, beside the shards: how many there are."""
THERE = " there, "
Change = tuple[str, Any, Any]
"""Name of a setting, its value there and here."""


@dataclass(frozen=True)
class Resume:
    """The checkpoint that a run goes on from."""

    folder: Path
    step: int
    torn: Sequence[tuple[Path, str]] = ()
    """Newer ones that are not what was written, and what is wrong with each."""
    said: Sequence[str] = ()
    """What to tell the user."""


def resume_of(trainer: DictConfig) -> Resume | None:
    """Where a run with the settings `trainer` goes on; None where it begins. Reads every byte of the checkpoint.

    Raises:
        ValueError: if there are checkpoints and none is whole, or if the one that is named is not.
    """
    if trainer.resume_mode == "disable":
        return None
    if trainer.resume_mode == "resume_path":
        return _named(trainer.resume_from_path)
    if trainer.resume_from_path is not None:
        raise ValueError(
            f"trainer.resume_from_path={trainer.resume_from_path} is read with trainer.resume_mode=resume_path alone; "
            "set that, or leave it out"
        )
    return _newest(Path(trainer.default_local_dir))


def _named(path: Any) -> Resume:
    folder = Path(path) if isinstance(path, str) else Path()
    if (step := step_of(folder)) is None or not folder.is_dir():
        raise ValueError(
            f"trainer.resume_from_path={path}: no checkpoint folder (.../{STEP}N); give one, or "
            "trainer.resume_mode=auto"
        )
    if not (folder / MANIFEST).is_file():
        return Resume(folder, step, said=[f"warning: {folder} has no {MANIFEST}: nothing says whether it is whole"])
    if flaw := flaw_of(folder, content=True):
        raise ValueError(f"trainer.resume_from_path={path}: {flaw}; give another one, or trainer.resume_mode=auto")
    return Resume(folder, step)


def _newest(checkpoints: Path) -> Resume | None:
    torn: list[tuple[Path, str]] = []
    good: Saved | None = None
    for saved in saved_in(checkpoints):
        if (flaw := flaw_of(saved.folder, content=True)) is None:
            good = saved
            break
        torn.append((saved.folder, flaw))
    note = tracked(checkpoints)
    if good is None:
        if torn or note is not None:
            flaws = "; ".join(f"{folder.name}: {flaw}" for folder, flaw in torn) or f"{TRACKER} says '{note}', no more"
            raise ValueError(
                f"{checkpoints} holds no whole checkpoint ({flaws}); bring one back, name one that you trust "
                "(trainer.resume_mode=resume_path trainer.resume_from_path=...), or begin anew with "
                "trainer.resume_mode=disable"
            )
        return None
    said = [f"{folder} is torn ({flaw}): kept under another name, not loaded" for folder, flaw in torn]
    if not torn and note != str(good.step):
        said = [f"{checkpoints / TRACKER} says '{note}': {good.folder.name} is the newest whole checkpoint"]
    return Resume(good.folder, good.step, torn, said)


def resumed_step(trainer: DictConfig) -> int | None:
    """The step after which a run with the settings `trainer` goes on; None where it begins. Files are counted alone."""
    if trainer.resume_mode == "resume_path":
        return step_of(Path(str(trainer.resume_from_path)))
    return None if trainer.resume_mode == "disable" else latest_step(Path(trainer.default_local_dir))


def check_resume(config: DictConfig) -> str:
    """Where a run begins.

    Raises:
        ValueError: if it would go on from a checkpoint that was made with something else, naming what.
    """
    resume = resume_of(config.trainer)
    if resume is None:
        return "from the start"
    changes = refused_changes(config, resume)
    if changes and not config.resume_anyway:
        raise ValueError(
            f"run_dir={config.run_dir} holds a run that was begun with other settings: {listed(changes, THERE)}; "
            f"go on with those, take another run_dir (with student.path={config.run_dir}/student to train its student "
            "further), or insist with resume_anyway=true"
        )
    return f"goes on after step {resume.step}"


def check_ranks(shards: Path, ranks: int, key: str) -> None:
    """A checkpoint is in as many shards as it had ranks, and is read by as many. ValueError naming `key` where not."""
    file = shards / SHARDS
    saved = json.loads(file.read_text())["world_size"] if file.is_file() else ranks
    if saved != ranks:
        raise ValueError(
            f"{key} = {ranks}: the checkpoint {shards} was written by {saved} ranks; take as many, another run_dir, or "
            "trainer.resume_mode=disable"
        )


def refused_changes(config: DictConfig, resume: Resume) -> list[Change]:
    """What decides the student and is not as it was; nothing where the checkpoint does not say what it was."""
    file = resume.folder / ORIGIN
    return _changes(json.loads(file.read_text()), origin_of(config)) if file.is_file() else []


def taken_changes(config: DictConfig, resume: Resume) -> list[Change]:
    """What else is not as it was, and is taken as it is now."""
    file = resume.folder / RESOLVED
    if not file.is_file():
        return []
    then, now = (_plain(each) for each in (OmegaConf.load(file), config))
    return [
        change
        for change in _changes(then, now)
        if not is_of_origin(change[0], config)
        and not any(change[0] == key or change[0].startswith(f"{key}.") for key in UNREMARKABLE)
    ]


def _plain(config: Any) -> dict[str, Any]:
    """As JSON has it, so that what was written and what was composed compare."""
    return json.loads(json.dumps(OmegaConf.to_container(config, resolve=True), default=str))


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    return [(name, _at(then, name), _at(now, name)) for name in differing(then, now)]


def _at(mapping: Mapping[str, Any], name: str) -> Any:
    """The value of `a.b.c` where keys may hold dots themselves; None where there is none."""
    key = next((each for each in mapping if name == each or name.startswith(f"{each}.")), None)
    if key is None or name == key:
        return mapping.get(name)
    inner = mapping[key]
    return _at(inner, name[len(key) + 1 :]) if isinstance(inner, Mapping) else None


def listed(changes: Sequence[Change], between: str) -> str:
    """`NAME OLD there, NEW here` of the first ones; of files only that they are others."""
    shown = [_shown(change, between) for change in changes[:NAMED]]
    more = len(changes) - NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _shown(change: Change, between: str) -> str:
    name, then, now = change
    if name == DATA:
        return f"{name} has other rows"
    if name.startswith(MODEL_FILES):
        return f"student.path has another {name.removeprefix(MODEL_FILES)[1:]}"
    return f"{name} {then}{between}{now}" + (" here" if between == THERE else "")


def begin(config: DictConfig) -> list[str]:
    """Make `run_dir` ready and write down what the run is begun, or goes on, with. Call it under the folder's lock.

    Returns:
        What to tell the user, a line each.
    """
    run_dir, resume = Path(config.run_dir), resume_of(config.trainer)
    forget_place(run_dir)
    if resume is None:
        said = set_aside(run_dir)
        write_json(run_dir / ORIGIN, origin_of(config))
        note_environment(run_dir)
        return said
    said = [*resume.said, *mend(run_dir), *_lost_row(run_dir, resume)]
    for folder, _ in resume.torn:
        set_torn_aside(folder)
    for link in (run_dir / "student", run_dir / "adapter"):
        if link.is_symlink() and not link.exists():  # it led into a torn one
            link.unlink()
    checkpoints = Path(config.trainer.default_local_dir)
    if config.trainer.resume_mode == "auto":
        write_atomically(checkpoints / TRACKER, str(resume.step))
    return said + _note_changes(config, resume)


def _lost_row(run_dir: Path, resume: Resume) -> list[str]:
    """A run killed between a step's checkpoint and its row goes on behind a step that nothing tells of."""
    rows = read_metrics(run_dir / METRICS) if (run_dir / METRICS).is_file() else []
    if not rows or rows[-1]["step"] >= resume.step:
        return []
    return [f"step {resume.step} is saved and has no row in {METRICS}: the run was killed before it was written"]


def add_settings(run_dir: Path, folder: Path) -> None:
    """Put what a run is made with beside what it made."""
    for name in (RESOLVED, ORIGIN):
        if (run_dir / name).is_file():  # a run that no verb began has no origin
            shutil.copyfile(run_dir / name, folder / name)


def changes_of(run_dir: Path, shown: Iterable[str]) -> dict[str, str]:
    """From and to of settings that a resumed run took as they were then: the `shown`, and those insisted on."""
    file, names = run_dir / RESUMED, set(shown)
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return {
        f"{change['setting']}, after step {note['after_step']}": f"{change['from']} → {change['to']}"
        for note in (json.loads(line) for line in lines if line.endswith("\n"))
        for change in note["changes"]
        if change["decides"] or change["setting"] in names
    }


def _note_changes(config: DictConfig, resume: Resume) -> list[str]:
    """Keep where a run went on and what changed there in `resumed.jsonl`, for the model card; what to tell of it."""
    insisted, taken = refused_changes(config, resume), taken_changes(config, resume)
    changes = [
        {"setting": name, "from": then, "to": now, "decides": decides}
        for found, decides in ((insisted, True), (taken, False))
        for name, then, now in found
    ]
    run_dir = Path(config.run_dir)
    note = {"schema": 1, "unix_time": time.time(), "checkpoint": str(resume.folder), "after_step": resume.step}
    with (run_dir / RESUMED).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**note, "changes": changes}) + "\n")
    write_json(run_dir / ORIGIN, origin_of(config))
    note_environment(run_dir)
    said = []
    if insisted:
        said.append(f"warning: resume_anyway=true goes on with other settings: {listed(insisted, THERE)}")
    if taken:
        said.append(f"changed since step {resume.step}, and taken: {listed(taken, ' -> ')}")
    return said
