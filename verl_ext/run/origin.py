"""What a run is begun with: the settings that decide what the student becomes, and the hashes of what it is made of.

`<run_dir>/origin.json` and every checkpoint hold them; what is done about a difference is in `verl_ext.run.resume`.
"""

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.run.environment import ENVIRONMENT
from verl_ext.run.file_hashes import default_cache, hash_files

ORIGIN, RESUMED = "origin.json", "resumed.jsonl"
DATA = "data.train_files"
OFF_POLICY = "file of method.off_policy_data"
MODEL_FILES = "files of student.path"
READ_BYTES = 32 << 20
"""Of a model's files, those up to this size are read to know them; a larger one is known by its size."""
TEACHER = ("model_path", "dtype", "quantization", "refresh_every", "ema")
ON_POLICY = (
    *("student.path", "method", "data.train_batch_size", "data.max_response_length", "data.seed"),
    *("data.apply_chat_template_kwargs", "actor_rollout_ref.rollout.n", "actor_rollout_ref.model.lora_rank"),
    *("actor_rollout_ref.model.lora_alpha", "actor_rollout_ref.model.target_modules"),
    "actor_rollout_ref.model.lora.base",
    *("actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.actor.ppo_epochs"),
    *("actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.actor.entropy_coeff"),
    *("actor_rollout_ref.actor.use_kl_loss", "actor_rollout_ref.actor.kl_loss_coef", "algorithm"),
    *("actor_rollout_ref.actor.optim.optimizer", "actor_rollout_ref.actor.optim.optimizer_impl"),
)
SFT = (
    *("student.path", "sft", "data.train_batch_size", "data.max_length", "data.train_max_samples"),
    *("model.lora_rank", "model.lora_alpha", "model.target_modules", "optim.optimizer", "optim.optimizer_impl"),
)
"""Lengths of a run are in neither: more epochs or steps are how one goes on. Nor is what the optimizer takes from one
step to the next, as the learning rate: it is set anew (`verl_ext.platform.loading`)."""
LEFT_BEHIND = (
    *("config.yaml", ORIGIN, ENVIRONMENT, "metrics.jsonl", "timeline.jsonl", "stages.jsonl", "run.json", "eval.json"),
    *("answers.jsonl", "ledger.jsonl", "samples.jsonl", "accuracy.jsonl", RESUMED),
    *("checkpoints", "student", "adapter", "tensorboard"),
)
"""What a run leaves in its folder, its logs aside. The links among them are relative and move along."""


def origin_of(config: DictConfig) -> dict[str, Any]:
    """What decides the student of this configuration, flat or nested as JSON has it."""
    found: dict[str, Any] = {}
    for key in ON_POLICY if "method" in config else SFT:
        value = OmegaConf.select(config, key)
        found[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if "method" in config:
        found["method"]["labels"].pop("label_set")  # read from the rows, where nobody gives it
        if config.method.off_policy_share:
            found[OFF_POLICY] = hash_files([Path(config.method.off_policy_data).expanduser()], default_cache())
        rollout = config.actor_rollout_ref.rollout
        if rollout.agent.default_agent_loop != "single_turn_agent" or rollout.multi_turn.function_tool_path:
            found["agent loop"] = rollout.agent.default_agent_loop
            found["multi_turn"] = OmegaConf.to_container(rollout.multi_turn, resolve=True)
            files = (rollout.multi_turn.function_tool_path, rollout.multi_turn.tool_config_path)
            tools = [Path(path).expanduser() for path in files if path and Path(path).expanduser().is_file()]
            found["files of tools"] = hash_files(tools, default_cache())
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
    found[MODEL_FILES] = files_of_model(Path(config.student.path).expanduser())
    return json.loads(json.dumps(found, default=str))


def files_of_model(folder: Path) -> dict[str, str]:
    """What tells a base and its tokenizer from others, by file; empty for a name on the hub."""
    patterns = ("config.json", "tokenizer*", "chat_template*", "*.safetensors")
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]
    small = [file for file in files if file.stat().st_size <= READ_BYTES]
    hashes = dict(zip(small, hash_files(small, default_cache()), strict=True))
    return {file.name: hashes.get(file, f"{file.stat().st_size} bytes") for file in files}


def is_of_origin(name: str, config: DictConfig) -> bool:
    """Whether a setting is one of those that `origin_of` compares in its own way."""
    keys = (*(ON_POLICY if "method" in config else SFT), DATA, "replay", "teachers")
    return any(name == key or name.startswith(f"{key}.") for key in (*keys, *(f"teacher.{key}" for key in TEACHER)))


def set_aside(run_dir: Path) -> list[str]:
    """Move what an earlier run left into `run_dir/earlier-TIME`; what was done, in a line, or nothing."""
    found = [name for name in LEFT_BEHIND if (run_dir / name).exists() or (run_dir / name).is_symlink()]
    if not found:
        return []
    place = run_dir / f"earlier-{time.strftime('%Y%m%d-%H%M%S')}"
    place.mkdir(parents=True)
    for name in found:
        (run_dir / name).rename(place / name)
    return [f"{', '.join(found)} of an earlier attempt moved to {place}"]
