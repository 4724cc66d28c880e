"""The doctor's findings: those that need no engine first, engines only where nothing is wrong so far."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from verl_ext.checks.check import DOCTOR, Cost
from verl_ext.checks.config import DoctorConfig
from verl_ext.checks.context import context_of_run
from verl_ext.checks.engines import Case, sample_student, teacher_findings
from verl_ext.checks.finding import SKIPPED, WARN, Finding, failed
from verl_ext.checks.registry import checks_of
from verl_ext.checks.run import look
from verl_ext.run.settings import settings_of
from verl_ext.teacher.config import BASE


def diagnose(config: DictConfig) -> list[Finding]:
    """All findings, those without an engine first; engines start only where nothing is wrong so far.

    Raises:
        ValueError: if a setting of the doctor itself is wrong.
    """
    settings = settings_of(config.doctor, DoctorConfig)
    context = context_of_run(config)
    findings = look(context)
    if bad := failed(findings):
        seen = f"not started: {', '.join(finding.name for finding in bad)} failed"
        fix = "make the changes above and run the doctor again"
        return [*findings, Finding(SKIPPED, seen, fix, name="engines")]
    teachers = context.teachers
    if any(teacher.mode == BASE for teacher in teachers.values()):
        seen = "not started: the student's base teaches inside the run's own vLLM"
        return [*findings, Finding(SKIPPED, seen, "look at teacher_kl of the first steps", name="engines")]
    rollouts = sample_student(context, settings)
    for name, teacher in teachers.items():
        mine = [rollout for rollout in rollouts if rollout.teacher == name]
        if not mine:
            seen = f"none of the first {settings.rows} rows is its"
            findings += named(name, [Finding(WARN, seen, "raise doctor.rows", name="teacher")], teachers)
            continue
        samples = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        own = replace(settings, record=record_of(settings.record, name, teachers))
        case = Case(own, teacher, config.student.path, mine, samples, config.actor_rollout_ref.rollout.dtype)
        findings += named(name, teacher_findings(case, checks_of(DOCTOR, Cost.NEEDS_ENGINES)), teachers)
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
