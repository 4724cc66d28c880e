"""Conversations on disk -> what verl's SFT trainer reads (`data.custom_cls`).

The loss mask of a row's n trained tokens is 1/n each. verl divides the masked sum by the sum of the mask over the
global batch, so its token mean becomes the mean over examples of each example's mean: Tinker's loss over the batch
size. (With a mask of ones a long answer would weigh more than a short one.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset

from verl_ext.data.conversations import COLUMNS, from_jsonl, from_parquet
from verl_ext.run.plain_text import written_in
from verl_ext.sft.renderer import Qwen3InstructRenderer, Rendered, get_renderer

TRUNCATIONS = ("right", "error")


@dataclass(frozen=True)
class DataReport:
    """What was read. All counts are of rows or tokens."""

    rows: int
    truncated: int
    """Rows that were cut to `data.max_length`."""
    endless: int
    """Those of them whose last trained token, the end of the answer, was cut off: there nothing teaches to stop."""
    tokens: int
    trained_tokens: int
    longest: int
    """Tokens of the longest row after truncation."""
    unused_columns: tuple[str, ...] = ()
    """Columns of the parquet files that are not read."""
    with_special_tokens: int = 0
    """Rows that hold special tokens of the tokenizer as text: they are plain text."""

    def as_line(self) -> str:
        lost = f", {self.endless} of them without the end of their answer" if self.endless else ""
        cut = f", {self.truncated} cut to data.max_length{lost}" if self.truncated else ""
        trained = f"{self.tokens} tokens, {self.trained_tokens} of them trained"
        special = f"; {self.with_special_tokens} hold special tokens, as plain text" if self.with_special_tokens else ""
        unused = f"; columns not used: {', '.join(self.unused_columns)}" if self.unused_columns else ""
        return f"{self.rows} rows, {trained}; the longest has {self.longest}{cut}{special}{unused}"


def read_conversations(key: str, files: str | Sequence[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """`(place, messages)` of each row, `place` naming file and row for error messages.

    Raises:
        ValueError: on a missing, unreadable or empty file, naming `key` and, for JSONL, the line.
    """
    found = []
    for name in [files] if isinstance(files, str) else files:
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"{key}={path}: no such file; make it with `python -m recipe.create_data`")
        if path.suffix not in (".jsonl", ".json", ".parquet"):
            raise ValueError(f"{key}={path}: expected a .jsonl, .json or .parquet file of conversations")
        try:
            rows = from_parquet(path) if path.suffix == ".parquet" else from_jsonl(path)
        except ValueError as error:
            raise ValueError(f"{key}={error}") from None
        unit, first = ("line", 1) if path.suffix == ".jsonl" else ("row", 0)
        found += [(f"{path} {unit} {number}", row["messages"]) for number, row in enumerate(rows, first)]
    if not found:
        raise ValueError(f"{key}={files} holds no rows; give a file that does")
    return found


def unused_columns(files: str | Sequence[str]) -> tuple[str, ...]:
    """The columns of parquet files that no conversation is made of."""
    paths = [Path(name) for name in ([files] if isinstance(files, str) else files)]
    names = {name for path in paths if path.suffix == ".parquet" for name in pq.read_schema(path).names}
    return tuple(sorted(names - set(COLUMNS)))


def render_row(renderer: Qwen3InstructRenderer, place: str, messages: Any, max_length: int, truncation: str):
    """One row rendered and cut to `max_length`; the tokens, what is trained; was it cut, and was its end cut off?

    Raises:
        ValueError: naming the row, if it cannot be rendered exactly or nothing of it is left to train.
    """
    try:
        rendered = renderer.render(messages or [])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    length = len(rendered.tokens)
    if length > max_length and truncation == "error":
        raise ValueError(f"{place}: {length} tokens; raise data.max_length={max_length}, or data.truncation=right")
    cut = Rendered(rendered.tokens[:max_length], rendered.trained[:max_length])
    if not sum(cut.trained):
        why = f"data.max_length={max_length} cuts all of them off" if sum(rendered.trained) else "no assistant turn"
        raise ValueError(f"{place}: no token is left to train on; take the row out ({why})")
    return cut, len(cut.tokens) < len(rendered.tokens), sum(cut.trained) < sum(rendered.trained)


class ConversationDataset(Dataset):
    """verl's custom dataset: JSONL or parquet of conversations, rendered when it is built."""

    def __init__(
        self,
        parquet_files: str | Sequence[str],
        tokenizer: Any,
        config: Mapping[str, Any],
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        """The names of the arguments are verl's. `config` is `config.data`; `max_samples` keeps the first rows."""
        del processor
        truncation = config["truncation"]
        if truncation not in TRUNCATIONS:
            raise ValueError(f"data.truncation={truncation} must be one of {', '.join(TRUNCATIONS)}")
        renderer = get_renderer(config["renderer"], tokenizer)
        rows = read_conversations("data.train_files", parquet_files)
        rows = rows[:max_samples] if max_samples > 0 else rows
        rendered = [render_row(renderer, place, messages, config["max_length"], truncation) for place, messages in rows]
        self.examples = [example for example, _, _ in rendered]
        lengths = [len(example.tokens) for example in self.examples]
        self.report = DataReport(
            rows=len(lengths),
            truncated=sum(cut for _, cut, _ in rendered),
            endless=sum(endless for _, _, endless in rendered),
            tokens=sum(lengths),
            trained_tokens=sum(sum(example.trained) for example in self.examples),
            longest=max(lengths),
            unused_columns=unused_columns(parquet_files),
            with_special_tokens=sum(bool(written_in(tokenizer, messages)) for _, messages in rows),
        )
        if self.report.endless == len(lengths):
            raise ValueError(
                f"data.max_length={config['max_length']} cuts the end of the answer off all {len(lengths)} rows: the "
                "student would not learn to stop; raise it"
            )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids` and `loss_mask`, each `(T,)`; T tokens of the row."""
        example = self.examples[index]
        trained_T = torch.tensor(example.trained, dtype=torch.float32)
        return {
            "input_ids": torch.tensor(example.tokens),
            "position_ids": torch.arange(len(example.tokens)),
            "loss_mask": trained_T / float(trained_T.sum()),
        }
