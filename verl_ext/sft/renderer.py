"""Conversations as tokens, exactly as tinker-cookbook 0.6.1 renders them. Needs a tokenizer and nothing else.

Exact means: the same token ids, and the same tokens trained. What cannot be rendered exactly is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_ext.run.models import render_chat

RENDERERS = ("qwen3_instruct",)
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens."""

    tokens: list[int]
    """Token ids of the whole conversation; no newline after the last `<|im_end|>`."""
    trained: list[int]
    """1 for a token that is trained, 0 for one that is read only; as long as `tokens`."""


class Qwen3InstructRenderer:
    """Qwen3-*-Instruct-2507: `<|im_start|>role\\ncontent<|im_end|>`, a newline between messages, no thinking.

    Each assistant's content and its `<|im_end|>` are trained. A content is encoded by itself and as plain text, so
    that a special token written in a sentence does not become one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end = self._single("<|im_end|>")
        self._single("<|im_start|>")

    def _single(self, token: str) -> int:
        ids = self._encode(token)
        if len(ids) != 1:
            raise ValueError(
                f"sft.renderer=qwen3_instruct: {token} is {len(ids)} tokens to this student's tokenizer, not 1; "
                "take a student of the Qwen3 family"
            )
        return ids[0]

    def _encode(self, text: str, *, plain: bool = False) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """A conversation with each assistant turn trained. Raises ValueError on a message it has no exact form for."""
        tokens: list[int] = []
        trained: list[int] = []
        for index, message in enumerate(messages):
            role, content = check_message(message)
            header = self._encode(("\n" if index else "") + f"<|im_start|>{role}\n")
            body = [*self._encode(content, plain=True), self.end]
            tokens += header + body
            trained += [0] * len(header) + [int(role == "assistant")] * len(body)
        return Rendered(tokens, trained)

    def generation_prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """What the model is given before it answers `messages`."""
        return self.render(messages).tokens + self._encode(("\n" if messages else "") + "<|im_start|>assistant\n")


def check_message(message: Mapping[str, Any]) -> tuple[str, str]:
    """Role and content of a message that has an exact form. Raises ValueError on any other."""
    if unknown := sorted(set(message) - {"role", "content"}):
        raise ValueError(f"a message has {', '.join(unknown)}; only role and content can be rendered exactly")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"role is {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"content of the {role} turn is {type(content).__name__}; only text can be rendered exactly")
    if role == "assistant" and not content.strip():
        raise ValueError("the assistant turn is empty, which is no answer to train on; take the row out")
    return role, content


def get_renderer(name: str, tokenizer: Any) -> Qwen3InstructRenderer:
    """The renderer of that name. Raises ValueError for one that is not known to be exact."""
    if name not in RENDERERS:
        raise ValueError(
            f"sft.renderer={name}: not one that is exact here; take {' or '.join(RENDERERS)} "
            "and a Qwen3-*-Instruct-2507 student"
        )
    return Qwen3InstructRenderer(tokenizer)


def check_template(renderer: Qwen3InstructRenderer, messages: Sequence[Mapping[str, Any]]) -> None:
    """The student's own chat template asks with the very tokens that it is trained after.

    Evaluation and serving use the template; a default system prompt or a thinking block in it would be a prompt that
    the student never saw. Raises ValueError where they differ.
    """
    question = [dict(message) for message in messages if message["role"] != "assistant"][-1:]
    theirs = render_chat(renderer.tokenizer, question, {})
    ours = renderer.generation_prompt(question)
    if list(theirs) != ours:
        raise ValueError(
            "sft.renderer=qwen3_instruct: the student's chat template asks "
            f"{renderer.tokenizer.decode(theirs)[-120:]!r}, training would ask "
            f"{renderer.tokenizer.decode(ours)[-120:]!r}; take a Qwen3-*-Instruct-2507 student"
        )
