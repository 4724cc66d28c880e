"""A report's files."""

from pathlib import Path

from verl_ext.report.blocks import Report
from verl_ext.report.picture import main_chart, picture
from verl_ext.report.render import html, markdown
from verl_ext.run.files import write_atomically

PAGE, TEXT, PICTURE = "report.html", "report.md", "report.svg"


def write(report: Report, folder: Path, live: bool = False) -> str:
    """Write `report.html`, `report.md` and its picture `report.svg` into a folder, each whole or not at all.

    Returns:
        The page; with `live`, one that asks its server whether there is a newer one, which the file does not.
    """
    write_atomically(folder / PAGE, html(report))
    chart = main_chart(report)
    if chart is not None:
        write_atomically(folder / PICTURE, picture(chart))
    write_atomically(folder / TEXT, markdown(report, chart, PICTURE))
    return html(report, live=True) if live else (folder / PAGE).read_text(encoding="utf-8")
