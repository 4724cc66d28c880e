"""Messages in the forms that people's files have, as one form: a list of {role, content}, all text.

Taken is what has one meaning. What has none, or several, is refused in one line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bing", "bard"), "assistant"),
    "system": "system",
}
"""Who speaks in ShareGPT's `from` -> the role."""

Messages = list[dict[str, str]]


def messages_of(place: str, value: Any) -> Messages:
    """A conversation as a list of messages: one given so, or a plain text, which is one user message.

    Raises:
        ValueError: naming `place`, where it is empty, or holds what is no text.
    """
    if isinstance(value, str) and value.lstrip().startswith("[{") and '"role"' in value:
        raise ValueError(f"{place} is a text that holds JSON; store the list of messages itself")
    given = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if given is None or (isinstance(given, Sequence) and not len(given)):
        raise ValueError(f"{place} is empty; write it, or take the row out")
    if not isinstance(given, Sequence) or not all(isinstance(message, dict) for message in given):
        raise ValueError(f"{place} is {str(value)[:60]}, expected a text or a list of messages")
    messages = [message_of(place, message) for message in given]
    if not all(message["content"].strip() for message in messages):
        raise ValueError(f"{place} is empty; write it, or take the row out")
    return messages


def message_of(place: str, message: Mapping[str, Any]) -> dict[str, str]:
    """Role and content of a message. Fields without a value (a null `tool_calls`) are none."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{place}: a message is {str(message)[:60]}, expected an object with role and content")
    if "from" in message and "value" in message:
        raise ValueError(
            f"{place} is in ShareGPT's form; convert it: `python -m recipe.create_data --from sharegpt FILE`"
        )
    others = sorted(key for key, value in message.items() if key not in ("role", "content") and not _is_missing(value))
    if others:
        raise ValueError(f"{place}: a message has {', '.join(others)}; only role and content can be used, take it out")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValueError(f"{place}: a message has the role {role!r}, expected a name such as user")
    return {"role": role, "content": text_of(place, role, message.get("content"))}


def text_of(place: str, role: str, content: Any) -> str:
    """A content: text, or a list of text parts, which follow each other as they are."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content and all(isinstance(part, dict) for part in content):
        for part in content:
            filled = sorted(
                key for key, value in part.items() if key not in ("type", "text") and not _is_missing(value)
            )
            if part.get("type") != "text" or not isinstance(part.get("text"), str) or filled:
                kind = ", ".join(filled) or part.get("type")
                raise ValueError(
                    f"{place}: the {role} message has a part that is no text ({kind}); only text is trained on"
                )
        return "".join(part["text"] for part in content)
    found = "missing" if content is None else f"{str(content)[:60]}, expected text"
    raise ValueError(f"{place}: the content of the {role} message is {found}; write it, or take the row out")


def from_sharegpt(place: str, turns: Any) -> Messages:
    """ShareGPT's `conversations`: {from, value} each. ValueError naming `place` for anything else."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ValueError(f'{place}: expected a list "conversations" of turns {{"from", "value"}}')
    messages = []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise ValueError(f"{place}: a turn is from {speaker!r}, expected one of {known}")
        if not isinstance(turn.get("value"), str):
            raise ValueError(f"{place}: the value of a turn is {str(turn.get('value'))[:40]}, expected text")
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": turn["value"]})
    return messages


def _is_missing(value: Any) -> bool:
    """None, NaN, or an empty text, list or object."""
    return value is None or value != value or (isinstance(value, str | list | dict) and not len(value))
