"""Sampled answers as a file: one row a sample, the data's own columns beside the sampled response.

`R` response tokens. The file's metadata names the model and the sampling settings, so that scoring needs nothing else.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from verl_ext.data.rows import check_rows, read_table
from verl_ext.ledger.entries import GENERATE
from verl_ext.ledger.meter import written
from verl_ext.run.files import replacing, sha256
from verl_ext.run.outputs import is_made
from verl_ext.sampling.resume import Journal
from verl_ext.sampling.types import EngineConfig, Request, Sample, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler, hash_of_sampler

VIEWS = {"student": "prompt", "teacher": "teacher_messages"}
"""Whose prompt the model sees -> the column that holds it."""
METADATA = b"verl_opd.answers"
COLUMNS = {
    "row": pa.int64(),
    "sample": pa.int64(),
    "response": pa.string(),
    "response_ids": pa.list_(pa.int32()),
    "rollout_logprobs": pa.list_(pa.float32()),
    "finish_reason": pa.string(),
    "truncated": pa.bool_(),
}
"""What a sample adds to its row: number of the row, of the sample in the row; text without the end token; the token ids
with it; the sampler's own log-probs of them, nats; `stop` or `length`; whether it was cut off."""


@dataclass(frozen=True)
class AnswerRun:
    """One job: whose answers, to which rows, drawn how."""

    model: str
    """Folder or hub name."""
    data: str
    """Parquet of rows (data/README.md)."""
    view: str
    """One of VIEWS."""
    n: int
    """Samples a row, >= 1."""
    limit: int
    """The first `limit` rows only; 0 for all."""
    sampling: SamplingConfig
    engine: EngineConfig

    @cached_property
    def rows(self) -> pa.Table:
        """The rows to answer. ValueError if they cannot be."""
        table = pa.Table.from_pylist(check_rows("data", self.data)[: self.limit or None])
        if taken := [name for name in COLUMNS if name in table.column_names]:
            raise ValueError(f"data={self.data} has answers already (column {taken[0]}); give the rows they are of")
        return table

    def requests(self, rows: pa.Table) -> list[Request]:
        """All n of a row, then those of the next: sample s of row r is number `r * n + s`, which goes into its seed."""
        messages = [row for row in rows[VIEWS[self.view]].to_pylist() for _ in range(self.n)]
        return [Request(index, one) for index, one in enumerate(messages)]

    def settings(self) -> dict[str, Any]:
        """What decides the answers. As JSON has it, so that it equals what was read back from a file."""
        return {
            "model": hash_of_sampler(self.model),
            "data_sha256": sha256(Path(self.data)),
            "limit": self.limit,
            "view": self.view,
            "n": self.n,
            "sampling": asdict(self.sampling),
            "dtype": self.engine.dtype,
        }


@dataclass(frozen=True)
class Answers:
    """A file of answers."""

    table: pa.Table
    """The data's columns and COLUMNS, a row a sample."""
    model: str
    """The model that answered."""
    settings: dict[str, Any]
    """`AnswerRun.settings` of the run that wrote it."""

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(**self.settings["sampling"])

    @property
    def view(self) -> str:
        return self.settings["view"]

    def arrays(self, column: str) -> list[np.ndarray]:
        """The values of a list column, (R,) a sample."""
        return [row.values.to_numpy() for row in self.table[column]]

    def write(self, path: Path) -> None:
        """Write the file so that a reader never sees half of it."""
        described = json.dumps({"model": self.model, "settings": self.settings}).encode()
        table = self.table.replace_schema_metadata({**(self.table.schema.metadata or {}), METADATA: described})
        with replacing(path) as part:
            pq.write_table(table, part)

    @classmethod
    def read(cls, key: str, path: str) -> "Answers":
        """Read the file that `write` wrote. ValueError naming `key` if it is not one."""
        table = read_table(key, path, "generate")
        described = (table.schema.metadata or {}).get(METADATA)
        if described is None:
            raise ValueError(f"{key}={path} holds no answers of `python -m recipe.generate`; give another file")
        try:
            said = json.loads(described)
            return cls(table, model=str(said["model"]), settings=dict(said["settings"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"{key}={path} does not say how its answers were made; make it again") from None


def table_of(rows: pa.Table, samples: Sequence[Sample], n: int) -> pa.Table:
    """The rows, each `n` times, with `samples[r * n + s]` as sample s of row r."""
    numbers = np.arange(len(samples))
    columns = {
        "row": numbers // n,
        "sample": numbers % n,
        "response": [sample.text for sample in samples],
        "response_ids": [sample.ids for sample in samples],
        "rollout_logprobs": [sample.logprobs for sample in samples],
        "finish_reason": [sample.finish for sample in samples],
        "truncated": [sample.truncated for sample in samples],
    }
    table = rows.take(pa.array(numbers // n))
    for name, kind in COLUMNS.items():
        table = table.append_column(pa.field(name, kind), pa.array(columns[name], kind))
    return table


def generate(run: AnswerRun, out: Path, chunk: int, overwrite: bool) -> tuple[Answers, dict[str, float] | None]:
    """Sample what is missing and write `out`; the answers, and `ChunkProgress.took` (None: nothing was missing).

    `out.journal` holds what was sampled before an interruption, at most `chunk` samples less.

    Raises:
        ValueError: naming the key, if the rows are not there, or `out` holds other answers.
    """
    rows, settings = run.rows, run.settings()
    if out.exists():
        found = Answers.read("out", str(out))
        if is_made(f"out={out} holds answers", found.settings, settings, overwrite):
            return found, None
    journal = Journal(out.with_name(f"{out.name}.journal"), settings, overwrite, Sample)
    requests = run.requests(rows)
    took = None
    if missing := [request for request in requests if request.index not in journal.answers]:
        engine = VllmSampler(run.model, run.sampling, run.engine, missing)
        with engine as sampler, written(sampler.meter, GENERATE, out.parent):
            took = journal.fill(sampler.sample, missing, chunk, "answers")
    samples = [journal.answers[request.index] for request in requests]
    answers = Answers(table_of(rows, samples, run.n), run.model, settings)
    answers.write(out)
    journal.path.unlink()
    return answers, took


def summary(answers: Answers, took: dict[str, float] | None) -> Table:
    """What there is now, and how fast this command sampled its part."""
    lengths = [len(ids) for ids in answers.arrays("response_ids")]
    n = answers.settings["n"]
    table = Table("", "value", title="answers", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("model", Text(answers.model))
    table.add_row("view", answers.view)
    table.add_row("rows", f"{len(lengths) // n:,}")
    table.add_row("samples", f"{len(lengths):,}")
    table.add_row("  sampled now", f"{took['rows']:,.0f}" if took else "0: up to date")
    table.add_row("tokens/s", f"{took['tokens_per_second']:,.0f}" if took else "-")
    table.add_row("mean length (tokens)", f"{np.mean(lengths):.1f}")
    table.add_row("truncated share", f"{np.mean(answers.table['truncated'].to_pylist()):.3f}")
    return table
