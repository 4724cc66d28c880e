"""What one check found, and the table and file of all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

OK, WARN, FAIL = "ok", "warn", "fail"
COLOURS = {OK: "green", WARN: "yellow", FAIL: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    name: str
    """What was checked."""
    verdict: str
    """`ok`, `warn` (the run works, look at it) or `fail` (do not start it)."""
    seen: str
    """What was found, one short line."""
    fix: str = ""
    """What to change; empty where nothing is wrong."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Every number behind it, for the file."""


def refused(name: str, error: ValueError) -> Finding:
    """A refusal by `verl_ext.checks.inputs`, whose messages end with `; <fix>`."""
    seen, _, fix = str(error).rpartition("; ")
    return Finding(name, FAIL, seen or fix, fix if seen else "change the key that is named")


def checked(name: str, seen: str, check: Callable[..., Any], *args: Any, **kwargs: Any) -> Finding:
    """A check that raises ValueError, as a finding; `seen` is what to say where it passes."""
    try:
        check(*args, **kwargs)
    except ValueError as error:
        return refused(name, error)
    return Finding(name, OK, seen)


def failed(findings: Sequence[Finding]) -> list[Finding]:
    """Those that must keep the run from starting."""
    return [finding for finding in findings if finding.verdict == FAIL]


def print_table(findings: Sequence[Finding], console: Console) -> None:
    """All findings; text is shown as it is, brackets included."""
    table = Table("check", "seen", "verdict", "what to change", title="doctor", title_justify="left")
    for finding in findings:
        verdict = Text(finding.verdict, COLOURS[finding.verdict])
        table.add_row(Text(finding.name), Text(finding.seen), verdict, Text(finding.fix))
    console.print(table)


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The content of doctor.json."""
    return {"failed": len(failed(findings)), "findings": [asdict(finding) for finding in findings]}
