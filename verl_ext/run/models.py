"""Models and tokenizers by folder or hub name."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from verl_ext.run.model_files import check_files, lacking_weights, own_words
from verl_ext.run.plain_text import render_plain, written_in
from verl_ext.run.without_torch import defer_gguf

HUB_WAIT_S = 8.0
"""Seconds that the hub has to answer; a name server alone can take longer."""


def check_model(key: str, path: str, *, offline: bool = False) -> None:
    """`path` is a model folder, or the name (`owner/name`) of one that is in the hub's cache or on the hub.

    Args:
        key: the setting, for error messages.
        path: folder or hub name.
        offline: whoever loads it will not ask the hub, as with HF_HUB_OFFLINE.

    Raises:
        ValueError: naming `key` and the fix, within HUB_WAIT_S.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}={path} is no model: the folder has no config.json; give one that is whole")
        check_files(key, folder)
    elif not is_hub_name(path):
        raise ValueError(f"{key}={path}: no such folder; `make demo` builds a tiny model, or name one from the hub")
    elif not is_cached(path) and (problem := problem_with_hub(path, offline)):
        raise ValueError(f"{key}={path}: no such folder: {problem}")


def is_hub_name(path: str) -> bool:
    """The hub could have a model of this name, `owner/name`; a folder may be called so too."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if path.count("/") != 1 or path.startswith((".", "/", "outputs/")):
        return False
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def is_cached(name: str) -> bool:
    """The hub's cache on this machine holds configuration and weights of the model."""
    folder = Path(cached(name))
    return folder != Path(name) and not lacking_weights(folder)


def cached(path: str) -> str:
    """The folder of a hub name in the hub's cache; `path` itself where there is none, and for a folder."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json") if is_hub_name(path) and not Path(path).is_dir() else None
    return str(Path(found).parent) if isinstance(found, str) else path


def problem_with_hub(name: str, offline: bool) -> str:
    """Why the hub would not hand out a model that is not in the cache, and the fix; "" where it would."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    fetch = f"run `hf download {name}` where there is a network, or give a folder"
    if offline or constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE=1 (platform=cpu sets it) keeps the hub from being asked"
        return f"its files are not in the hub's cache, and {why}; {fetch}"
    error = asked_hub(name, "config.json")
    if error is None:
        return _without_safetensors(name)
    if isinstance(error, GatedRepoError):
        return f"the hub wants its terms accepted; do so at {constants.ENDPOINT}/{name}, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub knows no such model; correct the name, or `hf auth login` for a private one"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"its files are not in the hub's cache, and the hub cannot be asked ({reason}); {fetch}"


def _without_safetensors(name: str) -> str:
    """That a model of the hub has its weights as pickles alone, and the fix."""
    from huggingface_hub.errors import EntryNotFoundError

    for file in ("model.safetensors", "model.safetensors.index.json"):
        if not isinstance(asked_hub(name, file), EntryNotFoundError):
            return ""
    return "it has no weights in safetensors, and a pickle runs code when it is loaded; name a model that has"


def asked_hub(name: str, file: str, repo_type: str = "model") -> Exception | None:
    """What goes wrong with a look at a file on the hub. In a thread: nothing bounds a name server."""
    from httpx import HTTPError
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, file, repo_type=repo_type), timeout=HUB_WAIT_S)
            answer.append(None)
        except (HfHubHTTPError, HTTPError, OSError) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_WAIT_S)
    return answer[0] if answer else TimeoutError(f"no answer in {HUB_WAIT_S:.0f} s")


def read_config(key: str, path: str, *, trust_remote_code: bool = False) -> Any:
    """A model's configuration, as transformers has it. ValueError naming `key` if there is none."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{key}={path}: its config.json cannot be read ({first}); give a model that it knows"
        ) from None


def may_know(model_type: str) -> bool:
    """Transformers could have a configuration of this type; asked without AutoConfig, which imports torch."""
    import transformers
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    folder = Path(transformers.__path__[0]) / "models" / model_type.replace("-", "_")  # `gpt-sw3` is not in the list
    return model_type in CONFIG_MAPPING_NAMES or folder.is_dir()


def context_length(key: str, path: str, *, trust_remote_code: bool = False) -> int | None:
    """Tokens that a model reads at once, by its configuration as engines read it; None where that names no limit."""
    content = own_words(key, path)
    own, rope = content.get("max_position_embeddings"), content.get("rope_parameters", {}) or {}
    if (
        type(own) is int
        and rope.get("rope_type", "default") == "default"
        and not {"text_config", "rope_scaling"} & set(content)
    ):
        return own
    config = read_config(key, path, trust_remote_code=trust_remote_code).get_text_config()
    if not hasattr(config, "max_position_embeddings"):
        return None
    rope = config.to_dict().get("rope_parameters") or {}
    stretched = rope.get("rope_type") in ("linear", "dynamic") and "original_max_position_embeddings" not in rope
    return int(config.max_position_embeddings * (rope["factor"] if stretched else 1))


def end_tokens(key: str, path: str) -> set[int]:
    """Ids that end an answer for the model itself: engines stop at them, beside the tokenizer's own; may be empty."""
    ids = (own_words(key, path) | own_words(key, path, "generation_config.json")).get("eos_token_id")
    if ids is None:
        ids = _end_tokens_by_transformers(key, path)
    return {ids} if isinstance(ids, int) else set(ids or ())


def _end_tokens_by_transformers(key: str, path: str) -> Any:
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # it has no generation_config.json
        ids = None
    return read_config(key, path).get_text_config().eos_token_id if ids is None else ids


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a model folder or hub name, with its chat template. ValueError if there is none to read."""
    defer_gguf()
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(path)
    except Exception as error:  # narrowed at once: what is not a broken file's is raised on
        # A broken file makes `tokenizers` raise that very class, and transformers one of these; the rest is a fault.
        if type(error) is not Exception and not isinstance(error, OSError | ValueError | LookupError | TypeError):
            raise
        raise ValueError(str(error).strip().partition("\n")[0]) from error


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], template_kwargs: Mapping[str, Any]) -> list[int]:
    """The token ids of a conversation up to where the model's answer begins.

    `template_kwargs` go to the chat template, e.g. `enable_thinking`. Special tokens that a content holds are plain
    text (`verl_ext.run.plain_text`).

    Raises:
        ValueError: if the template refuses the conversation.
    """
    if written_in(tokenizer, messages):
        template = partial(_apply_template, tokenizer, template_kwargs=template_kwargs, tokenize=False)
        return render_plain(tokenizer, messages, template)
    return _apply_template(tokenizer, messages, template_kwargs, tokenize=True, return_dict=False)


def chat_text(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any],
    *,
    answered: bool = False,
) -> str:
    """The text of what `render_chat` gives the ids; `answered`: of a conversation that ends with an answer.

    Raises as `render_chat` does.
    """
    how = {"add_generation_prompt": False} if answered else {}
    return _apply_template(tokenizer, messages, template_kwargs, tokenize=False, **how)


def _apply_template(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any], **how: bool
) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), **({"add_generation_prompt": True} | how), **template_kwargs
        )
    except (TemplateError, TypeError) as error:  # what templates raise themselves, and where they add unlike things
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ValueError(
            f"the chat template refuses a conversation of {roles} ({str(error).splitlines()[0]}); use roles and an "
            "order that it knows, or give the model's folder another chat_template.jinja"
        ) from error
