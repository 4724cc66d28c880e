"""The doctor's findings: those that need no engine first, engines only where nothing is wrong so far."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from verl_ext.checks.config import DoctorConfig
from verl_ext.checks.finding import WARN, Finding, failed, refused
from verl_ext.checks.settings import read_inputs, settings_findings, token_findings
from verl_ext.run.models import load_tokenizer
from verl_ext.run.settings import settings_of
from verl_ext.teacher.teachers import teachers_of
from verl_ext.trainer.config import check_method


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
    tokenizer = load_tokenizer(config.student.path)
    findings = [inputs, *settings_findings(config, rows, teachers, tokenizer)]
    for name in teachers:
        findings += named(name, token_findings(config, rows, name, teachers, tokenizer, settings.rows), teachers)
    if bad := failed(findings):
        seen = f"not started: {', '.join(finding.name for finding in bad)} failed"
        return [*findings, Finding("engines", WARN, seen, "make the changes above and run the doctor again")]
    from verl_ext.checks.engines import Case, sample_student, teacher_findings

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
