"""Blocks as HTML and as Markdown. Every text goes through `finalize`: the invisible is shown, the endless is cut."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from verl_ext.report import charts
from verl_ext.report.axes import buckets_for
from verl_ext.report.blocks import Chart, Confusion, Report, Section, Token
from verl_ext.report.text import LONGEST, clipped, direction, number, with_signs

HERE = Path(__file__).parent
LIVE = ("connect-src 'self'",)
"""What a page may ask for that its own server refreshes."""
MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$@])")
"""What may mean something in Markdown."""
TABLE_POINTS, TABLE_SERIES = 12, 8
"""Rows and columns of the table of a chart."""


def policy(css: str, js: str, live: bool) -> str:
    """The page's Content-Security-Policy: this style, this script, and nothing else from anywhere."""

    def hashed(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    rules = ("default-src 'none'", f"style-src 'sha256-{hashed(css)}'", f"script-src 'sha256-{hashed(js)}'")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'", *(LIVE if live else ())))


def shown(value: Any) -> Any:
    """What stands on the page for a value; markup of our own stays."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    head, left = clipped(value, LONGEST)
    return with_signs(head) + (f"… ({left:,} characters left out)" if left else "")


def plain(value: Any) -> Any:
    """The same in Markdown: nothing in it is markup. One line, so that it fits a table."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = str(shown(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(MARKS.sub(r"\\\1", text).replace("\n", "⏎").replace("\t", "⇥"))


def fence(text: str) -> Markup:
    """Lines as a code block of Markdown, whatever backticks they hold."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markup(f"{ticks}\n{shown(text)}\n{ticks}")


def numbers_of(chart: Chart) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the table of a chart: evenly spaced points of its first lines."""
    series = [each for each in chart.series if each.x.size][:TABLE_SERIES]
    if not series:
        return (chart.x_label,), []
    places = np.unique(np.concatenate([each.x for each in series]))
    places = places[np.unique(np.linspace(0, len(places) - 1, TABLE_POINTS).round().astype(int))]
    rows = []
    for place in places:
        at = [int(np.searchsorted(each.x, place, side="right")) - 1 for each in series]
        values = [number(each.y[i], 4) if i >= 0 else "–" for each, i in zip(series, at, strict=True)]
        rows.append((number(place), *values))
    return (chart.x_label, *(each.name for each in series)), rows


def thinned(chart: Chart) -> str:
    """How many points are drawn of how many, where those are not all."""
    longest = max((len(each.x) for each in chart.series), default=0)
    stretches = buckets_for(len(chart.series))
    if longest <= 2 * stretches:
        return ""
    return f"Each line shows the smallest and the largest value of {stretches} stretches of up to {longest:,} points."


def shade(kl: float | None) -> str:
    """The class of a token's colour: from the student less sure (n2) to the teacher much less sure (p4)."""
    if kl is None:
        return "kx"
    bounds = ((-1.0, "n2"), (-0.1, "n1"), (0.1, "k0"), (0.5, "p1"), (1.5, "p2"), (4.0, "p3"))
    return next((name for bound, name in bounds if kl <= bound), "p4")


def told(token: Token) -> str:
    """The alternatives of a token for the script, as JSON: names that are visible, and log-probs."""
    return json.dumps(
        [[with_signs(name), round(logprob, 3)] for name, logprob in token.alternatives], ensure_ascii=False
    )


def in_pairs(section: Section) -> bool:
    """Whether its small pictures stand two beside each other: matrices, and charts of which there are two."""
    small = [block for block in section.blocks if isinstance(block, Chart) and not block.wide]
    return len(small) == 2 or any(isinstance(block, Confusion) for block in section.blocks)


def _environment(finalize: Callable[[Any], Any]) -> Environment:
    found = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"kind": lambda block: type(block).__name__, "number": number, "direction": direction}
    found.filters |= {"numbers": numbers_of, "thinned": thinned, "shade": shade, "told": told, "fence": fence}
    found.filters["in_pairs"] = in_pairs
    found.globals |= {
        "line_chart": charts.line_chart,
        "lanes_chart": charts.lanes_chart,
        "interval_bar": charts.interval_bar,
        "colour": charts.colour,
        "safe": charts.safe,
        "LABELLED": charts.LABELLED,
    }
    return found


def html(report: Report, live: bool = False) -> str:
    """The page. `live`: it asks the server that sent it whether there is a newer one."""
    css, js = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    template = _environment(shown).get_template("page.html.jinja")
    return template.render(report=report, css=Markup(css), js=Markup(js), live=live, policy=policy(css, js, live))


def markdown(report: Report, pictured: Chart | None = None, picture: str = "") -> str:
    """The same content in Markdown, with a table in the place of each chart; the file `picture` shows `pictured`."""
    template = _environment(plain).get_template("page.md.jinja")
    text = template.render(report=report, pictured=pictured, picture=Markup(picture))
    return re.sub(r"\n{3,}", "\n\n", text)
