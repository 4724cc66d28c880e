"""Score sampled answers with a teacher, token by token: the other half of that step.

    # on a CPU: the tiny pair
    python -m recipe.score data=answers.parquet teacher.model_path=outputs/demo/models/base
    # on a GPU; by a server that runs
    python -m recipe.score data=answers.parquet teacher=fp8 teacher.model_path=MODEL
    python -m recipe.score data=answers.parquet teacher.mode=external 'teacher.urls=[http://host:30000]'

The teacher sees the column `teacher_messages`, whatever the model saw that answered. Writes the
answers with `teacher_logprobs` (nats, one a token) and `teacher_error`, nulls where there is no
score. With `teacher.store_path` no sample is scored twice. Status 1 where none was scored.
"""

import dataclasses
from dataclasses import dataclass, field

from verl_ext.checks.check import SCORE
from verl_ext.checks.context import COLUMNS, Context
from verl_ext.checks.run import refuse, warnings
from verl_ext.evaluation.disagreement import score_answers
from verl_ext.evaluation.disagreement_report import show, training_with, with_scores
from verl_ext.ledger import ledger
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of, within
from verl_ext.run.terminal import Terminal
from verl_ext.run.verb import Verb, as_typed, run_verb
from verl_ext.run.visible import print
from verl_ext.sampling.answers import Answers
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.keys import SCORING
from verl_ext.teacher.types import DEFAULT_TEACHER

from . import CONFIGS


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `python -m recipe.score`."""

    # The class, not an object: it has no default for model_path, and would be checked at once.
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig)  # pyright: ignore[reportAssignmentType]
    """Who scores (verl_ext/teacher/config.py)."""
    data: str = "???"
    """File of `recipe.generate`."""
    out: str = "scored.parquet"
    """File for the answers with their scores; a managed teacher's log is beside it."""
    model: str = ""
    """Folder or hub name of the model that answered, whose tokenizer and template are used; empty: as `data` says."""
    disagreements: int = 10
    """Tokens of the largest reverse KL that are shown, >= 0."""

    def __post_init__(self) -> None:
        within("disagreements", self.disagreements, 0, float("inf"))


register_verb("score", ScoreConfig, groups=("teacher",))
VERB = Verb(
    "score",
    doc=str(__doc__),
    settings={"": ScoreConfig},
    groups=(CONFIGS / "teacher",),
    keys=dict.fromkeys(["data", "out", "model", "disagreements", *(f"teacher.{name}" for name in SCORING)], ""),
    more="More: docs/stages.md, docs/teacher.md; every key of the teacher in verl_ext/teacher/config.py.",
    errors=(ValueError, RuntimeError, TimeoutError),
    interrupted="interrupted; with teacher.store_path the same command goes on from the scores that it has",
)


def score(config: ScoreConfig) -> None:
    """Score, write, print. Raises the errors of `VERB`, in one line that names the key."""
    out, answers = check_writable("out", config.out), Answers.read("data", config.data)
    model = config.model or answers.model
    context = Context(
        models=lambda: {"model": model},
        rows=answers.table.select(COLUMNS).to_pylist,
        teachers=lambda: {DEFAULT_TEACHER: config.teacher},
        template_kwargs=lambda: answers.sampling.template_kwargs,
    )
    for line in warnings(refuse(SCORE, context)):
        print(line)
    tokenizer = context.student_tokenizer
    # A server that runs need not have its files here: the vocabulary is the student's.
    teacher = dataclasses.replace(config.teacher, model_path=config.teacher.model_path or model)
    found = score_answers(answers, teacher, tokenizer, config.disagreements, out.with_suffix(".teacher.log"))
    dataclasses.replace(answers, table=with_scores(answers.table, found, config.teacher)).write(out)
    if found.spent is not None:
        ledger.append(out.with_name(ledger.FILE), found.spent)
    show(answers, found, config.teacher, tokenizer, Terminal())
    if not found.scored:
        raise RuntimeError(f"none of the {len(found.errors)} samples was scored; read why in {out}")
    print(as_typed(f"{out} written; next:\n{training_with(model, teacher)}"))


def main() -> None:
    run_verb(VERB, lambda config: score(settings_of(config, ScoreConfig)))


if __name__ == "__main__":
    main()
