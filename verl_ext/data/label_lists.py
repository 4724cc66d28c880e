"""An answer that gives each label a value: `positive: 0.2, negative: 0.8`, or `A) wrong`, `B) right`.

The text comes with its labels as characters of LABEL (`verl_ext.data.label_prose`).
"""

import re

from verl_ext.data.label_prose import LABEL, undecorated

_SHARE = re.compile(rf"({LABEL})\W{{0,4}}[:=(]\W*(\d+(?:\.\d+)?)", re.IGNORECASE)
_HOLDS = re.compile(rf"({LABEL})\W{{0,4}}[:=(]\W*(yes|no|true|false)\b", re.IGNORECASE)
_OPTION = re.compile(
    rf"^\W{{0,6}}(?:option\s+)?({LABEL})\W?[).:][^\n]*?\b(correct|right|true|incorrect|wrong|false)\b", re.I | re.M
)
_ROUNDED = 0.03
"""By how much shares may miss the whole."""


def valued(text: str) -> dict[str, list[str]]:
    """The values that a text gives its labels, one kind of value only; empty where it is fewer than two labels'."""
    text = undecorated(text)
    for form in (_SHARE, _HOLDS, _OPTION):
        values: dict[str, list[str]] = {}
        for label, value in form.findall(text):
            values.setdefault(label, []).append(value.lower())
        if len(values) > 1:
            return values
    return {}


def best_valued(values: dict[str, list[str]]) -> list[str]:
    """The label that has more than half of all shares, or is the only one to hold; else none."""
    if any(len(found) > 1 for found in values.values()):
        return []
    if not all(found[0][0].isdigit() for found in values.values()):
        holding = [label for label, found in values.items() if found[0] in ("yes", "true", "correct", "right")]
        return holding if len(holding) == 1 else []
    shares = {label: float(found[0]) for label, found in values.items()}
    whole = sum(shares.values())
    if min(abs(whole - 1), abs(whole / 100 - 1)) > _ROUNDED:
        return []
    return [label for label, share in shares.items() if share > whole / 2]
