"""A rich console for text that others wrote (`verl_ext/run/visible.py`)."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from verl_ext.run.visible import visible


class Terminal(Console):
    """A rich console that shows text as it stands: no markup, no emoji names, nothing that a terminal obeys."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, emoji=False, **how)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
