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
from math import ceil

from verl_ext.data.answer_text import (
    LEVELS,
    behind_marker,
    boxed,
    folded,
    json_values,
    plain,
    ticked,
    without_thinking,
)
from verl_ext.data.label_lists import best_valued, valued
from verl_ext.data.label_prose import FIRST, FIRST_COMMON, KIND, UNKNOWN
from verl_ext.data.label_words import JOINT, NUMBER, UNSPACED, denied_by, ends_word, is_common, pattern, starts_word
from verl_ext.data.verdicts import only_denied, second_thoughts, verdict


@dataclass(frozen=True)
class Reading:
    """A label, or why there is none: exactly one of the two is empty."""

    label: str
    reason: str


_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ECHOED = re.compile(r"(?:\s*[/|]\s*\w+)*\W*[:?]\s*\w|\s+\w")
_LEAD = set("*_`~#\"'“”\u2018\u2019\u201a„«»\u2039\u203a「」『』【】《》()[]{}|:\\•·▪◦‣●→⇒")
_CLOSERS = re.compile(r"[*_`~\"'“”\u2019»\u203a」』】》)\]}|]*")
_ALTERNATIVE = re.compile(
    r"\s*(?:[/|,;&+、\uff0c]|(?:and/or|or|and|und|oder|ou|et|vs\.?|to)\b|->|→)?\s*", re.IGNORECASE
)
_NUMBERED = re.compile(r"\d{1,2}[.)]\s+(?=\D)")
_SAME_KIND = re.compile(rf"(?:\s+(?:{KIND}|out of \d+)\b)+", re.IGNORECASE)
_EXPLAINED = re.compile(
    r"\s*\n|\s*[.!?;。\uff01\uff1f\uff1b…)]+(?=\s|$|[\"'*_])|[。\uff01\uff1f]|\s*[:(\[{\uff08]|\s+[-\u2013—>→=]|"
    r"\s*[—\u2013→]|,?\s+(?:because|since|with|weil|porque|parce que|car|given|due to|as (?:the|it|this|there|all|"
    r"in)|and not|but not|not|rather than|instead of)\b|,\s*(?:as|for|i\.e)\b|,\s+(?!(?:but|so|let|and|or|though|"
    r"although)\b)\w[\w'\u2019-]*\s\w",
    re.IGNORECASE,
)


def strict_label(answer: str, extract: str, label_set: Sequence[str]) -> Reading:
    """The one label of `label_set` that the answer gives, as `label_set` spells it.

    Args:
        answer: what the model wrote; thinking blocks are left out first.
        extract: `final_answer`: what follows the last `Final Answer:`, or an answer that is the label alone; `whole`:
            the answer as a whole, and what follows the last `Final Answer:` where that names no label.
        label_set: all labels of the task.
    """
    return _strict_label(answer, extract, tuple(label_set))


@lru_cache(maxsize=1024)  # a student that has learned gives the same few answers, a step's samples at a time
def _strict_label(answer: str, extract: str, label_set: tuple[str, ...]) -> Reading:
    text = ticked(without_thinking(answer)).strip().strip("\ufeff")
    if not text:
        return Reading("", "the answer is empty" if not answer.strip() else "there is no answer beside the thinking")
    readers = [_reader(label_set, level) for level in range(len(LEVELS))]
    marked = behind_marker(text)
    parts = [(text, "whole")] if extract == "whole" else []
    if marked is not None:
        parts.append((marked, "marked"))
    for part, how in parts or [(text, "alone")]:
        if (values := json_values(part)) is not None:
            found = {label for value in values for label in readers[-1].read(value, "alone")}
            if found:
                return _reading(sorted(found))
        looks = [(variant, how) for variant in dict.fromkeys((part, plain(part)))]
        if inside := plain(boxed(part)):
            looks.append((inside, "alone"))
        if readers[-1].listed(part) is not None:
            continue
        for found in (reader.read(*look) for reader in readers for look in looks):
            if len(found) > 1:  # `Center Right` is two labels, unless `center-right` is one
                joined = [one for look in looks if len(one := readers[-1].read(*look)) == 1]
                return _reading(joined[0] if joined else found)
            if found:
                return _reading(found)
    part, how = (parts or [(text, "alone")])[0]
    if found := _concluded(readers, part, how) or readers[-1].listed(part):
        return _reading(found)
    shown = text if marked is None else marked.strip()
    if extract == "final_answer" and marked is None:
        return Reading("", "no label found")
    return Reading("", f"{shown[:40]!r} is not one of the labels" if shown else "the answer ends before the label")


def _concluded(readers: Sequence["_Reader"], part: str, how: str) -> Sequence[str]:
    """The labels of what a text concludes in prose."""
    part = plain(part).strip()
    concluding = how == "alone" and bool(re.search(r"[.!?\n]\s*\S", part))  # not where all is one sentence
    if how == "alone":
        part = part.rsplit("\n", 1)[-1]
    levels = slice(1, 2) if readers[-1].letters else slice(0 if readers[-1].ambiguous else -1, None)
    for reader in readers[levels]:  # the label `A` is not the article `a`
        if found := reader.concluded(part, concluding):
            return found
    return ()


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
            if key := folded(_CAMEL.sub(" ", label) if level == 3 else label, level).strip():
                spelt.setdefault(key, []).append(label)
        self.labels = [(pattern(key, spelt, level), spelt[key]) for key in spelt]
        pairs = {denied_by(key, spelt): key for key in spelt} if len(spelt) == 2 else {}
        self.opposite = {spelt[of][0]: spelt[key][0] for of, key in pairs.items() if of}
        self.ambiguous = any(len(labels) > 1 for labels in spelt.values())
        self.letters = any(len(key) == 1 for key in spelt)
        words = {key: JOINT.split(key) for key in spelt}
        graded = [
            (one, two)
            for one, longer in words.items()
            for two, shorter in words.items()
            if longer[-len(shorter) :] == shorter and longer[0] not in ("not", "non", "no", *shorter)
        ]
        self.graded = {label for pair in graded for key in pair for label in spelt[key]}
        numbers = len(spelt) > 2 and all(NUMBER.fullmatch(key) for key in spelt)
        self.top = max(float(key) for key in spelt) if numbers else 0.0

    def concluded(self, text: str, concluding: bool) -> Sequence[str]:
        """The labels that a text in prose gives (`verdict`)."""
        masked, labels = self._masked(self._folded(text))
        if found := verdict(masked, bool(self.graded), concluding):
            return _named(found, labels)
        return [self.opposite[label] for label in _named(only_denied(masked), labels) if label in self.opposite]

    def listed(self, text: str) -> Sequence[str] | None:
        """The label that a list of values is for, () where none stands out; None where a text is no such list."""
        masked, labels = self._masked(self._folded(text))
        values = valued(masked)
        return _named(best_valued(values), labels) if values else None

    def _folded(self, text: str) -> str:
        """The text as it is compared, `4/5` as the 4 that it is where 5 is the highest label."""
        text = folded(text, self.level).strip()
        return re.sub(rf"(?<=\d)\s*/\s*{ceil(self.top)}(?:\.0+)?(?!\d|\.\d)", "", text) if self.top > 2 else text

    def _masked(self, text: str) -> tuple[str, list[Sequence[str]]]:
        """The text with each label in it as one character, and what these stand for, in their order."""
        masked, seen, position = [], [], 0
        while position < len(text):
            begins = position == 0 or starts_word(text[position - 1]) or UNSPACED.match(text[position])
            end, labels = self._at(text, position) if begins else (position, ())
            if labels and labels not in seen:
                seen.append(labels)
            first = FIRST_COMMON if is_common("".join(labels)) or not self.graded.isdisjoint(labels) else FIRST
            other = text[position] if text[position] < FIRST else UNKNOWN  # no character of the text stands for a label
            masked.append(chr(ord(first) + seen.index(labels)) if labels else other)
            position = end if labels else position + 1
        return "".join(masked), seen

    def read(self, text: str, how: str) -> Sequence[str]:
        """The labels that a text gives: none, one, or several that it could be."""
        text = self._folded(text)
        for start in _starts(text):
            if found := self._statement(text, start, alone=how == "alone"):
                return found
        return ()

    def _at(self, text: str, start: int) -> tuple[int, Sequence[str]]:
        """End and label of the longest label that stands at `start`, whole; (start, ()) for none."""
        best: tuple[int, Sequence[str]] = (start, ())
        for written, labels in self.labels:
            match = written.match(text, start)
            denies = match and match[0].casefold() == "no" and _SAME_KIND.match(text, match.end())  # `no problem`
            if match and match.end() > best[0] and ends_word(text, match.end()) and not denies:
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
                if not _is_choice(separator[0], rest[other_end:]):
                    break
                echo = _ECHOED.match(rest, other_end)
                return () if echo else tuple(dict.fromkeys((*labels, *other)))
            rest = rest[other_end:]
        rest = rest[_symbols(rest) :]
        if rest.startswith("?") and self._masked(rest)[1]:
            return ()
        if not any(character.isalnum() for character in rest):
            return labels
        if alone:
            return ()
        kind = _SAME_KIND.match(rest)
        rest = rest[kind.end() :] if kind else rest
        masked, seen = self._masked(rest)
        explained = text[end - 1] in ").:" or _EXPLAINED.match(masked) or (_EXPLAINED.match(text[end:]) and not kind)
        if any(character.isalnum() for character in rest) and not explained:
            return ()
        return tuple(dict.fromkeys((*labels, *_named(second_thoughts(masked, bool(self.graded)), seen))))


def _named(characters: Sequence[str], labels: Sequence[Sequence[str]]) -> Sequence[str]:
    """The labels that characters of `_masked` stand for."""
    return tuple(dict.fromkeys(label for one in characters for label in labels[ord(one) & 0xFFFF]))


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
    return separator.strip() not in ("", ",") or not re.match(r"[*_`\"']*\s+(?!or\b|and\b)\w", rest)
