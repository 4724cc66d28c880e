"""Chats of other programs as rows: what the student is asked, and what the teacher sees beside it.

The system message is the prompt that is distilled: the teacher sees it, the student does not. A chat's last answer is
no part of a row, since the student samples its own; it is kept for SFT (`chats.jsonl`).
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.data.messages import Messages, from_sharegpt, messages_of
from verl_ext.data.sentences import TRANSLATION, Sentence
from verl_ext.data.text_files import Record, records, value_as_text
from verl_ext.run.visible import visible

FORMS = ("openai", "sharegpt", "verl")
"""`openai`: `messages` of {role, content}; `sharegpt`: `conversations` of {from, value}; `verl`: `prompt`, a text or
messages, with `reward_model` and `data_source` where there are some."""
CHAT = "chat"
"""The task's name where the file has none."""
USED = {
    "openai": ("messages", "label"),
    "sharegpt": ("conversations", "system", "label"),
    "verl": ("prompt", "teacher_messages", "data_source", "reward_model"),
}
UNUSABLE = ("tools", "functions", "images", "videos", "audios", "chosen", "rejected")


@dataclass(frozen=True)
class Chat(Sentence):
    """One chat; `text` is what the student is asked, as one text."""

    prompt: Messages
    """What the student is asked."""
    teacher: Messages
    """What the teacher is."""
    answer: str
    """The last answer of the file, "" where it ends with a question."""
    data_source: str


@dataclass(frozen=True)
class Chats:
    """What was read."""

    chats: list[Chat]
    counts: dict[str, int]
    """Chats: `read`; `with_system`, whose teacher sees a system message; `with_answer`, whose last answer is kept for
    SFT and is no part of the row."""
    unused: list[str]
    """Columns that no row is made of."""


def load_chats(path: Path, form: str, system: str, data_source: str) -> Chats:
    """The chats of a file. `system`: a system message for the teacher of every row, "" for those of the file.

    Raises:
        ValueError: naming file and row, where there is nothing to ask or what cannot be trained on.
    """
    chats, unused, counts = [], Counter(), Counter({"read": 0, "with_system": 0, "with_answer": 0})
    for index, record in enumerate(records(path)):
        filled = {name: value for name, value in record.values.items() if value not in (None, [], {}, "")}
        if found := [name for name in UNUSABLE if name in filled]:
            raise ValueError(f"{record.place}: has {found[0]}, which is not trained on; take the row out")
        unused.update(name for name in filled if name not in USED[form])
        chat = _chat(form, record, index, system, data_source)
        counts.update({"read": 1, "with_system": chat.teacher[0]["role"] == "system", "with_answer": bool(chat.answer)})
        chats.append(chat)
    return Chats(chats, dict(counts), sorted(unused))


def _chat(form: str, record: Record, index: int, system: str, data_source: str) -> Chat:
    place, values = record
    if USED[form][0] not in values:
        others = [name for name in FORMS if USED[name][0] in values]
        fix = f"; take --from {others[0]}" if others else ""
        raise ValueError(f"{place}: has no {USED[form][0]}, as --from {form} needs; it has {', '.join(values)}{fix}")
    messages, answer = _asked(place, _messages(form, place, values))
    teacher, student = messages, [message for message in messages if message["role"] != "system"]
    label, source = value_as_text(f"{place}: label", values.get("label")), data_source
    if form == "verl":
        student = messages  # the file says what the student sees
        if values.get("teacher_messages"):
            teacher, _ = _asked(place, messages_of(f"{place}: teacher_messages", values["teacher_messages"]))
        reward = values.get("reward_model") or {}
        if not isinstance(reward, Mapping):
            raise ValueError(f"{place}: reward_model is {str(reward)[:60]}, expected an object")
        label = value_as_text(f"{place}: ground_truth", reward.get("ground_truth"))
        source = value_as_text(f"{place}: data_source", values.get("data_source")) or data_source
    if system:
        if teacher[0]["role"] == "system":
            raise ValueError(f"{place}: has a system message of its own; leave system out, or take the message out")
        teacher = [{"role": "system", "content": system}, *teacher]
    text = "\n".join(f"{message['role']}: {message['content']}" for message in student)
    return Chat(index, text, label, index, TRANSLATION, "", student, teacher, answer, source)


def _messages(form: str, place: str, values: Mapping[str, Any]) -> Messages:
    if form == "sharegpt":
        messages = from_sharegpt(place, values["conversations"])
        own = values.get("system")
        return [{"role": "system", "content": own}, *messages] if isinstance(own, str) and own.strip() else messages
    messages = messages_of(f"{place}: {USED[form][0]}", values[USED[form][0]])
    # OpenAI's newer name of the same message.
    return [message | {"role": "system"} if message["role"] == "developer" else message for message in messages]


def _asked(place: str, messages: Sequence[dict[str, str]]) -> tuple[Messages, str]:
    """A chat up to what is to be answered, and its last answer."""
    asked, answer = list(messages), ""
    if asked[-1]["role"] == "assistant":
        answer = asked.pop()["content"]
    roles = [message["role"] for message in asked]
    if others := sorted(set(roles) - {"system", "user", "assistant"}):
        raise ValueError(f"{place}: a message has the role {others[0]}; only system, user and assistant are trained on")
    if "system" in roles[1:]:
        raise ValueError(f"{place}: a system message stands inside the chat; it can only be the first")
    if not roles or roles[-1] != "user":
        raise ValueError(f"{place}: ends without a question; before the last answer there must be a user message")
    return asked, answer


def chat_row(chat: Chat, split_name: str) -> dict[str, Any]:
    """One parquet row, in the columns of `verl_ext.data.rows.make_row`."""
    return {
        "prompt": chat.prompt,
        "teacher_messages": chat.teacher,
        "label": chat.label,
        "data_source": chat.data_source,
        "reward_model": {"style": "rule", "ground_truth": chat.label},
        "extra_info": {
            "index": chat.index,
            "split": split_name,
            "group": chat.group,
            "slice": chat.slice,
            "language": chat.language,
        },
    }


def answered(chat: Chat) -> dict[str, Any]:
    """A conversation for SFT: what the student is asked, with the file's own answer."""
    return {"messages": [*chat.prompt, {"role": "assistant", "content": chat.answer}]}


def with_source(words: Sequence[str]) -> list[str]:
    """`--from FORM FILE` as the two overrides that it stands for. Exits where one of the two is missing."""
    given = [part for word in words for part in (word.split("=", 1) if word.startswith("--from=") else [word])]
    if "--from" not in given:
        return list(words)
    place = given.index("--from")
    form, file = [*given[place + 1 : place + 3], "", ""][:2]
    if form not in FORMS or not file or file.startswith("-"):
        said = f"--from {form}: expected --from {'|'.join(FORMS)} FILE; sentences are source=file sentences=FILE"
        sys.exit(visible(f"error: {said}"))
    escaped = file.replace("\\", "\\\\").replace('"', '\\"')
    return [*given[:place], f"source={form}", f'sentences="{escaped}"', *given[place + 3 :]]
