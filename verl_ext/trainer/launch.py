"""Start a checked run and wait for its end: Ray, the teachers beside the trainer, the console."""

import os
import re
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import ray
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_ext.platform.lean_ray import lean
from verl_ext.platform.ray_address import OWN_RAY, keep_to_loopback
from verl_ext.platform.warm_workers import warm_workers
from verl_ext.run.console import RunConsole
from verl_ext.run.files import RESOLVED
from verl_ext.run.loopback import open_doors
from verl_ext.run.metrics import mark_stage
from verl_ext.run.next_command import evaluation_of
from verl_ext.run.ray_session import as_actor, ray_session
from verl_ext.run.settings import mapping_of
from verl_ext.run.stop import exit_resumable
from verl_ext.run.verb import FULL_ERROR, how_to_go_on, keep_traceback
from verl_ext.run.watchdog import Watchdog, look_at_run
from verl_ext.student.model_card import write_cards
from verl_ext.teacher.server.start import start_teachers
from verl_ext.teacher.teachers import teachers_of
from verl_ext.trainer.following import Run, follow, last_line
from verl_ext.trainer.stopping import stopping


def launch(config: DictConfig, started: float) -> None:
    """Run the whole job; where it fails, say so and where to look, and exit with status 1."""
    try:
        train(config, started)
    except (RayError, RuntimeError, TimeoutError, OSError) as error:
        if os.environ.get(FULL_ERROR) == "1":
            raise
        if not (Path(config.run_dir) / RESOLVED).is_file():
            sys.exit(
                f"error: run_dir={config.run_dir} was deleted or moved while the run wrote into it; start the run again"
            )
        sys.exit(
            f"error: the run failed: {last_words(error)}; traceback: {keep_traceback(error)}, every "
            f"process' output: {config.run_dir}/logs; {how_to_go_on(config.trainer)}"
        )
    except KeyboardInterrupt as error:
        exit_resumable(error, how_to_go_on(config.trainer))


def last_words(error: Exception) -> str:
    """One line; of Ray's page about a node without memory, what happened."""
    if memory := re.search(r"was ([\d.]+ ?GB) used / ([\d.]+ ?GB) limit", str(error)):
        return (
            f"out of memory: {memory[1]} of {memory[2]} are in use on a node, and Ray ended workers there; end what "
            "else runs on it, or take a smaller batch or model"
        )
    return last_line(error)


def train(config: DictConfig, started: float) -> None:
    """Run the whole job. Every process it started is gone when it returns or raises."""
    from verl_ext.trainer.runner import Runner  # verl's trainer, read while Ray starts nothing yet

    run_dir = Path(config.run_dir)
    ray_init = keep_to_loopback(mapping_of(config.ray_kwargs.ray_init))
    own_ray = ray_init["address"] == OWN_RAY
    watchdog = Watchdog(partial(look_at_run, own_ray=own_ray))
    if own_ray:
        ray_init = lean(ray_init)
    with (
        RunConsole(run_dir, started) as console,
        ray_session(ray_init, run_dir / "logs", warm_workers if own_ray else nullcontext),
        stopping(config, console) as stop,
    ):
        console.stage("Ray is up")
        if doors := open_doors([node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]):
            console.stage(doors)
        mark_stage(run_dir, "Ray is up")
        teachers, worker_config = start_teachers(config)
        shared = any(teacher.share_device for teacher in teachers_of(config).values())
        OmegaConf.resolve(worker_config)  # resolvers of ours are known to this process alone
        runner = as_actor(Runner).options(scheduling_strategy=here()).remote()
        with watchdog:
            training = runner.run.remote(worker_config, list(teachers) if shared else [])
            follow(config, Run(console, watchdog, teachers, runner, training), stop)
        console.update()
    if config.actor_rollout_ref.model.lora_rank and config.trainer.save_freq > 0:
        from verl_ext.student.export import export_what_is_missing  # seconds to import, which nothing waits for here

        export_what_is_missing(config)
    if (run_dir / "metrics.jsonl").is_file():
        write_cards(run_dir)  # with the last step, which the last checkpoint's card does not know yet
    console.finish(evaluation_of(config))


def here() -> NodeAffinitySchedulingStrategy:
    """The node of this process. Ray puts an actor that reserves nothing on any node, the teacher's too."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
