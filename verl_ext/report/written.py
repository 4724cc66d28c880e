"""A report's two files."""

from pathlib import Path

from verl_ext.report.blocks import Report
from verl_ext.report.render import html, markdown
from verl_ext.run.files import write_atomically

PAGE, TEXT = "report.html", "report.md"


def write(report: Report, folder: Path, live: bool = False) -> str:
    """Write `report.html` and `report.md` into a folder, each whole or not at all.

    Returns:
        The page; with `live`, one that asks its server whether there is a newer one, which the file does not.
    """
    write_atomically(folder / PAGE, html(report))
    write_atomically(folder / TEXT, markdown(report))
    return html(report, live=True) if live else (folder / PAGE).read_text(encoding="utf-8")
