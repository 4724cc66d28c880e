"""What a scoring looks like: new columns in the file of answers, a summary, and the tokens that divide the two."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_ext.evaluation.disagreement import NEVER, Disagreement, Scoring, on_policy
from verl_ext.run.visible import print
from verl_ext.sampling.answers import VIEWS, Answers
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.types import Score

METADATA = b"verl_opd.teacher"
ASKED, BEFORE, AFTER = 40, 40, 20  # characters of the question, and of the answer on each side of a token


def with_scores(table: pa.Table, scoring: Scoring, teacher: TeacherConfig) -> pa.Table:
    """`table` with `teacher_logprobs` (nats, one a token) and `teacher_error`: exactly one of the two is null.

    The file's metadata says who scored.
    """
    logprobs = [outcome.logprobs if isinstance(outcome, Score) else None for outcome in scoring.outcomes]
    errors = [None if isinstance(outcome, Score) else str(outcome) for outcome in scoring.outcomes]
    columns = {
        "teacher_logprobs": pa.array(logprobs, pa.list_(pa.float32())),
        "teacher_error": pa.array(errors, pa.string()),
    }
    table = table.drop_columns([name for name in columns if name in table.column_names])  # of an earlier teacher
    for name, column in columns.items():
        table = table.append_column(name, column)
    described = {**(table.schema.metadata or {}), METADATA: json.dumps(asdict(teacher)).encode()}
    return table.replace_schema_metadata(described)


def summary(answers: Answers, scoring: Scoring, teacher: str) -> Table:
    """The numbers of a scoring."""
    table = Table("", "value", title="scores", title_justify="left")
    table.columns[1].justify = "right"
    scored, took = len(scoring.scored), scoring.took
    drawn = answers.sampling
    off = f"none: drawn at temperature {drawn.temperature:g}, top_p {drawn.top_p:g}, top_k {drawn.top_k}, not 1, 1, -1"
    kl = f"{scoring.teacher_kl:+.4g}" if on_policy(drawn) else off
    rows = {
        "answers of": f"{answers.model}, {answers.view} view",
        "teacher": teacher,
        "samples scored, unscored": f"{scored:,}, {len(scoring.errors):,}",
        "  from the store": f"{scoring.from_store:,}",
        "teacher tokens/s": f"{took['tokens_per_second']:,.0f}" if took["tokens"] else "-",
        "response tokens": f"{sum(len(rollout) for rollout, _ in scoring.scored):,}",
        "teacher_kl (nats/token)": kl,
        "mean teacher log-prob (nats)": f"{scoring.teacher_logprob:.4g}",
        f"tokens with teacher p < {math.exp(NEVER):g}": f"{scoring.never_share:.1%}",
    }
    for label, value in rows.items():
        table.add_row(label, Text(value))
    return table


def show(answers: Answers, scoring: Scoring, teacher: TeacherConfig, tokenizer: Any, console: Console) -> None:
    """Print the numbers, the tokens of largest disagreement, and the first reason of a missing score."""
    console.print(summary(answers, scoring, teacher.model_path or ", ".join(teacher.urls)))
    if scoring.disagreements:
        console.print(disagreement_table(answers, scoring.disagreements, tokenizer))
    if scoring.errors:
        print(f"{len(scoring.errors)} samples have no score, the first: {scoring.errors[0]}")


def disagreement_table(answers: Answers, found: Sequence[Disagreement], tokenizer: Any) -> Table:
    """Where student and teacher are furthest apart, each token in its text."""
    title = f"largest reverse KL: {len(found)} tokens, their probabilities, the teacher's choice"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for column in ("nats", "sample", "student", "teacher", "instead", "text"):
        table.add_column(column, overflow="fold", justify="left" if column in ("instead", "text") else "right")
    for one in found:
        row = answers.table.slice(one.index, 1).to_pylist()[0]
        table.add_row(
            f"{one.reverse_kl:.2f}",
            f"{row['row']}.{row['sample']}" + (f" x{one.times}" if one.times > 1 else ""),
            probability(one.rollout_logprob),
            probability(one.teacher_logprob),
            Text(choice(one, tokenizer)),
            in_context(row[VIEWS[answers.view]], row["response_ids"], one.position, tokenizer),
        )
    return table


def probability(logprob: float) -> str:
    p = math.exp(logprob)
    return f"{p:.3f}" if p >= 1e-3 else f"{p:.0e}"


def choice(one: Disagreement, tokenizer: Any) -> str:
    """The teacher's most likely token and its probability; `-` where it was not asked."""
    if one.teachers_id is None:
        return "-"
    return f"{shown(tokenizer, [one.teachers_id])} {probability(one.teachers_logprob)}"


def in_context(messages: Sequence[dict[str, str]], response_ids: Sequence[int], position: int, tokenizer: Any) -> Text:
    """End of the question, an arrow, the answer around the token, which stands in brackets."""
    question = messages[-1]["content"].replace("\n", "\\n")
    before, after = shown(tokenizer, response_ids[:position]), shown(tokenizer, response_ids[position + 1 :])
    return Text.assemble(
        ("" if len(question) <= ASKED else "...") + question[-ASKED:],
        " → ",
        ("" if len(before) <= BEFORE else "...") + before[-BEFORE:],
        (f"[{shown(tokenizer, response_ids[position : position + 1])}]", "bold red"),
        after[:AFTER] + ("" if len(after) <= AFTER else "..."),
    )


def shown(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text on one line, special ones included."""
    return tokenizer.decode(list(ids), skip_special_tokens=False).replace("\n", "\\n")


def training_with(student: str, teacher: TeacherConfig) -> str:
    """The command that trains the model which answered with the teacher that scored."""
    external = f"teacher.mode=external 'teacher.urls=[{','.join(teacher.urls)}]'"
    asked = external if teacher.mode == "external" else f"teacher.model_path={teacher.model_path}"
    return (
        f"  python -m recipe.on_policy_distillation student.path={student} {asked} \\\n"
        "      data.train_files=TRAIN.parquet data.val_files=HELDOUT.parquet"
    )
