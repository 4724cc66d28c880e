"""From sentences and a prompt to rows: what `recipe/create_data.py` does, as pure functions.

A row holds the sentence twice: in `prompt`, which is all the student ever sees, alone or inside a prompt of its own,
and in `teacher_messages` inside the prompt that is to be distilled. The answer is never part of a row's
messages: the student samples it. `data/README.md` documents every column.

Sentences that translate each other share a group. A group lies in one split as a whole, so no translation
of a held-out sentence is trained on, and neither is the same text under another group number.
"""

import hashlib
import importlib.util
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from verl_ext.data.privileged import context_of
from verl_ext.data.text_files import Record, read_lines, records, value_as_text

TRANSLATION, EDGE = "translation", "edge"

_TINKER_MD5 = "b30d549f8fb3facaf010bf84438f88d5"
_TINKER_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
_TINKER_TRANSLATIONS = 2000  # rows before it are a 15-way interleave, rows from it on are hand-made edge cases
_TINKER_RULES = {"bg": "ru", "sw": "ot", "th": "ot"}  # the prompt's rules: Cyrillic is ru, unlisted is ot
SENTENCE_FILES = (".jsonl", ".csv", ".tsv", ".parquet", ".json")
KEYS = ("text", "label", "group", "slice", "language")


@dataclass(frozen=True)
class Sentence:
    """One input of the task."""

    index: int
    """Row in the source, from 0."""
    text: str
    label: str
    """Right answer, or "" where none is known."""
    group: int
    """Translations of each other share it."""
    slice: str
    """`translation` is split into train and held-out; `edge` is evaluated apart and never trained on."""
    language: str
    """Source language code, or "" where none is known; finer than the label (`bg` has the label `ru`)."""
    context: str = field(default="", kw_only=True)
    """What the teacher alone is shown (`verl_ext.data.privileged`), or ""."""


def tinker_file(*parts: str) -> Path:
    """Path of a file of the installed tinker-cookbook, found without importing it (the import takes 12 s)."""
    spec = importlib.util.find_spec("tinker_cookbook")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "tinker-cookbook is not installed: pip install --no-deps tinker-cookbook==0.6.1, "
            "or use your own data with source=file and prompt=path"
        )
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise FileNotFoundError(f"tinker-cookbook has no {'/'.join(parts)}; install tinker-cookbook==0.6.1")
    return path


def tinker_sentences() -> list[Sentence]:
    """Tinker's 2,100 sentences, with the label that its prompt asks for; edge cases carry no label."""
    path = tinker_file("example_data", "multilingual.txt")
    raw = path.read_bytes()
    if (found := hashlib.md5(raw).hexdigest()) != _TINKER_MD5:
        raise ValueError(
            f"{path.name} of the installed tinker-cookbook has md5 {found}, expected {_TINKER_MD5}: "
            "labels are derived from row numbers; install tinker-cookbook==0.6.1"
        )
    sentences = []
    for index, line in enumerate(raw.decode().splitlines()):
        edge = index >= _TINKER_TRANSLATIONS
        language = "" if edge else _TINKER_LANGUAGES[index % len(_TINKER_LANGUAGES)]
        sentences.append(
            Sentence(
                index=index,
                text=line.strip(),
                label=_TINKER_RULES.get(language, language),
                group=index if edge else index // len(_TINKER_LANGUAGES),
                slice=EDGE if edge else TRANSLATION,
                language=language,
            )
        )
    return sentences


def file_sentences(path: Path, context: str = "") -> list[Sentence]:
    """A user's sentences: .txt with one a line, or SENTENCE_FILES with `text` and optionally the other KEYS.

    `context`: the column of what the teacher alone is shown, which every row must have; "" for none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"sentences={path}: no such file; correct the path")
    if path.suffix == ".txt":
        found = [Record(f"{path}:{number}", {"text": line}) for number, line in enumerate(read_lines(path), 1)]
    elif path.suffix in SENTENCE_FILES:
        found = records(path)
    else:
        raise ValueError(
            f"sentences={path}: expected a .txt (one sentence a line), or {', '.join(SENTENCE_FILES)} with a text each"
        )
    if not found:
        raise ValueError(
            f"sentences={path}: holds no rows; the first line of a .csv names its columns, such as text,label"
        )
    shown = [context_of(record.place, context, record.values) for record in found]
    checked = [_check_record(record, context) for record in found]
    first_free = 1 + max((record["group"] for record in checked if "group" in record), default=-1)
    sentences = []
    for index, record in enumerate(checked):
        part = record.get("slice", TRANSLATION)
        if part not in (TRANSLATION, EDGE):
            raise ValueError(f"{found[index].place}: slice is {part!r}, expected {TRANSLATION!r} or {EDGE!r}")
        sentences.append(
            Sentence(
                index=index,
                text=record["text"].strip(),
                label=record.get("label", ""),
                group=record.get("group", first_free + index),
                slice=part,
                language=record.get("language", "").strip(),
                context=shown[index],
            )
        )
    return sentences


def _check_record(record: Record, context: str) -> dict[str, Any]:
    """The values of one line, their types checked, what is missing left out; errors carry the line number."""
    place, values = record
    if "text" not in values:
        raise ValueError(f'{place}: expected an object with the key "text"; found {", ".join(values) or "none"}')
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key == context:
            continue
        if key not in KEYS:
            raise ValueError(f"{place}: unknown key {key!r}, expected one of {', '.join(KEYS)}")
        if key == "label":
            checked[key] = value_as_text(f"{place}: label", value)
        elif value is not None:
            checked[key] = _number(place, value) if key == "group" else value
            if key != "group" and not isinstance(value, str):
                raise ValueError(f"{place}: {key} is {value!r}, expected str")
    if not checked.get("text", "").strip():
        raise ValueError(f"{place}: the sentence is empty; delete the line")
    return checked


def _number(place: str, value: Any) -> int:
    """The number of a group; in CSV it is a text."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if type(value) is not int:  # not isinstance: true is an int to Python
        raise ValueError(f"{place}: group is {value!r}, expected int")
    return value


def cut_chars(text: str, max_chars: int) -> str:
    """The start of `text`, at most `max_chars` long, whole words where a space lies in its second half."""
    if len(text) <= max_chars:
        return text
    space = text.rfind(" ", max_chars // 2, max_chars + 1)
    return text[: space if space > 0 else max_chars].rstrip()


def cut_tokens(text: str, max_tokens: int, encode: Callable[[str], Sequence[tuple[int, int]]]) -> str:
    """The start of `text` that is at most `max_tokens` tokens; `encode` gives each token's character span."""
    spans = encode(text)
    while len(spans) > max_tokens:
        # The cut text is encoded again: its tokens are not always a prefix of the whole text's.
        # A token can be part of a character: then the span's start is where whole characters end.
        text = text[: min(spans[max_tokens][0], len(text) - 1)].rstrip()
        spans = encode(text)
    return text


def token_cutter(directory: Path, max_tokens: int) -> "partial[str]":
    """A function that cuts a text to `max_tokens` tokens of the tokenizer in `directory`."""
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer={directory}: no tokenizer.json there; give the folder of a model")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # plain text, as everywhere else
    return partial(
        cut_tokens,
        max_tokens=max_tokens,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).offsets,
    )


def cut(sentences: Iterable[Sentence], shorten: Callable[[str], str]) -> list[Sentence]:
    """Every sentence shortened; the row's two messages are made from the result, so both are cut alike."""
    shortened = [replace(s, text=shorten(s.text)) for s in sentences]
    for sentence in shortened:
        if not sentence.text:
            raise ValueError(f"nothing is left of sentence {sentence.index} after the cut; raise the limit")
    return shortened


def split(sentences: Sequence[Sentence], heldout_fraction: float, seed: int) -> dict[str, list[Sentence]]:
    """Sentences by split. `heldout_fraction` of the groups is held out, rounded, at least one of two groups."""
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"heldout_fraction={heldout_fraction}: expected a number between 0 and 1, both excluded")
    translations = merge_equal_texts([s for s in sentences if s.slice == TRANSLATION])
    groups = sorted({s.group for s in translations})
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} group(s) of sentences: at least 2 are needed, one to train on, one held out")
    count = min(max(1, round(heldout_fraction * len(groups))), len(groups) - 1)
    heldout = set(random.Random(seed).sample(groups, count))
    return {
        "train": [s for s in translations if s.group not in heldout],
        "heldout": [s for s in translations if s.group in heldout],
        "edge": [s for s in sentences if s.slice == EDGE],
    }


def same_text(text: str) -> str:
    """What two texts share that are equal but for white space, and for how their characters are composed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def repeated(splits: Mapping[str, Sequence[Sentence]]) -> list[str]:
    """Lines about texts that occur more than once, white space aside."""
    counts = Counter(same_text(s.text) for name in ("train", "heldout") for s in splits[name])
    more = sum(count - 1 for count in counts.values())
    edge = sum(same_text(s.text) in counts for s in splits["edge"])
    lines = (
        [f"texts that are there once more, white space aside: {more}; equal ones are on one side of the split"]
        if more
        else []
    )
    return [*lines, *([f"warning: {edge} edge texts are among the other rows too"] if edge else [])]


def merge_equal_texts(sentences: Sequence[Sentence]) -> list[Sentence]:
    """Groups that share a text, white space aside, become one, so that it cannot lie on both sides of a split."""
    parent = {s.group: s.group for s in sentences}

    def root(group: int) -> int:
        while parent[group] != group:
            group = parent[group]
        return group

    seen: dict[str, int] = {}
    for sentence in sentences:
        first, second = sorted((root(sentence.group), root(seen.setdefault(same_text(sentence.text), sentence.group))))
        parent[second] = first
    return [replace(s, group=root(s.group)) for s in sentences]
