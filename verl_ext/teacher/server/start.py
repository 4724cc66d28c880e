"""The run's managed teachers, each in a Ray actor, and the settings by which the run's workers reach every teacher."""

import dataclasses
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf

from verl_ext.run.files import write_json
from verl_ext.run.ray_session import as_actor
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

    ready, worker_config, reached = {}, config.copy(), {}
    for name, teacher in teachers_of(config).items():
        found: dict[str, Any] = identify(teacher)
        if teacher.mode == "managed" and teacher.store_mode != "replay":
            settings = with_absolute_paths(teacher)
            # Beside the trainer's own. An actor with none sees what its node has, which is what sharing takes.
            gpus = settings.tp * settings.dp if settings.device == "cuda" and not settings.share_device else 0
            node = {settings.ray_resource: A_BIT} if settings.ray_resource else None
            log = Path(config.run_dir) / ("teacher.log" if not config.teachers else f"teacher-{name}.log")
            actor = as_actor(ManagedTeacher).options(num_gpus=gpus, resources=node).remote(settings, str(log))
            found |= {"mode": "external", "urls": [ray.get(actor.start.remote())]}
            ready[actor.wait_ready.remote()] = (name, actor)
        node = worker_config.teachers[name] if config.teachers else worker_config.teacher
        for key, value in found.items():
            OmegaConf.update(node, key, value, force_add=True)
        reached[name] = dataclasses.asdict(teacher) | found
    write_json(Path(config.run_dir) / "teachers.json", reached)
    return ready, worker_config
