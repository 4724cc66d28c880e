"""The run's managed teachers, each in a Ray actor."""

from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf

from verl_ext.run.ray_session import as_actor
from verl_ext.teacher.teachers import identify, teachers_of


def start_teachers(config: DictConfig) -> dict[Any, tuple[str, Any]]:
    """Start every managed server that will be asked; from here on the run sees servers that somebody else started.

    Returns, by the reference that is ready when its server is, the teacher's name and actor: an actor lives as long
    as a reference to it is held.
    """
    from verl_ext.teacher.server.actor import ManagedTeacher, with_absolute_paths

    ready = {}
    for name, teacher in teachers_of(config).items():
        node = config.teachers[name] if config.teachers else config.teacher
        for key, value in identify(teacher).items():
            OmegaConf.update(node, key, value, force_add=True)
        if teacher.mode == "external" or teacher.store_mode == "replay":
            continue
        settings = with_absolute_paths(teacher)
        # Beside the trainer's own. An actor with none sees what its node has, which is what sharing takes.
        gpus = settings.tp * settings.dp if settings.device == "cuda" and not settings.share_device else 0
        log = Path(config.run_dir) / ("teacher.log" if not config.teachers else f"teacher-{name}.log")
        actor = as_actor(ManagedTeacher).options(num_gpus=gpus).remote(settings, str(log))
        url = ray.get(actor.start.remote())
        ready[actor.wait_ready.remote()] = (name, actor)
        OmegaConf.update(node, "mode", "external", force_add=True)
        OmegaConf.update(node, "urls", [url], force_add=True)
    return ready
