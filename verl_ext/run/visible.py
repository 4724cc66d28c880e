"""What this program shows. A model's answer, a prompt, a label or a file's name may hold what a terminal obeys.

An escape sequence in an answer would move the cursor, rewrite lines above, or fill the clipboard; a mark of writing
direction would show a path backwards. Here they are shown as they are written in Python. Every module that prints
imports `print` from here, and makes its rich consoles of `verl_ext.run.terminal.Terminal`.
"""

import builtins
import re
from typing import Any

OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all controls but tab and line feed
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators and writing directions
    "\ud800-\udfff\U000e0000-\U000e007f]"  # half of a pair, as in a file's name that is no UTF-8; invisible tags
)


def visible(text: str) -> str:
    """`text` with what a terminal obeys, or does not show, as its escape in Python; tabs and line feeds stay."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print(*parts: object, **how: Any) -> None:
    """Python's `print` of what is visible."""
    builtins.print(*(visible(str(part)) for part in parts), **how)
