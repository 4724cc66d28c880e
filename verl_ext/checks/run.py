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
from verl_ext.run.resume import resume_of

if TYPE_CHECKING:
    from verl_ext.sft.dataset import DataReport

CHEAP = (Cost.INSTANT, Cost.READS_MODELS)


def refuse(verb: str, context: Context, costs: tuple[Cost, ...] = CHEAP) -> list[Finding]:
    """Look at a command's cheap checks, in order, up to the first that fails; what they found.

    Raises:
        ValueError: naming the key and the fix, on one line.
    """
    findings = []
    for check in checks_of(verb, *costs):
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
    """Refuse an on-policy run that cannot work; else what to tell its user: what is planned, and warnings.

    `context`: of this configuration, where what it has read is of use afterwards.

    Raises:
        ValueError: naming the key and the fix.
    """
    context = context or context_of_run(config)
    findings = refuse(TRAIN, context)
    memory = [f.seen for f in findings if f.name == "memory plan" and config.get("hardware") is not None]
    return [planned(config, len(context.rows), len(context.heldout)), *memory, *warnings(findings)]


def planned(config: DictConfig, rows: int, heldout: int) -> str:
    """What a run will do, where it begins included; how long a step takes is said from the second one on."""
    prompts, samples = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    an_epoch = rows // prompts
    steps = config.trainer.total_training_steps or config.trainer.total_epochs * an_epoch
    resume = resume_of(config.trainer)
    where = f"resumes after step {resume.step}" if resume is not None else "from the start"
    return (
        f"{where}: {rows} rows, {heldout} held out; {prompts} prompts x {samples} samples a step, {steps} steps "
        f"({steps / an_epoch:.1f} epochs, {steps * prompts * samples:,} samples)"
    )


def check_sft(config: DictConfig, ranks: int) -> tuple["DataReport", list[str]]:
    """Refuse an SFT run of `ranks` processes that cannot work; else what its training rows hold, and warnings.

    Raises:
        ValueError: naming the key and the fix.
    """
    context = SftContext(config, ranks)
    findings = refuse(SFT, context)
    return context.dataset.report, warnings(findings)


def check_sft_settings(config: DictConfig, ranks: int) -> None:
    """As `check_sft`, without reading a model or a row: before torchrun starts `ranks` processes that check it all."""
    refuse(SFT, SftContext(config, ranks), (Cost.INSTANT,))


def warnings(findings: list[Finding]) -> list[str]:
    """What a command that goes on should say, a line each."""
    return [f"warning: {finding.line}" for finding in findings if finding.verdict == WARN]
