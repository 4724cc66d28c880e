"""What a run's folder was begun with: a run goes on with that, or begins anew beside what an earlier one left there.

`<run_dir>/origin.json` holds the settings that decide what the student becomes, and the hashes of its rows' files.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.run.file_hashes import default_cache, hash_files
from verl_ext.run.files import write_json
from verl_ext.run.outputs import differing

ORIGIN = "origin.json"
DATA = "data.train_files"
NAMED = 5  # differing settings that a refusal lists
TEACHER = ("model_path", "dtype", "quantization")
ON_POLICY = (
    *("student.path", "method", "data.train_batch_size", "data.max_response_length", "data.seed"),
    *("data.apply_chat_template_kwargs", "actor_rollout_ref.rollout.n", "actor_rollout_ref.model.lora_rank"),
    *("actor_rollout_ref.model.lora_alpha", "actor_rollout_ref.model.target_modules"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.actor.ppo_epochs"),
    *("actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.actor.optim"),
)
SFT = (
    *("student.path", "sft", "data.train_batch_size", "data.max_length", "data.train_max_samples"),
    *("model.lora_rank", "model.lora_alpha", "model.target_modules", "optim"),
)
"""Lengths of a run are in neither: more epochs or steps are how one goes on."""
LEFT_BEHIND = (
    *("config.yaml", ORIGIN, "metrics.jsonl", "stages.jsonl", "run.json", "eval.json", "answers.jsonl"),
    *("checkpoints", "student", "adapter", "tensorboard", "samples.jsonl", "timeline.jsonl"),
)
"""What a run leaves in its folder, its logs aside. The links among them are relative and move along."""


def latest_step(checkpoints: Path) -> int | None:
    """Step of the newest checkpoint in a run's folder of checkpoints; None where there is none."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.is_file() else None


def resumed_step(trainer: DictConfig) -> int | None:
    """The step after which a run with the settings `trainer` goes on; None where it begins."""
    return None if trainer.resume_mode == "disable" else latest_step(Path(trainer.default_local_dir))


def origin_of(config: DictConfig) -> dict[str, Any]:
    """What decides the student of this configuration, flat or nested as JSON has it."""
    found: dict[str, Any] = {}
    for key in ON_POLICY if "method" in config else SFT:
        value = OmegaConf.select(config, key)
        found[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if "method" in config:
        found["method"]["labels"].pop("label_set")  # read from the rows, where nobody gives it
        if config.replay.share:
            found["replay"] = OmegaConf.to_container(config.replay, resolve=True)
        for name, departures in (config.teachers or {"teacher": {}}).items():
            teacher: Any = OmegaConf.merge(config.teacher, departures)
            found |= {f"{name}.{key}": teacher[key] for key in TEACHER}
    files = OmegaConf.select(config, DATA)
    paths = [Path(path).expanduser() for path in ([files] if isinstance(files, str) else files)]
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{DATA}: no file {missing[0]}; give the rows that the run is trained on")
    found[DATA] = hash_files(paths, default_cache())
    return json.loads(json.dumps(found, default=str))


def check_origin(config: DictConfig) -> str:
    """Where a run begins.

    Raises:
        ValueError: if `run_dir` holds a run that was begun with something else, naming what.
    """
    step = resumed_step(config.trainer)
    if step is None:
        return "from the start"
    file = Path(config.run_dir) / ORIGIN
    if not file.is_file():
        return f"from the checkpoint in {config.trainer.default_local_dir}"
    began, now = json.loads(file.read_text()), origin_of(config)
    if names := differing(began, now):
        changes = ", ".join(f"{name}{_change(began, now, name)}" for name in names[:NAMED])
        changes += f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise ValueError(
            f"run_dir={config.run_dir} holds a run that was begun with other settings: {changes}; go on with those, "
            f"or take another run_dir (with student.path={config.run_dir}/student to train its student further)"
        )
    return f"goes on after step {step}"


def _change(began: Mapping[str, Any], now: Mapping[str, Any], name: str) -> str:
    """` OLD there, NEW here`; of files only that they are others."""
    if name == DATA:
        return " has other rows"
    key = next(each for each in now if name == each or name.startswith(f"{each}."))
    sides: list[Any] = [began.get(key), now[key]]
    for part in name[len(key) + 1 :].split(".") if name != key else ():
        sides = [side.get(part) if isinstance(side, Mapping) else None for side in sides]
    return f" {sides[0]} there, {sides[1]} here"


def begin(config: DictConfig) -> str | None:
    """Write down what a run is begun with; what an earlier one left in its folder is moved into a folder of its own.

    Returns:
        What to tell the user, or None.
    """
    run_dir, moved = Path(config.run_dir), None
    if resumed_step(config.trainer) is None:
        moved = set_aside(run_dir)
    if not (run_dir / ORIGIN).is_file():
        write_json(run_dir / ORIGIN, origin_of(config))
    return moved


def set_aside(run_dir: Path) -> str | None:
    """Move what an earlier run left into `run_dir/earlier-TIME`. Returns what was done, or None."""
    found = [name for name in LEFT_BEHIND if (run_dir / name).exists() or (run_dir / name).is_symlink()]
    if not found:
        return None
    place = run_dir / f"earlier-{time.strftime('%Y%m%d-%H%M%S')}"
    place.mkdir(parents=True)
    for name in found:
        (run_dir / name).rename(place / name)
    return f"{', '.join(found)} of an earlier attempt moved to {place}"
