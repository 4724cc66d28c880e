"""The driver follows a run that is under way: what is shown, and how a run ends that cannot go on."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ray
from omegaconf import DictConfig
from ray.exceptions import LocalRayletDiedError, ObjectLostError, RayActorError, RaySystemError, WorkerCrashedError

from verl_ext.run.console import RunConsole
from verl_ext.run.metrics import MetricsTail, mark_stage
from verl_ext.run.stop_request import request_stop
from verl_ext.run.watchdog import Watchdog, dump_stacks, python_processes
from verl_ext.trainer.failures import FILE, FailureWords
from verl_ext.trainer.pipeline_config import SYNC
from verl_ext.trainer.stopping import Stopping

A_PROCESS_ENDED = (RayActorError, WorkerCrashedError, LocalRayletDiedError, ObjectLostError, RaySystemError)
"""Ray's errors whose cause is that a process is gone."""
ANSWER_S = 15.0
"""For a trainer that is asked to end: it looks where it waits for samples, and between steps."""
SAVE_S = 600.0
"""For its checkpoint."""
SAVING = "checkpoint"


@dataclass(frozen=True)
class Run:
    """What the driver holds of a run."""

    console: RunConsole
    watchdog: Watchdog
    teachers: dict[Any, tuple[str, Any]]
    """By the reference that is ready when its server is, the teacher's name and actor."""
    runner: Any
    """The trainer's actor: while it is held, what it started lives, and what is gone is a cause and no consequence."""
    training: Any
    """Ready when the trainer has ended."""


def follow(config: DictConfig, run: Run, stop: Stopping) -> None:
    """Show how the run goes on until it has ended.

    Raises:
        RuntimeError, TimeoutError: where a process of it is gone, or no step ends for `stall_timeout_s`.
    """
    pending = [*run.teachers, run.training]
    failures, words = MetricsTail(Path(config.run_dir) / FILE), FailureWords()
    try:
        while run.training in pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=0.5)
            run.console.update()
            stop.look()
            for line in [*run.watchdog.news(), *words.of(failures.new_rows())]:
                run.console.stage(line)
            for reference in done:
                answer = ray.get(reference)
                if reference == run.training:
                    stop.ended(answer)
                else:
                    mark_stage(config.run_dir, "teacher answers")
                    run.console.stage(f"the teacher {run.teachers[reference][0]} answers log-prob requests at {answer}")
            if run.training in pending:
                check_progress(config, run)
    except A_PROCESS_ENDED as error:
        run.watchdog.look()
        if not (lost := run.watchdog.lost):
            raise
        raise RuntimeError(f"{lost} ended while the run was at {run.console.place or 'its start'}") from error
    except RuntimeError as error:
        if not (lost := run.watchdog.lost) or lost in str(error):
            raise
        raise RuntimeError(f"{lost} ended, and so: {last_line(error)}") from error


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def check_progress(config: DictConfig, run: Run) -> None:
    """End a run that cannot go on, or stands still."""
    place = run.console.place or "its start"
    if reason := run.watchdog.fatal:
        give_up(config, run, RuntimeError(f"{reason} while the run was at {place}"))
    if run.console.seconds_since_progress() > config.stall_timeout_s:
        give_up(
            config,
            run,
            TimeoutError(f"no step ended for stall_timeout_s={config.stall_timeout_s} seconds; the run is at {place}"),
        )


def give_up(config: DictConfig, run: Run, error: Exception) -> NoReturn:
    """Let the trainer save what it finished, keep every process's stacks, and raise `error` or what the trainer says.

    The trainer answers between steps and where it waits for samples, where it is when something there is gone.
    """
    run_dir = Path(config.run_dir)
    run.console.stage(f"{error}; the run ends")
    dump_stacks(python_processes(), run_dir / "stacks")
    if run.watchdog.queue_is_lost and config.pipeline.mode != SYNC:
        raise type(error)(f"{error}; it holds prompts that a checkpoint has to have, so none was saved")
    request_stop(run_dir, str(error))
    asked, saving = time.monotonic(), False
    while not run.watchdog.ray_is_lost and time.monotonic() - asked < (SAVE_S if saving else ANSWER_S):
        done, _ = ray.wait([run.training], num_returns=1, timeout=0.5)
        run.console.update()
        saving = run.console.place.endswith(SAVING)
        if done:
            ray.get(run.training)  # raises, with what was saved
            break
    raise type(error)(f"{error}; the trainer did not answer, so no checkpoint was saved; stacks: {run_dir}/stacks")
