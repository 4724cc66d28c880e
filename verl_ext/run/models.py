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


def read_config(key: str, path: str, *, trust_remote_code: bool = False) -> Any:
    """A model's configuration, as transformers has it. ValueError naming `key` if there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{key}={path}: its config.json cannot be read ({first}); give a model that it knows"
        ) from None


def context_length(key: str, path: str, *, trust_remote_code: bool = False) -> int | None:
    """Tokens that a model reads at once, by its configuration as engines read it; None where that names no limit."""
    config = read_config(key, path, trust_remote_code=trust_remote_code).get_text_config()
    if not hasattr(config, "max_position_embeddings"):
        return None
    rope = config.to_dict().get("rope_parameters") or {}
    stretched = rope.get("rope_type") in ("linear", "dynamic") and "original_max_position_embeddings" not in rope
    return int(config.max_position_embeddings * (rope["factor"] if stretched else 1))


def end_tokens(key: str, path: str) -> set[int]:
    """Ids that end an answer for the model itself: engines stop at them, beside the tokenizer's own; may be empty."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # it has no generation_config.json
        ids = None
    if ids is None:
        ids = read_config(key, path).get_text_config().eos_token_id
    return {ids} if isinstance(ids, int) else set(ids or ())


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a model folder or hub name, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path)


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], template_kwargs: Mapping[str, Any]) -> list[int]:
    """The token ids of a conversation up to where the model's answer begins.

    `template_kwargs` go to the chat template, e.g. `enable_thinking`.
    """
    return tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
    )
