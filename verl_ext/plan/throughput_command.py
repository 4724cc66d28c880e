"""What bounds a run's step, what overlap could give at most, how many replicas balance the pipeline.

    # on a CPU: the tiny pair's run; on a GPU the same
    python -m recipe.plan throughput outputs/demo/run
    python -m recipe.plan throughput outputs/mine picture=throughput.svg

Reads the folder of a run, finished or not: its metrics.jsonl, timeline.jsonl and config.yaml. Says
how long each stage takes and how busy student, teacher and trainer are; what a step would take
with `pipeline.mode=one_step_off` or `stream`, and with 1, 2, 4, ... replicas of the student and as
many teachers as keep up; and the command to type next. Of a run that was resumed the steps since its
last start count.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING, DictConfig

from verl_ext.plan.step_times import engines_of, look
from verl_ext.plan.throughput import STUDENT, TEACHER, stages_of
from verl_ext.plan.throughput_report import (
    advice,
    bound_in_words,
    draw,
    outlook_table,
    outlooks_of,
    stage_table,
)
from verl_ext.run.command import as_typed
from verl_ext.run.terminal import Terminal
from verl_ext.run.visible import print


@dataclass(frozen=True)
class ThroughputConfig:
    """Settings of `plan throughput`.

    run: folder of a run (`run_dir`); may be given without its key.
    picture: file for a picture of who works when, in turn and overlapped; its ending is the format. None: no picture.
    """

    run: str = MISSING
    picture: str | None = None


def explain(settings: ThroughputConfig, config: DictConfig, mode: str, ahead: int) -> None:
    """Print what the run in `settings.run`, whose configuration is `config`, says. Raises ValueError if nothing."""
    console = Terminal()

    def say(line: str) -> None:
        console.print(as_typed(line), soft_wrap=True, highlight=False)

    run = settings.run.rstrip("/")
    looked, engines = look(Path(run), ahead), engines_of(config, mode, ahead)
    stages = stages_of(looked.steps)
    say(f"{run}: pipeline.mode={mode}, {engines.samples} samples a step; {'; '.join(looked.notes)}")
    console.print(stage_table(stages))
    say(bound_in_words(stages, engines))
    console.print(outlook_table(outlooks_of(stages, engines), engines.samples))
    for line in advice(stages, engines, run, shared_by(config), config.teacher.mode == "managed"):
        say(line)
    if settings.picture:
        draw(stages, engines, Path(settings.picture))
        print(f"picture: {settings.picture}")


def shared_by(config: DictConfig) -> list[str]:
    """Who works on the trainer's own devices: the student always, a teacher that is told to."""
    teacher = config.teacher
    shares = teacher.mode == "managed" and (teacher.share_device or teacher.device == "cpu")
    return [STUDENT, TEACHER] if shares else [STUDENT]
