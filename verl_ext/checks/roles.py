"""Does every message of the rows reach the model? A chat template may drop or refuse a role that it does not know."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_ext.checks.context import COLUMNS, Context
from verl_ext.run.models import chat_text


def roles(context: Context) -> str:
    """The template shows a message of every role that the rows have, in the orders that they have."""
    seen = set()
    for source, number, column, messages in _conversations(context):
        order = tuple(message["role"] for message in messages)
        if (column, order) in seen:
            continue
        seen.add((column, order))
        place = f"{source} row {number}, {column}"
        if lost := _lost_roles(context, place, messages):
            key, path = context.student
            raise ValueError(
                f"{place}: the chat template of {key}={path} leaves out what the {' and the '.join(lost)} says; "
                "use a role that it knows (system, user, assistant), or put the text into the user's message"
            )
    return ", ".join(sorted({role for _, order in seen for role in order}))


def _conversations(context: Context) -> Iterator[tuple[str, int, str, Sequence[Mapping[str, Any]]]]:
    """File, row number, column and messages of all that will be rendered."""
    files = {context.rows_key: context.rows} | ({"data.val_files": context.heldout} if context.config else {})
    for source, rows in files.items():
        for number, row in enumerate(rows):
            for column in COLUMNS:
                yield source, number, column, row[column]


def _lost_roles(context: Context, place: str, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Roles whose text is not in the rendered conversation. Each text is replaced by one word that occurs nowhere."""
    marked = [{**message, "content": f"message{number}mark"} for number, message in enumerate(messages)]
    try:
        text = chat_text(context.student_tokenizer, marked, context.template_kwargs)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return [message["role"] for message in marked if message["content"] not in text]
