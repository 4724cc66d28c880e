"""Look at a run before it starts: what is right, what is not, and what to change.

    # on a CPU: the tiny pair
    python -m recipe.doctor platform=cpu task=demo student.path=outputs/demo/models/base \\
        data.train_files=train.parquet data.val_files=heldout.parquet
    # on a GPU
    python -m recipe.doctor model=qwen3_4b_from_30b hardware=h200_1x update=lora teacher=fp8 \\
        data.train_files=train.parquet data.val_files=heldout.parquet

Takes the very settings of `python -m recipe.on_policy_distillation`, and its own under `doctor`.
Ends with status 1 when a check fails; doctor.json holds every number.

    python -m recipe.doctor --list                      # every check, its cost, its commands
    python -m recipe.doctor --report platform=cpu ...   # what a bug report needs, no secret in it
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from verl_ext.checks.config import DoctorConfig
from verl_ext.checks.context import context_of_run
from verl_ext.checks.diagnose import diagnose
from verl_ext.checks.finding import failed, print_table, report
from verl_ext.checks.registry import checks_table
from verl_ext.checks.report import bug_report
from verl_ext.checks.run import look
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.command import pipe_may_close
from verl_ext.run.field_docs import field_docs
from verl_ext.run.files import check_writable, write_json
from verl_ext.run.hydra import register_schema
from verl_ext.run.terminal import Terminal
from verl_ext.run.verb import Verb, run_verb
from verl_ext.run.visible import print
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.keys import KEYS
from verl_ext.trainer.pipeline_config import PipelineConfig
from verl_ext.trainer.replay.config import ReplayConfig
from verl_ext.trainer.report_config import ReportConfig

from . import CONFIGS

register_schema("settings", DoctorConfig, group="doctor")
TRAINING = ("student.path", "data.train_files", "data.val_files", "teacher.model_path", "teacher.mode", "teacher.urls")
VERB = Verb(
    "on_policy_distillation",
    doc=str(__doc__),
    settings={
        "method": MethodConfig,
        "teacher": TeacherConfig,
        "pipeline": PipelineConfig,
        "replay": ReplayConfig,
        "report": ReportConfig,
        "doctor": DoctorConfig,
    },
    config_dir=CONFIGS,
    keys={key: KEYS[key] for key in TRAINING} | {f"doctor.{name}": "" for name in field_docs(DoctorConfig)},
    required=("data.train_files", "data.val_files"),
    added=("+doctor=settings",),
    prepare=prepare_training_configs,
    more="More: docs/doctor.md; the training's other settings: `python -m recipe.on_policy_distillation --help`.",
)


def doctor(config: DictConfig) -> None:
    check_writable("doctor.out", config.doctor.out)
    if config.doctor.report:
        print(bug_report(config, look(context_of_run(config))))
        return
    findings = diagnose(config)
    print_table(findings, Terminal())
    write_json(Path(config.doctor.out), report(findings))
    bad = failed(findings)
    print(f"{len(findings)} checks, {len(bad)} failed; every number and the full prompts: {config.doctor.out}")
    sys.exit(1 if bad else 0)


def main() -> None:
    words = sys.argv[1:]
    if "--list" in words:
        with pipe_may_close():
            print(checks_table())
        return
    run_verb(VERB, doctor, ["doctor.report=true" if word == "--report" else word for word in words])


if __name__ == "__main__":
    main()
