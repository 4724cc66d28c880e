"""Rows: their columns, the messages made of a sentence, and the checked reader of a parquet file.

A row holds the sentence twice: in `prompt`, which is all the student ever sees, alone or inside a prompt of its own,
and in `teacher_messages` inside the prompt that is to be distilled. The answer is never part of a row's
messages: the student samples it. `data/README.md` documents every column.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.data.conversations import MESSAGES
from verl_ext.data.sentences import Sentence, tinker_file

LABELS = ("ar", "de", "el", "en", "es", "fr", "hi", "ru", "tr", "ur", "vi", "zh", "ot")
"""The 13 answers of the language task; `ot` is every other language."""

PLACEHOLDER = "{text}"
"""Where a prompt takes the sentence. Every other brace of a prompt is plain text."""

MATH = "math"
"""In the column `data_source`: the answer is the value in the response's last \\boxed{}, not the whole response."""

SPLITS = ("train", "heldout", "edge")


def tinker_prompt() -> str:
    """Tinker's 3,765-character prompt, from the source file of the installed package, without running it."""
    path = tinker_file("recipes", "prompt_distillation", "create_data.py")
    name = "LANGUAGE_CLASSIFICATION_PROMPT"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            # Tinker fills it with str.format, where a doubled brace is a single one.
            return ast.literal_eval(node.value).replace("{{", "{").replace("}}", "}")
    raise ValueError(f"the installed tinker-cookbook has no {name}; 0.6.1 has it")


def read_prompt(key: str, name: str, shipped: Path) -> str:
    """A prompt template: `tinker`, a file of the folder `shipped` (`short`), or the path of a text file; with {text}.

    Raises:
        FileNotFoundError, ValueError: naming `key`, the setting that asked for it.
    """
    if name == "tinker":
        template = tinker_prompt()
    else:
        named = {path.stem: path for path in shipped.glob("*.txt")}
        path = named.get(name, Path(name))
        if not path.is_file():
            raise FileNotFoundError(
                f"{key}={name}: expected {', '.join(sorted(named))}, tinker, or the path of a text file"
            )
        template = path.read_text(encoding="utf-8").removesuffix("\n")
    if not template.strip():
        raise ValueError(f"{key}={name}: the prompt is empty")
    if PLACEHOLDER not in template:
        raise ValueError(f"{key}={name}: the prompt has no {PLACEHOLDER} where the sentence goes; add it")
    return template


def make_row(
    sentence: Sentence, template: str, split_name: str, data_source: str, student_template: str = PLACEHOLDER
) -> dict[str, Any]:
    """One parquet row, in verl's columns plus `teacher_messages`."""
    return {
        "prompt": [{"role": "user", "content": student_template.replace(PLACEHOLDER, sentence.text)}],
        "teacher_messages": [{"role": "user", "content": template.replace(PLACEHOLDER, sentence.text)}],
        "label": sentence.label,
        "data_source": data_source,
        "reward_model": {"style": "rule", "ground_truth": sentence.label},
        "extra_info": {
            "index": sentence.index,
            "split": split_name,
            "group": sentence.group,
            "slice": sentence.slice,
            "language": sentence.language,
        },
    }


SCHEMA = pa.schema(
    [
        ("prompt", MESSAGES),
        ("teacher_messages", MESSAGES),
        ("label", pa.string()),
        ("data_source", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("split", pa.string()),
                    ("group", pa.int64()),
                    ("slice", pa.string()),
                    ("language", pa.string()),
                ]
            ),
        ),
    ]
)

REQUIRED_COLUMNS = ("prompt", "teacher_messages", "data_source", "reward_model")


MOST_LABELS = 100
"""Right answers up to which they are a set of labels; more are answers of their own, each to its question."""


def label_set_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All labels of a task: the right answers of its rows, sorted, without those of problems.

    Where these are all of the language task, its LABELS. Empty where they are more than MOST_LABELS.
    """
    known = {row["reward_model"]["ground_truth"] for row in rows if row["data_source"] != MATH} - {"", None}
    if len(known) > MOST_LABELS:
        return []
    return list(LABELS) if known <= set(LABELS) else sorted(known)


def without_rows(label_set: Sequence[str], labels: Iterable[str]) -> list[str]:
    """The labels of the set that no row has."""
    seen = set(labels)
    return [label for label in label_set if label not in seen]


def read_table(key: str, path: str, verb: str) -> pa.Table:
    """A parquet file that `python -m recipe.<verb>` makes. ValueError naming `key` if it is missing or none."""
    if not Path(path).is_file():
        raise ValueError(f"{key}={path}: no such file; make it with `python -m recipe.{verb}`")
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{key}={path} is no parquet file ({error}); see data/README.md") from None


def check_rows(key: str, path: str) -> list[dict[str, Any]]:
    """Read a parquet of prompts; return its rows.

    Raises:
        ValueError: if the file is missing, is no parquet, lacks a column or holds an empty prompt.
    """
    table = read_table(key, path, "create_data")
    missing = [column for column in REQUIRED_COLUMNS if column not in table.column_names]
    if missing:
        raise ValueError(f"{key}={path} has no column {', '.join(missing)}; see data/README.md for the columns")
    rows = table.to_pylist()
    if not rows:
        raise ValueError(f"{key}={path} holds no rows")
    for number, row in enumerate(rows):
        for column in ("prompt", "teacher_messages"):
            messages = row[column]
            if not messages or not all((message.get("content") or "").strip() for message in messages):
                raise ValueError(f"{key}={path} row {number}: {column} is empty")
    return rows
