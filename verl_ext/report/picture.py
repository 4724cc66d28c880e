"""The first wide chart of a report as a picture of its own, which a page in Markdown or a README can show."""

from pathlib import Path

from markupsafe import Markup

from verl_ext.report.blocks import Chart, Report
from verl_ext.report.charts import line_chart, safe

HERE = Path(__file__).parent
WIDTH, LEFT, TOP, ACROSS, BELOW = 860, 56, 64, 620, 56
"""Pixels: of the picture, and of the chart's place in it."""
HEIGHT = 260
"""Of a wide chart, pixels."""


def main_chart(report: Report) -> Chart | None:
    """What the report's picture shows; None where it has no wide chart."""
    blocks = (block for section in report.sections for block in section.blocks)
    return next((block for block in blocks if isinstance(block, Chart) and block.wide), None)


def picture(chart: Chart) -> str:
    """The chart as an SVG file, light or dark as its reader's screen is; nothing in it is loaded from elsewhere."""
    css = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    height = TOP + HEIGHT + BELOW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f"<title>{safe(chart.title)}. {safe(chart.sentence)}</title><style>{css}"
        f"rect.paper {{ fill: var(--paper); }} svg .title {{ font: 600 15px/1 var(--sans); fill: var(--ink); }}</style>"
        f'<rect class="paper" width="100%" height="100%"/>'
        f'<text class="title" x="16" y="28">{safe(chart.title)}</text><text x="16" y="46">{safe(chart.unit)}</text>'
        f'<text x="{LEFT + ACROSS}" y="{TOP + HEIGHT + 42}" text-anchor="end">{safe(chart.x_label)}</text>'
        f'<svg x="{LEFT}" y="{TOP}" width="{ACROSS}" height="{HEIGHT}" style="width: {ACROSS}px">'
        f"{line_chart(chart)}</svg></svg>\n"
    )
