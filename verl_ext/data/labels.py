"""The label that a person would read in an answer, out of a set of labels. Pure functions.

What a model writes around a label (markdown, quotes, LaTeX, an explanation) is looked past. What names no label, or
more than one, or only begins like one, has none, and the reason says why.

An answer is read four times, each time with less regard for how it is written (LEVELS), and the first reading that
finds something counts: so `us` and `US` can both be labels, and where only one of them is, either spelling is read.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from verl_ext.data.answer_text import LEVELS, behind_marker, boxed, folded, plain, without_thinking


@dataclass(frozen=True)
class Reading:
    """A label, or why there is none: exactly one of the two is empty."""

    label: str
    reason: str


_JOINT = re.compile(r"(?<=\w)[-_\s]+(?=\w)")
_NOT = re.compile(r"(?:non|not|un|in|im|ir|il|dis)[-_\s]*", re.IGNORECASE)

# Regular expressions of what stands around a label, in the order in which it is met.
_LEAD = set("*_`~#\"'“”\u2018\u2019\u201a„«»\u2039\u203a「」『』【】《》()[]{}|:\\•·▪◦‣●→⇒")
_CLOSERS = re.compile(r"[*_`~\"'“”\u2019»\u203a」』】》)\]}|]*")
_ALTERNATIVE = re.compile(
    r"\s*(?:[/|,;&+、\uff0c]|(?:and/or|or|and|und|oder|ou|et|vs\.?|to)\b|->|→)?\s*", re.IGNORECASE
)
_NUMBERED = re.compile(r"\d{1,2}[.)]\s+(?=\D)")
_SAME_KIND = re.compile(
    r"\s+(?:sentiment|language|label|class|category|answer|tone|speech|review|text|comment|content|sentence|"
    r"email|message|stars?|points?|out of \d+)\b",
    re.IGNORECASE,
)
_EXPLAINED = re.compile(
    r"\s*\n|\s*[.!?;。\uff01\uff1f\uff1b…)]+(?=\s|$|[\"'*_])|[。\uff01\uff1f]|\s*[:(\[{\uff08]|"
    r"\s+[-\u2013—>→=]|\s*[—\u2013→]|"
    r",?\s+(?:because|since|weil|porque|parce que|car|given|due to|as (?:the|it|this|there|all|in)|"
    r"and not|but not|not|rather than|instead of)\b|"
    r",\s*(?:as|for|which|meaning|based|the|this|that|these|it|there|i|we|they|its|in|indeed|i\.e)\b",
    re.IGNORECASE,
)
_DOUBT = (
    r"\b(?:or|maybe|perhaps|possibly|alternatively|could|might|may|also|either|wait|actually|"
    r"rather(?! than)|instead(?! of)|correction|should be)\b(?:[^\w\n]+\w+){0,3}?[^\w\n]*?"
)
_CONTRADICTED = r"\b(?:no[,:;.]|(?:is|it's|it\u2019s|be)\b(?!\s+not))[^\w\n]*"
_CLAUSE_ENDS = r"(?=[^\w\n]*(?:[.,;!?)\n]|$)|\s+(?:because|given|as|since|due|too|instead|if|though|but|or|and)\b)"
_DENIED = re.compile(r"\b(?:not|neither|nor|unlike|rather than|instead of)\b|n['\u2019]t\b", re.IGNORECASE)
_SURELY = r"(?:(?:most likely|likely|probably|definitely|clearly|overall)\b[,:]?\s*)?"
_FURTHER = re.compile(rf"(?:(?!\bnot\b)[^:.\n]){{1,80}}?\b(?:is|be|as)\b:?\s*{_SURELY}", re.IGNORECASE)
"""`The label that is best is x`: the next `is`."""
_FRAMES = tuple(
    re.compile(pattern + _SURELY, re.IGNORECASE)
    for pattern in (
        r"\W*(?:\w+[ _'\u2019]){0,4}\w+[\"'*_`]*\s*[:\uff1a=]\s*",
        r"\W*(?:the|my|this|that|it|its|so|thus|therefore|hence|i|answer|sentiment|label|language|class|category)\b"
        r"(?:(?!\bnot\b|n't\b)[^:.\n]){0,80}?\b(?:is (?:written|spoken|expressed) in|is|be|as|it's)\b:?\s*",
        r"\W*(?:it's|i think|i believe|i guess|i(?:'d| would) (?:say|go with))\b[,:]?\s*",
        r"\W*(?=(?:most likely|likely|probably|definitely|clearly|overall)\b)",
        r"\W*(?:option|choice|answer|label|class|category|sentiment|language)\s+",
        r"(?!.*\b(?:not|neither|nor|or)\b)[^\n()]{1,40}\((?=[^\n()]+\)\W*$)",
    )
)


def strict_label(answer: str, extract: str, label_set: Sequence[str]) -> Reading:
    """The one label of `label_set` that the answer gives, as `label_set` spells it.

    Args:
        answer: what the model wrote; thinking blocks are left out first.
        extract: `final_answer`: what follows the last `Final Answer:`, or an answer that is the label alone; `whole`:
            the answer as a whole, and what follows the last `Final Answer:` where that names no label.
        label_set: all labels of the task.
    """
    text = without_thinking(answer).strip().strip("\ufeff")
    if not text:
        return Reading("", "the answer is empty" if not answer.strip() else "there is no answer beside the thinking")
    readers = [_reader(tuple(label_set), level) for level in range(len(LEVELS))]
    marked = behind_marker(text)
    parts = [(text, "whole")] if extract == "whole" else []
    if marked is not None:
        parts.append((marked, "marked"))
    for part, how in parts or [(text, "alone")]:
        looks = [(variant, how) for variant in dict.fromkeys((part, plain(part)))] + [(plain(boxed(part)), "alone")]
        for found in (reader.read(*look) for reader in readers for look in looks):
            if len(found) > 1:  # `Center Right` is two labels, unless `center-right` is one
                joined = [one for look in looks if len(one := readers[-1].read(*look)) == 1]
                return _reading(joined[0] if joined else found)
            if found:
                return _reading(found)
    shown = text if marked is None else marked.strip()
    if extract == "final_answer" and marked is None:
        return Reading("", "no label found")
    return Reading("", f"{shown[:40]!r} is not one of the labels" if shown else "the answer ends before the label")


def _reading(labels: Sequence[str]) -> Reading:
    if len(labels) == 1:
        return Reading(labels[0], "")
    return Reading("", f"several labels: {', '.join(labels)[:80]}")


@lru_cache(maxsize=64)
def _reader(label_set: tuple[str, ...], level: int) -> "_Reader":
    return _Reader(label_set, level)


class _Reader:
    """Reads labels at one level."""

    def __init__(self, label_set: tuple[str, ...], level: int) -> None:
        self.level = level
        spelt: dict[str, list[str]] = {}
        for label in dict.fromkeys(label_set):
            if key := folded(label, level).strip():
                spelt.setdefault(key, []).append(label)
        self.labels = [(re.compile(self._pattern(key, spelt)), labels) for key, labels in spelt.items()]
        self.any = "|".join(f"(?:{pattern.pattern})" for pattern, _ in self.labels) or r"(?!)"

    def _pattern(self, key: str, keys: dict[str, list[str]]) -> str:
        if self.level < 3:
            return r"\s+".join(re.escape(word) for word in key.split())
        negated = _NOT.match(key)
        if negated and key[negated.end() :] in keys:
            return r"(?:non|not|no(?=[-_\s]))[-_\s]*" + _joined(key[negated.end() :])
        return _joined(key)

    def read(self, text: str, how: str) -> Sequence[str]:
        """The labels that a text gives: none, one, or several that it could be."""
        text = folded(text, self.level).strip()
        for start in _starts(text):
            if found := self._statement(text, start, alone=how == "alone"):
                return found
        if how == "alone":
            return self._framed(text.rsplit("\n", 1)[-1], _FRAMES[:2], alone=True)
        if found := self._framed(text, _FRAMES, alone=False):
            return found
        return self._last_line(text) if how == "whole" else ()

    def _framed(self, text: str, frames: Sequence[re.Pattern[str]], alone: bool) -> Sequence[str]:
        """The labels behind `The answer is`, `Label:` and the like."""
        for frame in frames:
            match = frame.match(text)
            while match:
                for start in _starts(text[match.end() :]):
                    if found := self._statement(text[match.end() :], start, alone):
                        return found
                further = _FURTHER.match(text, match.end()) if frame is _FRAMES[1] else None
                crossed = further and re.search(rf"(?<!\w)(?:{self.any})(?!\w)", further[0])
                match = None if crossed else further
        return ()

    def _last_line(self, text: str) -> Sequence[str]:
        """The label that stands alone on the last line."""
        line = text.rsplit("\n", 1)[-1]
        for start in _starts(line):
            if found := self._statement(line, start, alone=True):
                return found
        return self._framed(line, _FRAMES[:2], alone=True)

    def _at(self, text: str, start: int) -> tuple[int, Sequence[str]]:
        """End and label of the longest label that stands at `start`, whole; (start, ()) for none."""
        best: tuple[int, Sequence[str]] = (start, ())
        for pattern, labels in self.labels:
            match = pattern.match(text, start)
            if match and match.end() > best[0] and _ends_word(text, match.end()):
                best = match.end(), labels
        return best

    def _statement(self, text: str, start: int, alone: bool) -> Sequence[str]:
        """The labels of a text that begins with one at `start` and goes on as an explanation does, or not at all."""
        end, labels = self._at(text, start)
        if not labels:
            return ()
        rest = text[end:]
        for _ in range(8):  # `fr, fr, fr`
            rest = rest[_closers(rest) :]
            separator = _ALTERNATIVE.match(rest)
            assert separator is not None  # it can be empty
            begin = next((s for s in _starts(rest[separator.end() :]) if self._at(rest, separator.end() + s)[1]), None)
            if begin is None or "\n" in separator[0]:
                break
            other_end, other = self._at(rest, separator.end() + begin)
            if other != labels:
                return tuple(dict.fromkeys((*labels, *other))) if _is_choice(separator[0], rest[other_end:]) else ()
            rest = rest[other_end:]
        rest = rest[_symbols(rest) :]
        if not any(character.isalnum() for character in rest):
            return labels
        if alone:
            return ()
        kind = _SAME_KIND.match(rest)
        rest = rest[kind.end() :] if kind else rest
        explained = _EXPLAINED.match(rest) or (_EXPLAINED.match(text[end:]) and not kind)
        if any(character.isalnum() for character in rest) and not explained:
            return ()
        return tuple(dict.fromkeys((*labels, *self._second_thoughts(rest))))

    def _second_thoughts(self, explanation: str) -> list[str]:
        """Labels that an explanation offers too: `or es`, `it could be es`, `the text is es.`, `(es)`, `es` alone."""
        found: list[str] = []
        for before, after in ((_DOUBT, _CLAUSE_ENDS), (_CONTRADICTED, _CLAUSE_ENDS), (r"^\W*", r"(?=\W*$)")):
            for match in re.finditer(f"{before}(?P<label>{self.any})(?!\\w){after}", explanation, re.IGNORECASE):
                sentence = re.split(r"[.!?\n]", explanation[: match.start("label")])[-1]
                if not _DENIED.search(sentence):
                    found += self._at(explanation, match.start("label"))[1]
        lines = [line.strip() for line in explanation.split("\n")[1:] if line.strip()]
        for line in lines[:1]:  # a list
            for start in _starts(line):
                end, labels = self._at(line, start)
                if labels and not any(character.isalnum() for character in line[end:]):
                    found += labels
        return [*found, *(self._last_line(explanation) if lines else ())]


def _joined(key: str) -> str:
    return r"[-_\s]*".join(re.escape(word) for word in _JOINT.split(key) if word)


def _starts(text: str) -> Iterator[int]:
    """Where a label may begin: at the start, and behind each character of decoration that leads up to it."""
    numbered = _NUMBERED.match(text)
    for position, character in enumerate(text):
        yield position
        if numbered and position < numbered.end():
            continue
        following = text[position + 1 : position + 2]
        skipped = character in _LEAD or character.isspace() or unicodedata.category(character) in ("So", "Sk")
        if not skipped and not (character in "-\u2013—.…>+" and (following.isspace() or following == character)):
            return


def _ends_word(text: str, end: int) -> bool:
    """Whether a label can end here: what follows is no part of the same word, name or number."""
    following, behind = text[end : end + 1], text[end + 1 : end + 2]
    if not following:
        return True
    if unicodedata.category(following)[0] in "LMN" or following in "+#%°$€£^=@\\\u200d" or "🏻" <= following <= "🏿":
        return False
    if following in "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d":
        return False
    if following in "_'./" and behind.isalnum():
        return following == "/" and not text[end - 1 : end].isdigit()
    return not (following in ",:" and text[end - 1 : end].isdigit() and behind.isdigit())


def _closers(rest: str) -> int:
    match = _CLOSERS.match(rest)
    assert match is not None  # it can be empty
    return match.end()


def _symbols(rest: str) -> int:
    """How much of what follows a label is emoji."""
    end = next((i for i, one in enumerate(rest) if one != " " and unicodedata.category(one) not in ("So", "Sk")), 0)
    return end if rest[:end].strip() else 0


def _is_choice(separator: str, rest: str) -> bool:
    """Whether a second label is one, and not a word of an explanation: `yes, no doubt`."""
    return separator.strip() != "," or not re.match(r"[*_`\"']*\s+(?!or\b|and\b)\w", rest)
