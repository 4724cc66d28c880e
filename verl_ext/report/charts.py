"""Charts as SVG that is as wide as its place: lines in a stretched inner picture, words outside of it.

A point's place in the inner picture is 0 to 1000 from left to right, whatever its width on the screen; heights are
pixels.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from verl_ext.report.axes import Axis, axis_of, buckets_for, kept_points, rounded, spread
from verl_ext.report.blocks import Chart, Estimate, Lanes, Series
from verl_ext.report.text import number, short, with_signs

WIDTH = 1000
"""Of an inner picture."""
COLOURS = 8
"""Of lines; further ones are grey."""
LABELLED = 10
"""Lines that are named at their right end; of more, the legend names them."""
DOTTED = 40
"""Points up to which each is marked."""
LANE, LANE_GAP = 22, 10


def safe(text: str) -> Markup:
    return escape(with_signs(text))


def colour(index: int) -> str:
    """The class of a line's colour."""
    return f"c{index}" if 0 <= index < COLOURS else "cg"


def line_chart(chart: Chart) -> Markup:
    """The picture of a chart; its words are the page's."""
    height = 260 if chart.wide else 150
    series = [each for each in chart.series if each.x.size]
    bounds = [each.y for each in series]
    bounds += [edge for each in series for edge in (each.low, each.high) if edge is not None]
    bounds += [np.array([chart.target[0]])] if chart.target else []
    x_axis = axis_of([each.x for each in series], log=chart.log_x)
    y_axis = Axis(*chart.y_range) if chart.y_range else rounded(axis_of(bounds))
    buckets = buckets_for(len(series))
    back_to_front = sorted(series, key=lambda each: 0 <= each.colour < COLOURS)  # grey lines hide no other
    inner = "".join(_line(each, x_axis, y_axis, height, buckets) for each in back_to_front)
    outer = _grid(y_axis, height) + _x_ticks(x_axis, height) + _target(chart, y_axis, height)
    return Markup(
        f'<svg class="lines" role="img" tabindex="0" height="{height}" aria-label="{safe(chart.title)}. '
        f'{safe(chart.sentence)}" data-x="{safe(chart.x_label)}">{outer}'
        f'<svg class="data" viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" width="100%" height="{height}">'
        f'{inner}<line class="cursor" y1="0" y2="{height}" visibility="hidden"/></svg>'
        f"{_end_labels(series, y_axis, height, chart.wide)}</svg>"
    )


def _grid(axis: Axis, height: int) -> str:
    found, ticks = "", axis.ticks()
    for tick, word in zip(ticks, tick_words(ticks), strict=True):
        y = height * (1 - float(axis.at(np.array([tick]))[0]))
        found += f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        found += f'<text class="tick" x="0" dx="-8" y="{y:.1f}" dy=".32em" text-anchor="end">{word}</text>'
    return found


def _x_ticks(axis: Axis, height: int) -> str:
    found, ticks = "", axis.ticks()
    for tick, word in zip(ticks, tick_words(ticks), strict=True):
        x = 100 * float(axis.at(np.array([tick]))[0])
        found += f'<text class="tick" x="{x:.2f}%" y="{height}" dy="1.5em" text-anchor="middle">{word}</text>'
    return found


def tick_words(ticks: Sequence[float]) -> list[str]:
    """The numbers at ticks, in as few digits as tell them apart."""
    largest = max(map(abs, ticks), default=0.0)
    near = [0.0 if abs(tick) < 1e-9 * largest else tick for tick in ticks]
    return next(
        words for digits in range(3, 16) if len({*(words := [number(tick, digits) for tick in near])}) == len(near)
    )


def _target(chart: Chart, axis: Axis, height: int) -> str:
    if chart.target is None:
        return ""
    level, name = chart.target
    y = height * (1 - float(axis.at(np.array([level]))[0]))
    return f'<line class="target" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>' + (
        f'<text class="tick" x="2" y="{y - 5:.1f}">{safe(name)}</text>' if chart.wide else ""
    )


def _line(series: Series, x_axis: Axis, y_axis: Axis, height: int, buckets: int) -> str:
    kept = kept_points(series.y, buckets)
    x, y = series.x[kept], series.y[kept]
    across = x_axis.at(x) * WIDTH

    def down(values: np.ndarray) -> np.ndarray:
        return (1 - np.clip(y_axis.at(values), -0.02, 1.02)) * height

    shade, points = colour(series.colour), _points(across, down(y))
    found = f'<g class="{shade}" data-key="{safe(series.key)}">'
    if series.low is not None and series.high is not None:
        edge = _points(across, down(series.high[kept])) + " " + _points(across[::-1], down(series.low[kept])[::-1])
        found += f'<polygon class="band" points="{edge}"/>'
    found += (
        f'<path class="line" d="M{points}" data-name="{safe(short(series.name))}" data-x="{_values(x)}" '
        f'data-y="{_values(y)}"/>'
    )
    if len(kept) <= DOTTED:
        found += '<path class="dots" d="' + "".join(f"M{point}h0" for point in points.split(" ")) + '"/>'
    return found + "</g>"


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.4g},{b:.4g}" for a, b in zip(x, y, strict=True))


def _values(values: np.ndarray) -> str:
    return ",".join(f"{value:.6g}" if float(value).is_integer() else f"{value:.4g}" for value in values)


def _end_labels(series: Sequence[Series], axis: Axis, height: int, wide: bool) -> str:
    """Of one line its last value; of a few in a wide chart their names."""
    if not series or len(series) > (LABELLED if wide else 1):
        return ""
    ends = [height * (1 - float(np.clip(axis.at(each.y[-1:]), 0, 1)[0])) for each in series]
    words = [number(each.y[-1], 3) if len(series) == 1 else short(each.name, 24) for each in series]
    return "".join(
        f'<text class="end {colour(each.colour)}" data-key="{safe(each.key)}" x="100%" dx="8" y="{place:.1f}" '
        f'dy=".32em">{safe(word)}</text>'
        for each, place, word in zip(series, spread(ends, 15, 4, height - 2), words, strict=True)
    )


def lanes_chart(lanes: Lanes, kinds: Sequence[str]) -> Markup:
    """Who was busy when; `kinds` of spans in the order of their colours."""
    height = len(lanes.lanes) * (LANE + LANE_GAP)
    inner, names = "", ""
    for number_of_lane, (name, spans) in enumerate(lanes.lanes):
        top = number_of_lane * (LANE + LANE_GAP) + LANE_GAP // 2
        names += (
            f'<text class="lane" x="0" dx="-10" y="{top + LANE / 2}" dy=".32em" text-anchor="end">{safe(name)}</text>'
        )
        for span in spans:
            x, wide = WIDTH * span.start / lanes.seconds, WIDTH * (span.end - span.start) / lanes.seconds
            inner += (
                f'<rect class="c{kinds.index(span.kind) % COLOURS}" x="{x:.2f}" y="{top}" width="{max(wide, 0.6):.2f}" '
                f'height="{LANE}"><title>{safe(span.kind)}: {number(span.end - span.start, 3)} s</title></rect>'
            )
    outer = _x_ticks(Axis(0.0, lanes.seconds), height)
    for at, name in lanes.marks:
        x = f"{100 * at / lanes.seconds:.2f}%"
        outer += f'<line class="mark" x1="{x}" x2="{x}" y1="-4" y2="{height}"/>'
        outer += f'<text class="tick" x="{x}" y="0" dx="3" dy="-.5em">{safe(name)}</text>'
    return Markup(
        f'<svg class="gantt" role="img" height="{height}" aria-label="{safe(lanes.title)}. {safe(lanes.sentence)}">'
        f"{outer}"
        f'<svg viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" width="100%" height="{height}">{inner}</svg>'
        f"{names}</svg>"
    )


def interval_bar(row: Estimate) -> Markup:
    """A share and its interval between 0 and 1; the numbers stand beside it."""
    low, value, high = (100 * min(max(each, 0.0), 1.0) for each in (row.low, row.value, row.high))
    return Markup(
        f'<svg class="estimate {colour(row.colour)}" height="16" aria-hidden="true">'
        '<line class="grid" x1="0" x2="100%" y1="8" y2="8"/>'
        f'<line class="reach" x1="{low:.2f}%" x2="{high:.2f}%" y1="8" y2="8"/>'
        f'<circle cx="{value:.2f}%" cy="8" r="5"/></svg>'
    )
