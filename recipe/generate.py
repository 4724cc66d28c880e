"""Sample a model's answers, token by token: the first half of an on-policy step.

    # on a CPU: the tiny pair
    python -m recipe.generate model=outputs/demo/models/base data=rows.parquet engine.dtype=float32
    # on a GPU, four samples a row, with the prompt
    python -m recipe.generate model=Qwen/Qwen3-4B-Instruct-2507 data=rows.parquet n=4 view=teacher

Writes a row a sample: the data's columns and `row`, `sample`, `response`, `response_ids`,
`rollout_logprobs` (nats), `finish_reason`, `truncated`. Interrupted, the same command goes on;
complete, it changes nothing. The defaults are those of training: the model's own distribution.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_ext.checks.check import GENERATE
from verl_ext.checks.context import Context
from verl_ext.checks.run import refuse, warnings
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of
from verl_ext.run.terminal import Terminal
from verl_ext.run.verb import Verb, as_typed, run_verb
from verl_ext.run.visible import print
from verl_ext.sampling.answers import VIEWS, AnswerRun, generate, summary
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
    """Answer the first `limit` rows only, >= 0; 0 for all."""
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
VERB = Verb(
    "generate",
    doc=str(__doc__),
    settings={"": GenerateConfig},
    more="More: docs/stages.md; verl_ext/sampling/types.py.",
    interrupted="interrupted; the same command goes on from the answers that it has",
)


def generate_answers(config: Any) -> None:
    settings = settings_of(config, GenerateConfig)
    check_writable("out", settings.out)
    run = AnswerRun(
        *(settings.model, settings.data, settings.view, settings.n, settings.limit),
        *(settings.sampling, settings.engine),
    )
    context = Context(
        models=lambda: {"model": run.model},
        rows=lambda: run.rows.to_pylist(),
        ranks_of_vllm={"engine.tp": settings.engine.tp},
    )
    for line in warnings(refuse(GENERATE, context)):
        print(line)
    answers, took = generate(run, Path(settings.out), settings.chunk, settings.overwrite)
    Terminal().print(summary(answers, took))
    print(f"{settings.out} written; next, what a teacher thinks of every token:")
    print(as_typed(f"  python -m recipe.score data={settings.out} teacher.model_path=TEACHER out=scored.parquet"))


def main() -> None:
    run_verb(VERB, generate_answers)


if __name__ == "__main__":
    main()
