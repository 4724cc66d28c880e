"""Do student and teacher mean the same by every token, and do they see what they should? No engine is needed.

A tokenizer is a fast tokenizer of transformers, with its chat template. The functions of a Context and a teacher's name
are the checks of `verl_ext.checks.registry`.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from verl_ext.checks.context import COLUMNS, Context, Rows
from verl_ext.checks.finding import FAIL, OK, WARN, Finding
from verl_ext.run.file_hashes import same_weights
from verl_ext.run.models import chat_text
from verl_ext.teacher.teachers import vocab_size_of

THINK_TOKENS = ("<think>", "</think>")
SHOWN = 160  # characters of a rendered prompt in the table
SHOWN_ROWS = 16
"""Rows of each teacher on which two different templates are compared."""


def tokenizers(context: Context, name: str) -> str:
    """The same vocabulary and the same special tokens."""
    student, teacher = context.student_tokenizer, context.teacher_tokenizer(name)
    if student is not teacher:
        check_same_tokenizer(student, teacher)
    return f"{len(student)} tokens and {len(student.special_tokens_map)} special tokens are the same"


def templates(context: Context, name: str) -> Finding:
    """The same chat template: a teacher's prompt is rendered with the student's."""
    own = [context.rows[number] for number in context.numbers_of(name)[:SHOWN_ROWS]]
    return check_templates(context.student_tokenizer, context.teacher_tokenizer(name), own, context.template_kwargs)


def think_tokens(context: Context, name: str) -> Finding:
    """`<think>` is one token to both sides or to none, and to whoever's template writes it."""
    return check_think_tokens(context.student_tokenizer, context.teacher_tokenizer(name))


def vocabulary(context: Context, name: str) -> Finding:
    """No id of data or student is outside an embedding."""
    teacher, numbers = context.teachers[name], context.numbers_of(name)
    if teacher.model_path is None:
        return Finding(OK, "not here: the server has its embedding")
    return check_vocabulary(
        student_tokens=len(context.student_tokenizer),
        teacher_tokens=len(context.teacher_tokenizer(name)),
        student_size=vocab_size_of(context.student[1], trust_remote_code=False),
        teacher_size=vocab_size_of(teacher.model_path, trust_remote_code=teacher.trust_remote_code),
        greatest_id=max((context.prompt_tokens[c][n].greatest for c in COLUMNS for n in numbers), default=-1),
    )


def prompts(context: Context, name: str) -> Finding | str:
    """The first row as each side sees it: there must be something to learn."""
    if not (numbers := context.numbers_of(name)):
        return "no row is this teacher's"
    shown = [context.student_tokenizer.decode(context.render(context.rows[numbers[0]], column)) for column in COLUMNS]
    path = context.teachers[name].model_path
    sides = [context.prompt_tokens[column] for column in COLUMNS]
    alike = sum(sides[0][number] == sides[1][number] for number in numbers)
    same = alike > 0 and path is not None and same_weights(context.student[1], path)
    return check_rendered(*shown, alike=alike, rows=len(numbers), same_weights=same)


def check_same_tokenizer(student: Any, teacher: Any) -> None:
    """Teacher and student must mean the same by every token id, or the reverse KL compares different events."""
    student_vocab, teacher_vocab = student.get_vocab(), teacher.get_vocab()
    if student_vocab != teacher_vocab:
        differing = [
            token
            for token in student_vocab.keys() | teacher_vocab.keys()
            if student_vocab.get(token) != teacher_vocab.get(token)
        ]
        token = sorted(differing)[0]
        raise ValueError(
            f"student.path and teacher.model_path have different tokenizers: {len(differing)} tokens differ, "
            f"first {token!r} (student id {student_vocab.get(token)}, teacher id {teacher_vocab.get(token)}); "
            "the teacher must share the student's vocabulary"
        )
    if student.special_tokens_map != teacher.special_tokens_map:
        raise ValueError(
            f"student.path and teacher.model_path have different special tokens: {student.special_tokens_map} against "
            f"{teacher.special_tokens_map}; make both tokenizer_config.json agree"
        )


def check_templates(student: Any, teacher: Any, rows: Rows, template_kwargs: Mapping[str, Any]) -> Finding:
    """The same chat template: training renders the teacher's prompt with the student's."""
    for side, key, tokenizer in (("student", "student.path", student), ("teacher", "teacher.model_path", teacher)):
        if not tokenizer.chat_template:
            return Finding(FAIL, f"the {side} has none", f"add chat_template.jinja to {key}'s folder")
    for number, row in enumerate(rows):
        for column in COLUMNS:
            left, right = (chat_text(t, row[column], template_kwargs) for t in (student, teacher))
            if left != right:
                line, student_line, teacher_line = first_difference(left, right)
                seen = f"row {number} {column}, line {line}: student {student_line!r}, teacher {teacher_line!r}"
                fix = (
                    "copy student.path's chat_template.jinja to teacher.model_path: the teacher's prompt is rendered "
                    "with it"
                )
                return Finding(FAIL, seen, fix, {"student": left, "teacher": right})
    if student.chat_template != teacher.chat_template:
        return Finding(WARN, f"two texts that render {len(rows)} rows alike", "compare the two, or use one")
    return Finding(OK, f"the same for both; {len(rows)} rows render alike")


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
    numbers = {"known": known}
    fix = "give both tokenizers <think> and </think> as one token each, or neither and a template without them"
    for token in THINK_TOKENS:
        sides = [side for side in known if token in known[side]]
        if len(sides) == 1:
            return Finding(WARN, f"{token} is one token for the {sides[0]} only", fix, numbers)
    for side, tokenizer in (("student", student), ("teacher", teacher)):
        template = tokenizer.chat_template or ""
        lacking = [token for token in THINK_TOKENS if token in template and token not in known[side]]
        if lacking:
            seen = f"the {side}'s template writes {', '.join(lacking)}, its vocabulary has no such token"
            return Finding(WARN, seen, fix, numbers)
    seen = f"{' and '.join(known['student'])} known to both" if known["student"] else "used by neither"
    return Finding(OK, seen, numbers=numbers)


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
        (student_tokens > student_size, "resize the embedding of student.path to len(tokenizer)"),
        (teacher_tokens > teacher_size, "resize the embedding of teacher.model_path to len(tokenizer)"),
        (
            greatest_id >= min(student_size, teacher_size),
            "data.train_files has ids that a model lacks: use its tokenizer",
        ),
        (
            student_tokens > teacher_size,
            "student.path can sample ids that the teacher lacks: use one family",
        ),
    ]
    for wrong, fix in problems:
        if wrong:
            return Finding(FAIL, seen, fix, numbers)
    return Finding(OK, seen, numbers=numbers)


def check_rendered(student_prompt: str, teacher_prompt: str, *, alike: int, rows: int, same_weights: bool) -> Finding:
    """The first row as each side sees it, special tokens visible. `alike`: the rows, of `rows`, whose prompts are."""
    seen = f"student {_shortened(student_prompt)}\nteacher {_shortened(teacher_prompt)}"
    numbers = {"student": student_prompt, "teacher": teacher_prompt, "alike": alike, "rows": rows}
    if alike and same_weights:
        seen = f"student and teacher are one model and see the same prompt in {alike} of {rows} rows\n{seen}"
        what = "there is nothing to distil" if alike == rows else "these rows teach nothing"
        return Finding(WARN, seen, f"{what}: give teacher_messages the prompt, or take another teacher", numbers)
    return Finding(OK, seen, numbers=numbers)


def _shortened(text: str) -> str:
    """Start and end of a prompt on one line."""
    shown = repr(text)
    if len(shown) <= SHOWN:
        return shown
    return f"{shown[: SHOWN // 2]} ... {shown[-SHOWN // 2 :]} ({len(text)} characters)"
