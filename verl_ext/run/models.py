"""Models and tokenizers by folder or hub name."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from verl_ext.run.plain_text import render_plain, written_in


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


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], template_kwargs: Mapping[str, Any]) -> list[int]:
    """The token ids of a conversation up to where the model's answer begins.

    `template_kwargs` go to the chat template, e.g. `enable_thinking`. Special tokens that a content holds are plain
    text (`verl_ext.run.plain_text`).
    """
    if written_in(tokenizer, messages):
        template = partial(tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False, **template_kwargs)
        return render_plain(tokenizer, messages, template)
    return tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
    )
