"""How the list is used: a command refuses by the first check that fails, the doctor looks at all of them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from verl_ext.checks.check import DOCTOR, SFT, TRAIN, Check, Cost
from verl_ext.checks.context import Context, context_of_run
from verl_ext.checks.finding import FAIL, OK, SKIPPED, WARN, Finding, refused
from verl_ext.checks.registry import checks_of
from verl_ext.checks.sft import SftContext

if TYPE_CHECKING:
    from verl_ext.sft.dataset import DataReport

CHEAP = (Cost.INSTANT, Cost.READS_MODELS)


def refuse(verb: str, context: Context) -> list[Finding]:
    """Look at a command's cheap checks, in order, up to the first that fails; what they found.

    Raises:
        ValueError: naming the key and the fix, on one line.
    """
    findings = []
    for check in checks_of(verb, *CHEAP):
        for teacher in _teachers(check, context):
            finding = _look(check, context, teacher)
            if finding.verdict == FAIL:
                raise ValueError(finding.line)
            findings.append(finding)
    return findings


def look(context: Context) -> list[Finding]:
    """Look at all cheap checks of a run; those that an earlier failure leaves nothing to look at share the last row."""
    findings: list[Finding] = []
    failed: set[tuple[str, str | None]] = set()
    skipped: list[str] = []
    for check in checks_of(DOCTOR, *CHEAP):
        if any((name, None) in failed for name in check.needs):
            failed.add((check.name, None))
            skipped.append(check.name)
            continue
        for teacher in _teachers(check, context):
            if any((name, teacher) in failed for name in check.needs):
                finding = Finding(SKIPPED, "", name=_name(check, context, teacher))
                skipped.append(finding.name)
            else:
                try:
                    finding = _look(check, context, teacher)
                except ValueError as error:
                    finding = replace(refused(error), name=_name(check, context, teacher))
                findings.append(finding)
            if finding.verdict in (FAIL, SKIPPED):
                failed.add((check.name, teacher))
    if skipped:
        fix = "make the changes above and run the doctor again"
        findings.append(Finding(SKIPPED, f"{', '.join(skipped)}: nothing to look at yet", fix, name="not looked at"))
    return findings


def _teachers(check: Check, context: Context) -> Iterator[str | None]:
    """Whom a check is about: each teacher, or the run (None)."""
    yield from context.teachers if check.each_teacher else (None,)


def _name(check: Check, context: Context, teacher: str | None) -> str:
    """A check's name, with the teacher's where there are several."""
    return check.name if teacher is None or len(context.teachers) == 1 else f"{teacher}: {check.name}"


def _look(check: Check, context: Context, teacher: str | None) -> Finding:
    """What a check found. Its ValueError names the teacher where there are several."""
    name = _name(check, context, teacher)
    if teacher is None:
        seen = check.look(context)
    else:
        try:
            seen = check.look(context, teacher)
        except ValueError as error:
            raise ValueError(str(error) if name == check.name else f"teachers.{teacher}: {error}") from None
    return replace(seen, name=name) if isinstance(seen, Finding) else Finding(OK, seen, name=name)


def check(config: DictConfig, context: Context | None = None) -> list[str]:
    """Refuse an on-policy run that cannot work; else what to tell its user: how it fits in memory, and warnings.

    `context`: of this configuration, where what it has read is of use afterwards.

    Raises:
        ValueError: naming the key and the fix.
    """
    findings = refuse(TRAIN, context or context_of_run(config))
    planned = [f.seen for f in findings if f.name == "memory plan" and config.get("hardware") is not None]
    return planned + warnings(findings)


def check_sft(config: DictConfig, ranks: int) -> "DataReport":
    """Refuse an SFT run of `ranks` processes that cannot work; else what its training rows hold.

    Raises:
        ValueError: naming the key and the fix.
    """
    context = SftContext(config, ranks)
    refuse(SFT, context)
    return context.dataset.report


def warnings(findings: list[Finding]) -> list[str]:
    """What a command that goes on should say, a line each."""
    return [f"warning: {finding.line}" for finding in findings if finding.verdict == WARN]
