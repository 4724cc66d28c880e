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
from verl_ext.data.messages import message_of
from verl_ext.data.text_files import Record, records, value_as_text

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
        raise ValueError("labels.policy: there is no conversation to write, every answer was rejected; change it")
    columns = [key for key in COLUMNS if key in conversations[0]]
    for number, row in enumerate(conversations):
        if set(row) != set(columns):
            raise ValueError(
                f"row {number} has the columns {sorted(row)}, the first row {sorted(columns)}; give all the same"
            )
    schema = pa.schema([(key, COLUMNS[key]) for key in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(conversations), schema=schema), sink)
    return sink.getvalue().to_pybytes()


def from_jsonl(path: Path) -> list[dict[str, Any]]:
    """The conversations of a JSONL file, ours or Tinker's.

    Raises:
        ValueError: naming file and line, where a line is not one, or holds what parquet could not hold.
    """
    return [_conversation(record, others=False) for record in records(path)]


def from_parquet(path: Path) -> list[dict[str, Any]]:
    """The conversations of a parquet file, columns that we do not know left out.

    Raises:
        ValueError: naming file and row, where it is none, or a row is not one.
    """
    return [_conversation(record, others=True) for record in records(path)]


def _conversation(record: Record, others: bool) -> dict[str, Any]:
    """One row of checked types. `others`: other columns than COLUMNS may be there, and are left out."""
    place, values = record
    if "conversations" in values:
        raise ValueError(
            f"{place}: in ShareGPT's form; convert it: `python -m recipe.create_data --from sharegpt FILE`"
        )
    if not isinstance(values.get("messages"), list) or not values["messages"]:
        found = ", ".join(values) or "none"
        raise ValueError(f'{place}: expected "messages", a list of at least one message; the columns are {found}')
    filled = sorted(key for key, value in values.items() if key not in COLUMNS and value is not None)
    if filled and not others:
        raise ValueError(f"{place}: unknown key {filled[0]!r}, expected one of {', '.join(COLUMNS)}; take it out")
    if type(values.get("index", 0)) is not int:  # not isinstance: true is an int to Python
        raise ValueError(f"{place}: index is {values['index']!r}, expected int")
    row: dict[str, Any] = {"messages": [message_of(place, message) for message in values["messages"]]}
    for message in row["messages"]:
        if message["role"] not in ROLES:
            raise ValueError(f"{place}: role is {message['role']!r}, expected one of {', '.join(ROLES)}")
    if "index" in values:
        row["index"] = values["index"]
    if "label" in values:
        row["label"] = value_as_text(f"{place}: label", values["label"])
    return row
