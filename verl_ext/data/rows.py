"""Rows: their columns, the messages made of a sentence, and the checked reader of files of rows.

A row holds the sentence twice: in `prompt`, which is all the student ever sees, alone or inside a prompt of its own,
and in `teacher_messages` inside the prompt that is to be distilled. The answer is never part of a row's
messages: the student samples it. `data/README.md` documents every column.

The reader is that of training, the doctor, generate and evaluate. Taken is what has one meaning: several files, a
prompt that is a plain text, contents in text parts, right answers that are numbers or missing, rows without
`extra_info`. The rest is refused in one line with file and row (docs/data.md).
"""

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.data.conversations import MESSAGES
from verl_ext.data.messages import messages_of
from verl_ext.data.privileged import CONTEXT, filled
from verl_ext.data.sentences import Sentence, tinker_file
from verl_ext.data.text_files import Record, read_text, records, value_as_text

LABELS = ("ar", "de", "el", "en", "es", "fr", "hi", "ru", "tr", "ur", "vi", "zh", "ot")
"""The 13 answers of the language task; `ot` is every other language."""

PLACEHOLDER = "{text}"
"""Where a prompt takes the sentence. Every other brace of a prompt is plain text."""

LANGUAGE = "language_id"
"""In the column `data_source`: the language task, whose answers are LABELS."""

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
    raise ValueError(f"the installed tinker-cookbook has no {name}; install tinker-cookbook==0.6.1")


def read_prompt(key: str, name: str, shipped: Path) -> str:
    """A prompt template with {text}: `tinker`, `none`, a file of the folder `shipped` (`short`), or a path.

    Raises:
        FileNotFoundError, ValueError: naming `key`, the setting that asked for it.
    """
    if name == "none":
        return PLACEHOLDER
    if name == "tinker":
        template = tinker_prompt()
    else:
        named = {path.stem: path for path in shipped.glob("*.txt")}
        path = named.get(name, Path(name))
        if not path.is_file():
            raise FileNotFoundError(
                f"{key}={name}: expected {', '.join(sorted(named))}, tinker, none, or the path of a text file"
            )
        template = read_text(path).removesuffix("\n")
    if not template.strip():
        raise ValueError(f"{key}={name}: the prompt is empty; write it, with {PLACEHOLDER} where the sentence goes")
    if PLACEHOLDER not in template:
        raise ValueError(f"{key}={name}: the prompt has no {PLACEHOLDER} where the sentence goes; add it")
    return template


def make_row(
    sentence: Sentence,
    template: str,
    split_name: str,
    data_source: str,
    student_template: str = PLACEHOLDER,
    system: str = "",
) -> dict[str, Any]:
    """One parquet row, in verl's columns plus `teacher_messages`, which begin with `system` where there is one."""
    before = [{"role": "system", "content": system}] if system else []
    fields = {PLACEHOLDER: sentence.text} | ({CONTEXT: sentence.context} if sentence.context else {})
    return {
        "prompt": [{"role": "user", "content": student_template.replace(PLACEHOLDER, sentence.text)}],
        "teacher_messages": [*before, {"role": "user", "content": filled(template, fields)}],
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


MOST_LABELS = 100
"""Right answers up to which they are a set of labels; more are answers of their own, each to its question."""


def label_set_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All labels of a task: the right answers of its rows, sorted; LABELS where the rows are of the language task.

    Empty where none are known, or more than MOST_LABELS.
    """
    known = known_labels(rows)
    if any(row["data_source"] == LANGUAGE for row in rows) and set(known) <= set(LABELS):
        return list(LABELS)
    return known if len(known) <= MOST_LABELS else []


def known_labels(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The right answers of rows, sorted, without those of problems."""
    return sorted({row["reward_model"]["ground_truth"] for row in rows if row["data_source"] != MATH} - {"", None})


def without_rows(label_set: Sequence[str], labels: Iterable[str]) -> list[str]:
    """The labels of the set that no row has."""
    seen = set(labels)
    return [label for label in label_set if label not in seen]


REQUIRED = ("prompt", "teacher_messages", "data_source")
SUFFIXES = (".parquet", ".jsonl", ".json")
MEDIA = ("images", "videos", "audios")


def read_table(key: str, path: str, verb: str) -> pa.Table:
    """A parquet file that `python -m recipe.<verb>` makes. ValueError naming `key` if it is missing or none."""
    if not Path(path).is_file():
        raise ValueError(f"{key}={path}: no such file; make it with `python -m recipe.{verb}`")
    try:
        return pq.ParquetFile(path).read()  # read_table imports pandas
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}={path} is no parquet file ({error}); make it again (data/README.md)") from None


def check_rows(key: str, files: str | Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one file or of several, all with the same columns.

    `prompt` and `teacher_messages` are lists of {role, content}; `reward_model.ground_truth` is a text, "" where it is
    not known; `extra_info` has an `index` that no other row has, a `language`, "" where there is none, and a
    `place`, file and row.

    Raises:
        ValueError: naming `key`, the file and the row.
    """
    paths = [files] if isinstance(files, str) else list(files)
    if not paths:
        raise ValueError(f"{key}=[] names no file")
    rows = [row for path in paths for row in _rows_of(key, str(path))]
    numbers = [row["extra_info"].get("index") for row in rows]
    ours = all(type(number) is int for number in numbers) and len(set(numbers)) == len(numbers)
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        dict.fromkeys(names) | row | {"extra_info": row["extra_info"] | ({} if ours else {"index": number})}
        for number, row in enumerate(rows)
    ]


def _rows_of(key: str, path: str) -> list[dict[str, Any]]:
    if not Path(path).is_file():
        raise ValueError(f"{key}={path}: no such file; make it with `python -m recipe.create_data`")
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{key}={path}: {advice(path, ())}")
    try:
        found = records(Path(path))
    except ValueError as error:
        raise ValueError(f"{key}={error}; docs/data.md says what is expected") from None
    if not found:
        raise ValueError(f"{key}={path} holds no rows; give a file that does")
    columns = {name for record in found for name in record.values}
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(f"{key}={path} has no column {', '.join(missing)}; {advice(path, columns)}")
    if Path(path).suffix != ".parquet":
        found = [Record(place, {name: _plain(value) for name, value in values.items()}) for place, values in found]
    return [_row(key, record) for record in found]


def _row(key: str, record: Record) -> dict[str, Any]:
    place, values = f"{key}={record.place}", record.values
    if media := [name for name in MEDIA if values.get(name)]:
        raise ValueError(f"{place}: {media[0]} are not trained on; take rows of text alone")
    row = dict(values)
    for column in ("prompt", "teacher_messages"):
        row[column] = messages_of(f"{place}: {column}", values.get(column))
        if row[column][-1]["role"] == "assistant":
            raise ValueError(f"{place}: {column} ends with an answer; it must end with what is to be answered")
    row["data_source"] = value_as_text(f"{place}: data_source", values.get("data_source"))
    if not row["data_source"]:
        raise ValueError(f"{place}: data_source is missing; give the name of the task")
    given, info = (_mapping(place, name, row.get(name)) for name in ("reward_model", "extra_info"))
    truth = value_as_text(f"{place}: ground_truth", given.get("ground_truth"))
    row["reward_model"] = {"style": "rule"} | given | {"ground_truth": truth}
    language = value_as_text(f"{place}: language", info.get("language"))
    row["extra_info"] = info | {"language": language, "place": record.place}
    return row


def _mapping(place: str, name: str, value: Any) -> dict[str, Any]:
    if value is None or (isinstance(value, float) and value != value):
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: {name} is {str(value)[:60]}, expected an object")
    return dict(value)


def _plain(value: Any) -> Any:
    """Numbers of JSON as they usually are, in columns that we only pass on."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: one if name == "ground_truth" else _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def advice(path: str, columns: Collection[str]) -> str:
    """What a file seems to be that holds no rows, and what makes rows of it."""
    verb = "python -m recipe.create_data"
    if "conversations" in columns:
        return f"it is in ShareGPT's form; `{verb} --from sharegpt {path}` makes rows of it"
    if "messages" in columns:
        return f"it holds chats; `{verb} --from openai {path}` makes rows of them (SFT reads them as they are)"
    if {"chosen", "rejected"} & set(columns):
        return "it holds pairs of answers, and the student samples its own; give the prompts alone"
    if "instruction" in columns:
        return "it is in Alpaca's form, which has no one prompt; write instruction and input as one text, one a line"
    if "prompt" in columns:
        return f"`{verb} --from verl {path}` adds what the teacher sees"
    if "text" in columns or Path(path).suffix in (".txt", ".csv", ".tsv"):
        return f"it holds sentences; `{verb} source=file sentences={path} prompt=FILE` makes rows of them"
    return "docs/data.md has the columns, and what is converted"
