"""Look at a run before it starts: one table of what is right, what is not, and what to change.

    python -m recipe.doctor platform=cpu student.path=MODEL \
        data.train_files=train.parquet data.val_files=heldout.parquet

Takes the very settings of `recipe.on_policy_distillation`, and its own under `doctor` (class DoctorConfig in
verl_ext/checks/config.py). Ends with status 1 when a check fails; doctor.json holds every number.

    python -m recipe.doctor --list                   # every check, what it takes, and which commands it concerns
    python -m recipe.doctor --report platform=cpu ...   # what a bug report needs; no engine starts, no secret is shown
"""

import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from verl_ext.checks.config import DoctorConfig
from verl_ext.checks.context import context_of_run
from verl_ext.checks.diagnose import diagnose
from verl_ext.checks.finding import failed, print_table, report
from verl_ext.checks.registry import checks_table
from verl_ext.checks.report import bug_report
from verl_ext.checks.run import look
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.files import write_json

SCHEMA = OmegaConf.structured(DoctorConfig)
OmegaConf.set_readonly(SCHEMA, None)  # a frozen dataclass' node is read-only, and Hydra could not compose it
ConfigStore.instance().store(group="doctor", name="settings", node=SCHEMA)


@hydra.main(version_base=None, config_path="../configs", config_name="on_policy_distillation")
def main(config: DictConfig) -> None:
    if config.doctor.report:
        print(bug_report(config, look(context_of_run(config))))
        return
    try:
        findings = diagnose(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_table(findings, Console())
    write_json(Path(config.doctor.out), report(findings))
    bad = failed(findings)
    print(f"{len(findings)} checks, {len(bad)} failed; every number and the full prompts: {config.doctor.out}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    if "--list" in sys.argv[1:]:
        print(checks_table())
        sys.exit()
    prepare_training_configs()
    sys.argv[1:] = ["doctor.report=true" if word == "--report" else word for word in sys.argv[1:]]
    own = "+doctor=settings"  # Hydra's way to add to a configuration that another verb owns
    flags_first = sys.argv[1:2] and sys.argv[1].startswith("-")  # argparse wants the overrides in one piece
    sys.argv.insert(len(sys.argv) if flags_first else 1, own)
    main()
