"""Do student and teacher mean the same by every token, and do they see what they should? No engine is needed.

A tokenizer is a fast tokenizer of transformers, with its chat template.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from verl_ext.checks.finding import FAIL, OK, WARN, Finding, checked
from verl_ext.checks.inputs import check_same_tokenizer
from verl_ext.run.models import render_chat

THINK_TOKENS = ("<think>", "</think>")
SHOWN = 160  # characters of a rendered prompt in the table
Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("prompt", "teacher_messages")


def check_tokenizers(student: Any, teacher: Any) -> Finding:
    """The same vocabulary and the same special tokens."""
    seen = f"{len(student)} tokens and {len(student.special_tokens_map)} special tokens are the same"
    return checked("tokenizer", seen, check_same_tokenizer, student, teacher)


def check_templates(student: Any, teacher: Any, rows: Rows, template_kwargs: Mapping[str, Any]) -> Finding:
    """The same chat template: training renders the teacher's prompt with the student's."""
    name = "chat template"
    for side, tokenizer in (("student", student), ("teacher", teacher)):
        if not tokenizer.chat_template:
            return Finding(name, FAIL, f"the {side} has none", f"add chat_template.jinja to the {side}'s folder")
    for number, row in enumerate(rows):
        for column in COLUMNS:
            left, right = (_text(t, row[column], template_kwargs) for t in (student, teacher))
            if left != right:
                line, student_line, teacher_line = first_difference(left, right)
                seen = f"row {number} {column}, line {line}: student {student_line!r}, teacher {teacher_line!r}"
                fix = (
                    "copy one chat_template.jinja to both folders: the teacher's prompt is rendered with the student's"
                )
                return Finding(name, FAIL, seen, fix, {"student": left, "teacher": right})
    if student.chat_template != teacher.chat_template:
        return Finding(name, WARN, f"two texts that render {len(rows)} rows alike", "compare the two, or use one")
    return Finding(name, OK, f"the same for both; {len(rows)} rows render alike")


def first_difference(left: str, right: str) -> tuple[int, str | None, str | None]:
    """Number (from 1) and content of the first line that differs; None past a text's end."""
    for number, lines in enumerate(zip_longest(left.split("\n"), right.split("\n")), 1):
        if lines[0] != lines[1]:
            return number, *lines
    raise ValueError("the texts are equal")


def check_think_tokens(student: Any, teacher: Any) -> Finding:
    """`<think>` and `</think>` are one token for both sides, or for none, and a template that writes them has them."""
    known = {
        side: [token for token in THINK_TOKENS if token in tokenizer.get_vocab()]
        for side, tokenizer in (("student", student), ("teacher", teacher))
    }
    name, numbers = "think tokens", {"known": known}
    fix = "give both tokenizers <think> and </think> as one token each, or neither and a template without them"
    for token in THINK_TOKENS:
        sides = [side for side in known if token in known[side]]
        if len(sides) == 1:
            return Finding(name, FAIL, f"{token} is one token for the {sides[0]} only", fix, numbers)
    for side, tokenizer in (("student", student), ("teacher", teacher)):
        template = tokenizer.chat_template or ""
        lacking = [token for token in THINK_TOKENS if token in template and token not in known[side]]
        if lacking:
            seen = f"the {side}'s template writes {', '.join(lacking)}, its vocabulary has no such token"
            return Finding(name, FAIL, seen, fix, numbers)
    seen = f"{' and '.join(known['student'])} known to both" if known["student"] else "used by neither"
    return Finding(name, OK, seen, numbers=numbers)


def check_vocabulary(
    *, student_tokens: int, teacher_tokens: int, student_size: int, teacher_size: int, greatest_id: int
) -> Finding:
    """No id that the data or the sampler can produce is outside the teacher's embedding: it would kill the server.

    `*_tokens` is `len(tokenizer)`, `*_size` is `config.vocab_size`, `greatest_id` that of all rendered prompts.
    """
    numbers = {
        "student_tokens": student_tokens,
        "teacher_tokens": teacher_tokens,
        "student_vocab_size": student_size,
        "teacher_vocab_size": teacher_size,
        "greatest_id": greatest_id,
    }
    seen = (
        f"tokenizers {student_tokens} and {teacher_tokens}, vocab_size student {student_size}, "
        f"teacher {teacher_size}, greatest id in the data {greatest_id}"
    )
    problems = [
        (student_tokens > student_size, "resize the student's embedding to len(tokenizer)"),
        (teacher_tokens > teacher_size, "resize the teacher's embedding to len(tokenizer)"),
        (greatest_id >= min(student_size, teacher_size), "the data has ids that a model lacks: use its own tokenizer"),
        (student_tokens > teacher_size, "the student can sample ids that the teacher lacks: use models of one family"),
    ]
    for wrong, fix in problems:
        if wrong:
            return Finding("vocabulary", FAIL, seen, fix, numbers)
    return Finding("vocabulary", OK, seen, numbers=numbers)


def render_rows(tokenizer: Any, rows: Rows, column: str, template_kwargs: Mapping[str, Any]) -> list[list[int]]:
    """Token ids of every row's messages up to where the answer begins."""
    return [render_chat(tokenizer, row[column], template_kwargs) for row in rows]


def check_rendered(student_prompt: str, teacher_prompt: str, *, same_weights: bool) -> Finding:
    """The first row as each side sees it, special tokens visible."""
    seen = f"student {_shortened(student_prompt)}\nteacher {_shortened(teacher_prompt)}"
    numbers = {"student": student_prompt, "teacher": teacher_prompt}
    if student_prompt == teacher_prompt and same_weights:
        fix = "equal prompts and weights leave nothing to learn: give teacher_messages the prompt, or another teacher"
        return Finding("prompts", WARN, seen, fix, numbers)
    return Finding("prompts", OK, seen, numbers=numbers)


def _text(tokenizer: Any, messages: Any, template_kwargs: Mapping[str, Any]) -> str:
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False, **template_kwargs)


def _shortened(text: str) -> str:
    """Start and end of a prompt on one line."""
    shown = repr(text)
    if len(shown) <= SHOWN:
        return shown
    return f"{shown[: SHOWN // 2]} ... {shown[-SHOWN // 2 :]} ({len(text)} characters)"
