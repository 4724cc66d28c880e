"""Text of a run as Markdown that shows it, and obeys none of it."""

import re
from collections.abc import Mapping
from typing import Any

from verl_ext.run.visible import visible


def indented(text: str) -> str:
    """As Markdown shows code."""
    return "\n".join(f"    {line}" for line in visible(text).splitlines())


def plain(text: Any) -> str:
    """A setting or a name as Markdown shows it: on one line, without HTML, a table's bars or what a terminal obeys."""
    return re.sub(r"([|`\[\]<>])", r"\\\1", " ".join(visible(str(text)).split()))


def table(title: str, values: Mapping[str, str]) -> str:
    """A Markdown section with a table of two columns."""
    return "\n".join(
        [
            f"## {title}\n",
            "| | |",
            "|---|---|",
            *(f"| {plain(key)} | {plain(value)} |" for key, value in values.items()),
        ]
    )
