"""The comparison as a table on the console."""

from rich import box
from rich.table import Table
from rich.text import Text

from verl_ext.run.terminal import Terminal
from verl_ext.tinker import parity


def print_table(comparisons: list[parity.Comparison]) -> None:
    """The values in 80 columns, and below them why some differ or cannot be known."""
    colours = {parity.MATCH: "green", parity.DIFFERS: "yellow", parity.UNKNOWABLE: "dim"}
    console = Terminal()
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in ("", "value", "Tinker", "ours", ""):
        table.add_column(column, overflow="fold")
    for c in comparisons:
        status = Text(c.status, colours[c.status] if c.ok else "red")
        table.add_row(c.area, c.name, c.tinker, c.ours, status)
    console.print(table)
    for c in comparisons:
        if c.status != parity.MATCH:
            console.print(f"{c.status}: {c.area}, {c.name}: {c.reason or 'UNEXPLAINED'}", highlight=False)
