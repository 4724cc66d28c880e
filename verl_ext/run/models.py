"""Models and tokenizers by folder or hub name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def check_model(key: str, path: str) -> None:
    """`path` is a model folder, or looks like a hub name (`owner/name`)."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}={path} is no model: the folder has no config.json")
        if not list(folder.glob("*.safetensors")) and not list(folder.glob("*.bin")):
            raise ValueError(f"{key}={path} is no model: the folder has no weights (*.safetensors)")
    elif path.count("/") != 1 or path.startswith((".", "/", "outputs/")):
        raise ValueError(f"{key}={path}: no such folder; `make demo` builds a tiny model, or name one from the hub")


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a model folder or hub name, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path)


def max_positions(path: str) -> int | None:
    """Longest context of a model in tokens, as its configuration says; None where it says none."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).get_text_config().to_dict().get("max_position_embeddings")


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], template_kwargs: Mapping[str, Any]) -> list[int]:
    """The token ids of a conversation up to where the model's answer begins.

    `template_kwargs` go to the chat template, e.g. `enable_thinking`.

    Raises:
        ValueError: if the template refuses the conversation.
    """
    return _apply_template(tokenizer, messages, template_kwargs, tokenize=True, return_dict=False)


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]) -> str:
    """The text of what `render_chat` gives the ids. Raises as it does."""
    return _apply_template(tokenizer, messages, template_kwargs, tokenize=False)


def _apply_template(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any], **how: bool
) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, **how, **template_kwargs)
    except (TemplateError, TypeError) as error:  # what templates raise themselves, and where they add unlike things
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ValueError(
            f"the chat template refuses a conversation of {roles} ({str(error).splitlines()[0]}); use roles and an "
            "order that it knows, or give the model's folder another chat_template.jinja"
        ) from error
