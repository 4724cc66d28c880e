"""What a run needs in memory before it starts; what bounds the step of one that ran.

    # on a CPU: the tiny pair
    python -m recipe.plan memory student.path=outputs/demo/models/base hardware=cpu task=demo
    # on a GPU; as stacked bars against the capacity too
    python -m recipe.plan memory model=qwen3_4b_from_30b hardware=gb10_128gb update=lora teacher=fp8
    python -m recipe.plan memory ... picture=plan.svg
    # of a run's folder: what bounds its step, what overlap and replicas would give
    python -m recipe.plan throughput outputs/mine

`memory` takes any override of the training command, and tells devices and phases apart. It reads
configurations only: of the run, and each model's config.json (a folder's, or the numbers of the
published Qwen3 models, which ship with this package). Exit status 1: does not fit.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.checks.verl_values import TRAIN, check_ranges
from verl_ext.plan import throughput_command
from verl_ext.plan.hardware import hardware_of
from verl_ext.plan.layout import pools
from verl_ext.plan.report import draw, explain, title
from verl_ext.plan.run import read_run
from verl_ext.plan.step_times import read_config
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_verb, schema_of
from verl_ext.run.settings import check_given, settings_of
from verl_ext.run.terminal import Terminal
from verl_ext.run.verb import Verb, run_verb
from verl_ext.run.visible import print
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.keys import PLANNED
from verl_ext.trainer.pipeline_config import PipelineConfig
from verl_ext.trainer.replay.config import ReplayConfig

from . import CONFIGS

register_verb("throughput", throughput_command.ThroughputConfig)
THROUGHPUT = Verb(
    "throughput",
    doc=str(throughput_command.__doc__),
    settings={"": throughput_command.ThroughputConfig},
    noun="throughput",
    more="More: docs/planner.md.",
)
VERB = Verb(
    "on_policy_distillation",
    doc=str(__doc__),
    settings={"method": MethodConfig, "teacher": TeacherConfig, "pipeline": PipelineConfig, "replay": ReplayConfig},
    config_dir=CONFIGS,
    noun="memory",
    beside={THROUGHPUT.noun: THROUGHPUT},
    keys=PLANNED,
    added=("+picture=null",),
    prepare=prepare_training_configs,
    more="More: docs/planner.md.",
)


def plan(config: DictConfig) -> None:
    check_given(config, "student.path")
    check_ranges(config, TRAIN)
    if config.picture:
        check_writable("picture", config.picture)
    hardware = hardware_of(config.get("hardware"))
    run = read_run(config)
    fits = explain(run, hardware, Terminal())
    if config.picture:
        draw(pools(run, hardware), title(run, hardware), Path(config.picture))
        print(f"picture: {config.picture}")
    sys.exit(not fits)


def throughput(config: DictConfig) -> None:
    settings = settings_of(config, throughput_command.ThroughputConfig)
    if settings.picture:
        check_writable("picture", settings.picture)
    run = read_config(Path(settings.run))
    pipeline = settings_of(OmegaConf.merge(schema_of(PipelineConfig), run.get("pipeline", {})), PipelineConfig)
    throughput_command.explain(settings, run, pipeline.mode, pipeline.ahead)


def main() -> None:
    noun, *words = sys.argv[1:] or [""]
    if noun != THROUGHPUT.noun:
        run_verb(VERB, plan)
        return
    named = [f"run={word}" if word[0] != "-" and "=" not in word else word for word in words]
    run_verb(THROUGHPUT, throughput, [noun, *named])


if __name__ == "__main__":
    main()
