"""Train a student on its own samples, scored token by token by a teacher.

    # on a CPU: the tiny pair
    python -m recipe.on_policy_distillation platform=cpu task=demo student.path=outputs/demo/models/base \\
        data.train_files=train.parquet data.val_files=heldout.parquet
    # on a GPU
    python -m recipe.on_policy_distillation model=qwen3_4b_from_30b hardware=h200_1x update=lora \\
        teacher=fp8 data.train_files=train.parquet data.val_files=heldout.parquet

Everything of a run is in run_dir: settings, metrics, checkpoints, logs, the student.
"""

import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.context import context_of_run
from verl_ext.checks.data import label_set_of_run
from verl_ext.checks.run import check
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.files import check_writable, save_resolved_config
from verl_ext.run.hydra import chosen_groups
from verl_ext.run.lock import locked
from verl_ext.run.metrics import mark_stage
from verl_ext.run.resume import begin
from verl_ext.run.verb import Verb, run_verb
from verl_ext.run.visible import print
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.keys import KEYS
from verl_ext.trainer.pipeline_config import PipelineConfig
from verl_ext.trainer.replay.config import ReplayConfig
from verl_ext.trainer.report_config import ReportConfig

from . import CONFIGS

VERB = Verb(
    "on_policy_distillation",
    doc=str(__doc__),
    settings={
        "method": MethodConfig,
        "teacher": TeacherConfig,
        "pipeline": PipelineConfig,
        "replay": ReplayConfig,
        "report": ReportConfig,
    },
    config_dir=CONFIGS,
    keys=KEYS,
    required=("data.train_files", "data.val_files"),
    prepare=prepare_training_configs,
    more="More: docs/configuration.md, docs/method.md, docs/teacher.md; all of `method` and `teacher` in\n"
    "verl_ext/trainer/config.py and verl_ext/teacher/config.py; verl's own keys in verl/trainer/config.",
)


def train(config: DictConfig) -> None:
    started = time.perf_counter()
    config.run_dir = str(check_writable("run_dir", config.run_dir, folder=True).resolve())
    context = context_of_run(config)
    lines = check(config, context)
    config.method.labels.label_set = config.method.labels.label_set or label_set_of_run(context)
    with locked(Path(config.run_dir)):
        lines += begin(config)
        save_resolved_config(OmegaConf.to_yaml(config, resolve=True), config.run_dir, chosen_groups(CONFIGS))
        mark_stage(config.run_dir, "settings are checked")
        for line in lines:
            print(line, flush=True)
        from verl_ext.trainer.launch import launch  # Ray and verl, of no use before the checks have passed

        launch(config, started)


def main() -> None:
    run_verb(VERB, train)


if __name__ == "__main__":
    main()
