"""Special tokens that stand in a user's text: they are plain text, in every command alike.

`<|im_end|>` in a sentence is six characters and two bars, and ends no turn. A chat template cannot tell the two apart;
here the ones of the text are hidden from the tokenizer until the template has set its own.
"""

import copy
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

PRIVATE_USE = range(0xE000, 0xF8FF)
LOCK = threading.Lock()


@lru_cache(maxsize=16)
def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """A pattern that finds the special tokens of a tokenizer in a text; one that finds nothing where it has none."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")


def written_in(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The special tokens that the contents of messages hold as text."""
    pattern = special_tokens(tokenizer)
    return [token for message in messages for token in pattern.findall(_content(message))]


def render_plain(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], apply_template: Callable[[Sequence[Mapping[str, Any]]], str]
) -> list[int]:
    """Token ids of a conversation whose contents hold special tokens as text.

    `apply_template` renders messages as text.

    Raises:
        ValueError: if this tokenizer does not encode a text in parts as it encodes the whole.
    """
    pattern = special_tokens(tokenizer)
    mark = next(chr(code) for code in PRIVATE_USE if not any(chr(code) in _content(one) for one in messages))
    names = sorted(set(written_in(tokenizer, messages)))
    hidden = [
        {**one, "content": pattern.sub(lambda found: f"{mark}{names.index(found[0])}{mark}", _content(one))}
        for one in messages
    ]
    text = apply_template(hidden)
    without = re.sub(f"{mark}\\d+{mark}", " ", text)
    with LOCK:
        own = _own(tokenizer)
        if _encode(own, without, pattern) != own.encode(without, add_special_tokens=False):
            raise ValueError(
                f"a text holds {names[0]} as text, which this tokenizer has no plain form for; take it out of the data"
            )
        return _encode(own, text, pattern, lambda part: re.sub(f"{mark}(\\d+){mark}", lambda m: names[int(m[1])], part))


@lru_cache(maxsize=4)
def _own(tokenizer: Any) -> Any:
    """A copy that no other thread encodes with: what is plain is a state of the tokenizer while it encodes."""
    return copy.deepcopy(tokenizer)


def _encode(
    tokenizer: Any, text: str, pattern: re.Pattern[str], restore: Callable[[str], str] = lambda part: part
) -> list[int]:
    """The special tokens of `text` as they are, what is between them as plain text."""
    ids: list[int] = []
    end = 0
    for match in [*pattern.finditer(text), None]:
        part = restore(text[end : match.start() if match else len(text)])
        if part:
            ids += tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
        if match:
            ids.append(tokenizer.convert_tokens_to_ids(match[0]))
            end = match.end()
    return ids


def _content(message: Mapping[str, Any]) -> str:
    """A message's text; parts that are no text are for the reader of the rows to refuse."""
    content = message.get("content")
    return content if isinstance(content, str) else ""
