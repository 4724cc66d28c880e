"""How a label of a set is written in a text: its spellings, and where its word begins and ends. Pure functions."""

import re
import unicodedata
from collections.abc import Iterable

JOINT = re.compile(r"(?<=\w)[-_\s]+(?=\w)|(?<=\w)\s*(?=/)|(?<=/)\s*")
_CODE = re.compile(r"[A-Za-z]\d|\d[A-Za-z]")
UNSPACED = re.compile(r"[\u3041-\u30ff\u4e00-\u9fff]{1,2}")
"""Of Chinese and Japanese, which put no space between words."""
_WHOLE_WORDS = {"info": "(?:rmation)?", "sci": "(?:ence)?", "tech": "(?:nology)?"}
_STARS = re.compile(r"(?<=\d)-(?:stars?|points?)\b")
_VERSIONED = re.compile(r".*(?:[+#]|[^\W\d]{3})")
"""What a number may follow at once: `C++17`, `Python3`."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NOT = re.compile(r"(?:no[-_\s]+|not[-_\s]+an?\s+|(?:non|not|un|in|im|ir|il|dis)[-_\s]*)", re.IGNORECASE)


def pattern(key: str, keys: Iterable[str], level: int) -> re.Pattern[str]:
    """What matches a label as it is compared at a level of LEVELS.

    Args:
        key: the label, folded.
        keys: all labels of the set, folded.
        level: the place in LEVELS.
    """
    longer = any(other != key and other.startswith(key) for other in keys)
    return re.compile(_spelt(key, keys, level) + (r"\d*" if _VERSIONED.fullmatch(key) and not longer else ""))


def denied_by(key: str, keys: Iterable[str]) -> str:
    """The label that `key` is the negation of: `toxic` for `non-toxic`; "" for none."""
    if key == "false" and set(keys) == {"true", "false"}:
        return "true"
    negated = _NOT.match(key)
    return key[negated.end() :] if negated and key[negated.end() :] in keys else ""


def _spelt(key: str, keys: Iterable[str], level: int) -> str:
    same = [other for other in keys if NUMBER.fullmatch(other) and NUMBER.fullmatch(key) and float(other) == float(key)]
    if len(same) == 1:
        whole, _, tenths = key.partition(".")
        tenths = tenths.rstrip("0")
        return rf"{whole}\.{tenths}0*" if tenths else rf"{whole}(?:\.0+)?"
    if level < 3:
        return r"\s+".join(re.escape(word) for word in key.split())
    if any(denied_by(other, keys) == key for other in keys):
        return _joined(key) + "s?"
    if opposite := denied_by(key, keys):
        return rf"(?:{_joined(key)}|(?:non|not(?:\s+an?\b)?|no(?=[-_\s]))[-_\s]*{_joined(opposite)}s?)"
    return _joined(key)


def _joined(key: str) -> str:
    words = (re.escape(word) + _WHOLE_WORDS.get(word, "") for word in JOINT.split(key) if word)
    return r"[-_\s]*".join(words).replace("/", r"\s*(?:/|\band\b|&)\s*")


def is_common(label: str) -> bool:
    """Whether a label may stand in a text without being meant: `no`, `de`, `4`."""
    letters = sum(character.isalpha() for character in label)
    if label.casefold() in ("none", "other"):
        return True
    return label.isascii() and (letters < 2 or letters == 2 == len(label)) and not _CODE.search(label)


def starts_word(before: str) -> bool:
    """Whether a label can begin behind this character."""
    return not (before.isalnum() or before in "_-.@#+$")


def ends_word(text: str, end: int) -> bool:
    """Whether a label can end here: what follows is no part of the same word, name or number."""
    following, behind = text[end : end + 1], text[end + 1 : end + 2]
    if not following:
        return True
    if text.startswith(("입니다", "的"), end):  # `is`, in Korean; Chinese
        return True
    unspaced = UNSPACED.match(following) and UNSPACED.fullmatch(text[end - 2 : end])
    if unicodedata.category(following)[0] in "LMN" and not unspaced:
        return False
    if following in "+#♯%°$€£^=@\\\u200d" or "🏻" <= following <= "🏿":
        return False
    if following in "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d":
        return bool(_STARS.match(text, end))
    if following in "_'./" and behind.isalnum():
        return following == "/" and not text[end - 1 : end].isdigit()
    if following == ":":
        return not (behind.isascii() and behind.isalnum())
    return not (following == "," and text[end - 1 : end].isdigit() and behind.isdigit())
