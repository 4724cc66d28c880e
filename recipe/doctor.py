"""Look at a run before it starts: one table of what is right, what is not, and what to change.

    python -m recipe.doctor platform=cpu student.path=MODEL \
        data.train_files=train.parquet data.val_files=heldout.parquet

Takes the very settings of `recipe.on_policy_distillation`, and its own under `doctor` (class DoctorConfig in
verl_ext/doctor/config.py). Ends with status 1 when a check fails; doctor.json holds every number.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from verl_ext import preflight
from verl_ext.config import check_method, settings_of
from verl_ext.doctor.config import DoctorConfig
from verl_ext.doctor.finding import WARN, Finding, failed, print_table, refused, report
from verl_ext.doctor.static import read_inputs, settings_findings, token_findings
from verl_ext.teacher.service import teachers_of
from verl_ext.verbs import prepare_training_configs

SCHEMA = OmegaConf.structured(DoctorConfig)
OmegaConf.set_readonly(SCHEMA, None)  # a frozen dataclass' node is read-only, and Hydra could not compose it
ConfigStore.instance().store(group="doctor", name="settings", node=SCHEMA)


def diagnose(config: DictConfig) -> list[Finding]:
    """All findings, those without an engine first; engines start only where nothing is wrong so far.

    Raises:
        ValueError: if a setting of the doctor itself is wrong.
    """
    settings = settings_of(config.doctor, DoctorConfig)
    try:
        check_method(config)
        teachers = teachers_of(config)
        rows, inputs = read_inputs(config, teachers)
    except ValueError as error:
        return [refused("inputs", error)]
    tokenizer = preflight.load_tokenizer(config.student.path)
    findings = [inputs, *settings_findings(config, rows, teachers, tokenizer)]
    for name in teachers:
        findings += named(name, token_findings(config, rows, name, teachers, tokenizer, settings.rows), teachers)
    if bad := failed(findings):
        seen = f"not started: {', '.join(finding.name for finding in bad)} failed"
        return [*findings, Finding("engines", WARN, seen, "make the changes above and run the doctor again")]
    from verl_ext.doctor.engines import Case, sample_student, teacher_findings

    rollouts = sample_student(config, settings, rows, teachers, tokenizer)
    for name, teacher in teachers.items():
        mine = [rollout for rollout in rollouts if rollout.teacher == name]
        if not mine:
            missing = Finding("teacher", WARN, f"none of the first {settings.rows} rows is its", "raise doctor.rows")
            findings += named(name, [missing], teachers)
            continue
        samples = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        own = replace(settings, record=record_of(settings.record, name, teachers))
        case = Case(own, teacher, config.student.path, mine, samples, config.actor_rollout_ref.rollout.dtype)
        findings += named(name, teacher_findings(case), teachers)
    return findings


def record_of(file: str, name: str, teachers: Collection[str]) -> str:
    """The record's file; where there are several teachers, one each: `record-NAME.json`."""
    if not file or len(teachers) == 1:
        return file
    path = Path(file)
    return str(path.with_stem(f"{path.stem}-{name}"))


def named(name: str, findings: Sequence[Finding], teachers: Collection[str]) -> list[Finding]:
    """Say which teacher is meant, where there are several."""
    if len(teachers) == 1:
        return list(findings)
    return [replace(finding, name=f"{name}: {finding.name}") for finding in findings]


@hydra.main(version_base=None, config_path="../configs", config_name="on_policy_distillation")
def main(config: DictConfig) -> None:
    try:
        findings = diagnose(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_table(findings, Console())
    preflight.write_json(Path(config.doctor.out), report(findings))
    bad = failed(findings)
    print(f"{len(findings)} checks, {len(bad)} failed; every number and the full prompts: {config.doctor.out}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    prepare_training_configs()
    own = "+doctor=settings"  # Hydra's way to add to a configuration that another verb owns
    flags_first = sys.argv[1:2] and sys.argv[1].startswith("-")  # argparse wants the overrides in one piece
    sys.argv.insert(len(sys.argv) if flags_first else 1, own)
    main()
