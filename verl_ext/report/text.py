"""Text of models and files as a reader can trust it: visible, clipped, and numbers in words."""

import math
import re
import unicodedata

LONGEST = 20_000
"""Characters of any one text on a page; what is clipped further says so where it is made."""
ANSWER = 1_200
"""Characters that are shown of an answer."""
PROMPT = 400
"""Of a prompt."""
KEPT = "\n\t\u200c\u200d"
"""Control and format characters that scripts need."""
HIDDEN = re.compile(r"[^\x20-\x7e\u00a0-\u024f]")
"""What may be invisible; the plain rest is passed over quickly."""


def with_signs(text: str) -> str:
    """Control, format and lone surrogate characters as signs that can be seen and do nothing: `␛`, `‹U+202E›`.

    Wider than what a terminal obeys (`verl_ext.run.visible`): a page hides characters without a width too.
    """
    return HIDDEN.sub(lambda found: _sign(found[0]), text)


def _sign(character: str) -> str:
    code = ord(character)
    if character in KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"‹U+{code:04X}›"


def clipped(text: str, longest: int) -> tuple[str, int]:
    """The first `longest` characters, and how many are left out."""
    return text[:longest], max(0, len(text) - longest)


def short(text: str, longest: int = 80) -> str:
    """One line of at most `longest` characters, with how many were left out."""
    line = text.replace("\n", "⏎").replace("\t", "⇥")
    head, left = clipped(line, longest)
    return f"{head}… (+{left:,} characters)" if left else head


def direction(text: str) -> str:
    """`rtl` where the first letter is of a script written from right to left, else `ltr`."""
    for character in text[:LONGEST]:
        kind = unicodedata.bidirectional(character)
        if kind in ("L", "R", "AL"):
            return "ltr" if kind == "L" else "rtl"
    return "ltr"


def number(value: float | None, digits: int = 4) -> str:
    """A number in at most `digits` significant digits; `–` where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    if not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    found = f"{value:,.{places}f}"
    return (found.rstrip("0").rstrip(".") if "." in found else found).replace("-", "−")


def interval(value: float, low: float, high: float) -> str:
    """`0.997 (0.981–0.999)`."""
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def duration(seconds: float | None) -> str:
    """Seconds as one says them."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{number(seconds, 3)} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds / 3600:,.1f} h"


PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def unit_of(value: float) -> tuple[str, float]:
    """The prefix in which a number is short, and its size."""
    return next(((prefix, size) for prefix, size in PREFIXES if abs(value) >= size), ("", 1.0))


def scaled(value: float | None, unit: str) -> str:
    """With a prefix: `1.23 TFLOP`."""
    if value is None:
        return "–"
    prefix, size = unit_of(value)
    return f"{number(value / size, 3)} {prefix}{unit}"


def counted(n: int, one: str, many: str = "") -> str:
    """`1 step`, `2 steps`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
