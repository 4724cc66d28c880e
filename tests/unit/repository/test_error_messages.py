"""Every error message of the verbs: it names what is wrong (a key, a file, a row), and says what to change.

The messages are read from the source, each with `{}` where a value goes.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
FILES = [
    file
    for package in ("verl_ext", "recipe")
    for file in sorted((ROOT / package).rglob("*.py"))
    if "sglang_cpu" not in file.parts
]
OURS = {
    *("ValueError", "RuntimeError", "TimeoutError", "FileNotFoundError", "StoreError", "SamplingError"),
    "UnknownModelError",
}
"""What a verb shows in one line. A TeacherError is why one sample has no score: `pool.py` adds the key to it."""
NAMED = re.compile(r"\{\}|[a-z]+[._][a-z_]+|[a-z_]+=|--[a-z]|[A-Z]{2,}_[A-Z_]+|`make \w+`")
"""A value (of a key, a place, a file), a key, an option, an environment variable or a command."""
FIX = re.compile(
    r"\b(?:takes|names|taken|needed|expected|must|needs?|set|give|lower|raise|take|use|make|export|unset|install|delete|correct|"
    r"leave|start|add|write|choose|pick|download|mend|shorten|convert|move|copy|name|cut|serve|resize|"
    r"keep|wait|evaluate|chmod|return|put|lacks?|replace|save|remove|accept|merge|compare|only|helps|"
    r"allowed|resume|restart|stop|enable|disable|change|join|split|log in|one of|go on|did you mean|again|read why|"
    r"store (?:it|the)|probe with)(?!\w)|\brun (?:`|\w+ with)",
    re.IGNORECASE,
)
"""Words with which a message says what would be right."""


class Message(NamedTuple):
    place: str
    text: str


def text_of(node: ast.expr) -> str | None:
    """A message with `{}` where a value goes; None where it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "{}") + (text_of(node.right) or "{}")
    return None


def messages(file: Path) -> Iterator[Message]:
    for node in ast.walk(ast.parse(file.read_text())):
        call = node.exc if isinstance(node, ast.Raise) else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in OURS:
            continue
        if call.args and (text := text_of(call.args[0])) is not None:
            yield Message(f"{file.relative_to(ROOT)}:{node.lineno}", text)


ALL = [message for file in FILES for message in messages(file)]
CARRIED = re.compile(r"[;:] \{\}\)?$")
"""The last words are another's: an error that is passed on with the place where it happened, or a fix."""


INNER = {
    "its content is {}, its end {}, its tokens {}": "served.py says whose answer it is, and asks again",
    "{} ended while the run was at {}": "what ended is the cause, and its log beside it",
    "{}={}": "the reader's own message, behind the key",
    "the assistant turn is empty, which is no answer to train on; take the row out": "behind file and row",
    "the texts are equal": "nobody asks where two equal texts differ",
    "it has no {}": "served.py says whose answer it is, and asks again",
    "no answer within {} s": "verifier.py says of which answer, and counts it as wrong",
    "{} {} for {} tokens": "samples.py makes all of them of one answer",
    "a teacher's prompt is empty, or an id is outside 0..{}": "the checks refuse both",
    "no {}": "entries.py's reader says of which line",
    "its prompt has {} tokens, {} of them cached": "served.py says whose answer it is, and asks again",
    "{}, in the weight sync of step {}, from which nothing is saved": "surviving.py's own words go before it",
    "nothing to draw: every value is 0": "gate.py does not ask an empty buffer",
    "the prompt is empty: the first response token has no log-prob without one": "rows without a prompt are refused",
    "{} mask values for {} response tokens": "agent_loop.py makes both of one answer",
    "top_k={} is outside 0..{}, the teacher's vocabulary": "method.top_k is checked against it before",
    "support_ids of shape {} for {} response tokens": "`in_students_support` gives them the response's length",
    "the teacher was stopped before it answered": "whoever stopped it knows",
}
"""Messages that no verb shows -> why. They need no fix."""


def test_they_are_many_and_read_as_they_are_written():
    texts = {text for _, text in ALL}
    assert len(ALL) > 300
    assert any(text.startswith("teacher.host={} lets other machines in: export {} (on every node") for text in texts)
    assert set(INNER) <= texts


@pytest.mark.parametrize("message", ALL, ids=lambda message: message.place)
def test_a_message_names_what_is_wrong_and_says_what_to_change(message):
    assert "\n" not in message.text, message.text
    if message.text not in INNER:
        assert NAMED.search(message.text), message.text
        assert FIX.search(message.text) or CARRIED.search(message.text), message.text


@pytest.mark.parametrize("bad", ["it failed", "data.train_files={} is bad", "set it", "an error\nin two lines"])
def test_the_rule_sees_what_it_should(bad):
    named, fixed = NAMED.search(bad), FIX.search(bad) or CARRIED.search(bad)
    assert not (named and fixed and "\n" not in bad)
