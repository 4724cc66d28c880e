"""The run's managed teachers, each in a Ray actor, and the settings by which the run's workers reach every teacher."""

import dataclasses
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import GetTimeoutError

from verl_ext.run.files import write_json
from verl_ext.run.ray_session import as_actor
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.teachers import identify, teachers_of

A_BIT = 0.001
"""Of the resource that names a node: its share is of no matter."""


def start_teachers(config: DictConfig) -> tuple[dict[Any, tuple[str, Any]], DictConfig]:
    """Start every managed server that will be asked.

    `config` stays as the user wrote it; `<run_dir>/teachers.json` says where each teacher is reached in this run, and
    under which identity its scores are kept.

    Returns:
        By the reference that is ready when its server is, the teacher's name and actor: an actor lives as long as
        a reference to it is held. And the configuration of the run's workers, for whom every server runs already.
    """
    from verl_ext.teacher.server.actor import ManagedTeacher, with_absolute_paths

    check_room(config)
    ready, worker_config, reached = {}, config.copy(), {}
    for name, teacher in teachers_of(config).items():
        found: dict[str, Any] = identify(teacher)
        if teacher.mode == "managed" and teacher.store_mode != "replay":
            settings = with_absolute_paths(teacher)
            # Beside the trainer's own. An actor with none sees what its node has, which is what sharing takes.
            gpus = gpus_of(settings)
            node = {settings.ray_resource: A_BIT} if settings.ray_resource else None
            log = Path(config.run_dir) / ("teacher.log" if not config.teachers else f"teacher-{name}.log")
            actor = as_actor(ManagedTeacher).options(num_gpus=gpus, resources=node).remote(settings, str(log))
            found |= {"mode": "external", "urls": [begun(name, actor.start.remote(), settings)]}
            ready[actor.wait_ready.remote()] = (name, actor)
        node = worker_config.teachers[name] if config.teachers else worker_config.teacher
        for key, value in found.items():
            OmegaConf.update(node, key, value, force_add=True)
        reached[name] = dataclasses.asdict(teacher) | found
    write_json(Path(config.run_dir) / "teachers.json", reached)
    return ready, worker_config


def gpus_of(teacher: TeacherConfig) -> int:
    """Those that Ray keeps for a managed server alone."""
    return teacher.tp * teacher.dp if teacher.device == "cuda" and not teacher.share_device else 0


def check_room(config: DictConfig) -> None:
    """The cluster has GPUs for the servers beside the trainer's: Ray would wait for ever for more.

    Raises:
        RuntimeError: naming what is asked for and what there is.
    """
    started = {
        name: gpus_of(teacher)
        for name, teacher in teachers_of(config).items()
        if teacher.mode == "managed" and teacher.store_mode != "replay" and gpus_of(teacher)
    }
    if not started:
        return
    here = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    trainer = config.trainer.nnodes * config.trainer.n_gpus_per_node
    name, largest = max(started.items(), key=lambda pair: pair[1])
    if sum(here) < trainer + sum(started.values()):
        raise RuntimeError(
            f"trainer.nnodes x trainer.n_gpus_per_node = {trainer} and teachers with {sum(started.values())} GPUs "
            f"(teacher.tp x teacher.dp): Ray has {sum(here):.0f}; ask for fewer, set teacher.share_device=true, or "
            "join a larger cluster"
        )
    if max(here) < largest:
        raise RuntimeError(
            f"the teacher {name} takes teacher.tp x teacher.dp = {largest} GPUs of one node, and the largest node has "
            f"{max(here):.0f}; lower them, or start servers yourself and give teacher.urls"
        )


def begun(name: str, address: Any, teacher: TeacherConfig) -> str:
    """A server's address when its actor runs. Raises RuntimeError where others keep the GPUs that it waits for."""
    try:
        return ray.get(address, timeout=teacher.startup_timeout_s)
    except GetTimeoutError:
        raise RuntimeError(
            f"the teacher {name} did not begin within teacher.startup_timeout_s={teacher.startup_timeout_s:g} seconds: "
            f"no node has {gpus_of(teacher)} GPUs free; wait until others have ended, or ask for fewer"
        ) from None
