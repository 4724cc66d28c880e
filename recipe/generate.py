"""Sample a model's answers and keep them, token by token: the first half of an on-policy step, on its own.

    python -m recipe.generate model=MODEL data=rows.parquet out=answers.parquet n=4
    python -m recipe.generate model=MODEL data=rows.parquet out=prompted.parquet view=teacher   # with the prompt

Writes a row a sample: the data's columns and `row`, `sample`, `response`, `response_ids`, `rollout_logprobs` (nats),
`finish_reason`, `truncated`. Interrupted, the same command goes on; complete, it changes nothing. What `sampling.*` and
`engine.*` mean: verl_ext/sampling/types.py. The defaults here are those of training: the model's own distribution.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_ext.checks.check import GENERATE
from verl_ext.checks.context import Context
from verl_ext.checks.run import refuse
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of
from verl_ext.sampling.answers import VIEWS, AnswerRun, Answers, generate
from verl_ext.sampling.types import EngineConfig, SamplingConfig


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `python -m recipe.generate`."""

    model: str = "???"
    """Folder or hub name of the model that answers."""
    data: str = "???"
    """Parquet of rows (data/README.md)."""
    out: str = "answers.parquet"
    """File for the answers."""
    view: str = "student"
    """What the model sees: `student`, the column `prompt`; `teacher`, the column `teacher_messages`."""
    n: int = 1
    """Samples a row, >= 1."""
    limit: int = 0
    """Answer the first `limit` rows only; 0 for all."""
    chunk: int = 512
    """Samples that are drawn together and then kept, >= 1: the most that an interruption costs."""
    overwrite: bool = False
    """Replace answers that were sampled with other settings."""
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(temperature=1.0, max_tokens=1024, stop=[], enable_thinking=None)
    )
    """How answers are drawn. Sample s of row r has the seed `sampling.seed + r * n + s`."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How vLLM runs the model."""

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"view={self.view} must be one of {', '.join(VIEWS)}")
        for key, least in (("n", 1), ("limit", 0), ("chunk", 1)):
            if vars(self)[key] < least:
                raise ValueError(f"{key}={vars(self)[key]} must be >= {least}")


register_verb("generate", GenerateConfig)


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


@hydra.main(version_base=None, config_path=None, config_name="generate")
def main(config: Any) -> None:
    try:
        settings = settings_of(config, GenerateConfig)
        run = AnswerRun(
            *(settings.model, settings.data, settings.view, settings.n, settings.limit),
            *(settings.sampling, settings.engine),
        )
        context = Context(models=lambda: {"model": run.model}, rows=lambda: run.rows.to_pylist())
        refuse(GENERATE, context)
        answers, took = generate(run, Path(settings.out), settings.chunk, settings.overwrite)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the answers that it has")
    Console().print(summary(answers, took))
    print(f"{settings.out} written; next, what a teacher thinks of every token:")
    print(f"  python -m recipe.score data={settings.out} teacher.model_path=TEACHER out=scored.parquet")


if __name__ == "__main__":
    main()
