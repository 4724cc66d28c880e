"""From a teacher's answers to training rows: reading the label, and the two files that hold the rows. Pure functions.

A conversation is `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`: the sentence without the
prompt, and the label alone. Tinker keeps one a line as JSON, verl reads a parquet column `messages`. Ours may carry
two more columns: `index` (row in the source) and `label` (the right answer, which no model sees).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.data.labels import Reading, strict_label

PATTERNS = {
    "final_answer": re.compile(r"Final Answer: (\w+)"),
    "whole": re.compile(r"\A\s*(\S.*?)\s*\Z", re.DOTALL),
}
"""Where the label stands: after `Final Answer: `, as Tinker's prompt asks, or it is all of the answer."""

POLICIES = ("tinker", "strict", "exact")
"""`tinker`: the first match of PATTERNS, whatever it is. `strict`: what a person reads, one of the labels. `exact`: the
label character for character, white space around it aside."""
ROLES = ("system", "user", "assistant")

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS = {"messages": MESSAGES, "index": pa.int64(), "label": pa.string()}


def read_label(answer: str, extract: str, policy: str, label_set: Sequence[str]) -> Reading:
    """The label in an answer: the one place where any command reads one.

    Args:
        answer: what a model wrote.
        extract: where the label stands, a key of PATTERNS.
        policy: one of POLICIES. `tinker` reads no thinking out of the answer and does not look at `label_set`.
        label_set: all labels of the task; the label found is spelt as it is there.
    """
    if policy == "strict":
        return strict_label(answer, extract, label_set)
    if policy == "exact":
        label = (answer.rpartition("Final Answer:")[2] if extract == "final_answer" else answer).strip()
        return Reading(label, "") if label in label_set and label else _no_label(label)
    matches = PATTERNS[extract].findall(answer)
    return Reading(matches[0], "") if matches else Reading("", "no label found")


def _no_label(text: str) -> Reading:
    return Reading("", f"{text[:40]!r} is not one of the labels" if text else "no label found")


def conversation(row: dict[str, Any], label: str) -> dict[str, Any]:
    """The training row of one parquet row of `recipe.create_data`: its sentence, answered with `label` at once."""
    return {
        "messages": [*row["prompt"], {"role": "assistant", "content": label}],
        "index": row["extra_info"]["index"],
        "label": row["label"],
    }


def to_jsonl(conversations: Sequence[dict[str, Any]], columns: Sequence[str] = tuple(COLUMNS)) -> bytes:
    """One conversation a line, escaped as Tinker's file is. `columns=("messages",)` is exactly Tinker's format."""
    rows = ({key: row[key] for key in columns if key in row} for row in conversations)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def to_parquet(conversations: Sequence[dict[str, Any]]) -> bytes:
    """The same rows as parquet. All have the same columns."""
    if not conversations:
        raise ValueError("there is no conversation to write")
    columns = [key for key in COLUMNS if key in conversations[0]]
    for number, row in enumerate(conversations):
        if set(row) != set(columns):
            raise ValueError(f"row {number} has the columns {sorted(row)}, the first row {sorted(columns)}")
    schema = pa.schema([(key, COLUMNS[key]) for key in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(conversations), schema=schema), sink)
    return sink.getvalue().to_pybytes()


def from_jsonl(path: Path) -> list[dict[str, Any]]:
    """The conversations of a JSONL file, ours or Tinker's.

    Raises:
        ValueError: naming file and line, where a line is not one, or holds what parquet could not hold.
    """
    # Not splitlines(): it would also break at U+2028, which is legal inside a JSON string.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [_parse_conversation(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]


def from_parquet(path: Path) -> list[dict[str, Any]]:
    """The conversations of a parquet file, columns that we do not know left out."""
    table = pq.read_table(path)
    if "messages" not in table.column_names:
        raise ValueError(f"{path} has no column messages; it has {', '.join(table.column_names)}")
    return table.select([key for key in COLUMNS if key in table.column_names]).to_pylist()


def _parse_conversation(place: str, line: str) -> dict[str, Any]:
    """One line as a conversation of checked types."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise ValueError(f'{place}: expected an object whose "messages" is a list of at least one message')
    if unknown := sorted(set(row) - set(COLUMNS)):
        raise ValueError(f"{place}: unknown key {unknown[0]!r}, expected one of {', '.join(COLUMNS)}")
    for key, kind in (("index", int), ("label", str)):
        if key in row and type(row[key]) is not kind:  # not isinstance: true is an int to Python
            raise ValueError(f"{place}: {key} is {row[key]!r}, expected {kind.__name__}")
    for message in row["messages"]:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f'{place}: a message is an object of "role" and "content", found {message!r}')
        if message["role"] not in ROLES:
            raise ValueError(f"{place}: role is {message['role']!r}, expected one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"{place}: content is {message['content']!r}, expected a string")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: half of a surrogate pair, which no UTF-8 file can hold") from error
    return row
