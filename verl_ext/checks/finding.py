"""What one check found, and the table and file of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
COLOURS = {OK: "green", WARN: "yellow", FAIL: "bold red", SKIPPED: "dim"}


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    verdict: str
    """`ok`, `warn` (the run works, look at it), `fail` (it must not start) or `skipped` (an earlier check failed)."""
    seen: str
    """What was found, one short line."""
    fix: str = ""
    """What to change; empty where nothing is wrong."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Every number behind it, for the file."""
    name: str = ""
    """What was checked; the list of checks fills it in."""

    @property
    def line(self) -> str:
        """What is wrong and the fix, on one line."""
        seen = f"{self.name}: {self.seen}".replace("\n", ", ")
        return f"{seen}; {self.fix}" if self.fix else seen


def refused(error: ValueError) -> Finding:
    """A check's refusal, whose message ends with `; <fix>`."""
    seen, _, fix = str(error).rpartition("; ")
    return Finding(FAIL, seen or fix, fix if seen else "change the key that is named")


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
