"""Prose in which labels are looked for: how the labels stand in it, and what is taken out before it is read.

Each label in a text is written as one character of LABEL, so that rules see words and labels only, and hold for every
set of labels.
"""

import re
import unicodedata

FIRST, FIRST_COMMON = "\U000f0000", "\U00100000"
UNKNOWN = "\ufffd"
LABEL = f"[{FIRST}-\U0010fffd]"
"""From FIRST_COMMON on: labels that are common words or mere numbers (`no`, `a`, `de`, `4`)."""
MARKS = rf"[^\w{FIRST}-\U0010fffd]*"

KIND = (
    r"(?:sentiment|language|label|class|category|classification|answer|tone|mood|emotion|feeling|attitude|opinion|"
    r"topic|intent|speech|review|text|comment|content|sentence|statement|document|article|story|piece|section|matter|"
    r"issue|problem|email|message|tweet|post|report|ticket|request|query|code|snippet|rating|score|stars?|points?|"
    r"one|news|case|relationship|level|priority|severity|risk|urgency|difficulty|impact|type|group|team|department|"
    r"desk|queue|folder|tag|bucket)"
)
"""What a label may be called, or be the label of: `the positive class`, `a negative review`."""

_DECORATION = re.compile(r"[*_`\"“”«»「」『』【】\[\]{}$#]+|(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)")
_QUOTE = re.compile(r"[\"“”„«][^\"“”„«»\n]*[\"“”»]")
DEGREE = re.compile(
    r"\b(?:(?!hard|part|bare|scarce|un)\w+ly|very|quite|fairly|pretty|somewhat|strong|mild|slight|assez),?\s+",
    re.IGNORECASE,
)
_NUMBER, _TO = rf"(?:{LABEL}|\d+)", r"\s*(?:to|-|\u2013)\s*"
_LETTER = re.compile(rf"^\W*\w\)\s+(?={LABEL})")
_SCALE = re.compile(rf"\bscale\s+(?:of|from)\s+{_NUMBER}{_TO}{_NUMBER}|{_NUMBER}{_TO}{_NUMBER}\s+scale\b", re.I)
_ECHO = re.compile(rf"{LABEL}(?:\s*[/|,]?\s*(?:\bor\s+)?{LABEL})+\s*[:?](?=\W*[\w{FIRST}-\U0010fffd])", re.IGNORECASE)
"""`Positive or negative? Positive.`"""
_NEITHER = re.compile(rf"({LABEL})\s+(?:an?\s+)?{LABEL}\s+nor\b[^.\n]*", re.IGNORECASE)
"""Where `neither` is a label itself."""
_OUT_OF = re.compile(rf"(?<={LABEL})((?:\s+{KIND})?)\s+(?:out )?of (?:the )?{_NUMBER}")

_READ = 6000
"""Characters of a text that are looked at, its last ones: where a model repeats itself, time grows with them."""


def undecorated(text: str) -> str:
    """The end of a text, without markdown, quotations and emoji."""
    text = text[-_READ:]
    text = "".join(one for one in text if unicodedata.category(one) not in ("So", "Sk"))
    if not re.fullmatch(_QUOTE, text.strip()):
        text = _QUOTE.sub(lambda quote: quote[0] if not re.search(r"\w", quote[0]) else "quote", text)
    return _DECORATION.sub("", text)


def bare(text: str, degrees: bool) -> str:
    """A text without decoration, scales (`from 1 to 5`), repeated questions and, unless `degrees` count, degrees."""
    text = _NEITHER.sub(r"\1", _SCALE.sub("scale", _OUT_OF.sub(r"\1", undecorated(text))))
    text = _LETTER.sub("", _ECHO.sub("", text))
    return (text if degrees else DEGREE.sub("", text)).strip(" |\n")
