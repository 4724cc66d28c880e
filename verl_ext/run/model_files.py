"""The files of a model folder, looked at without loading a model: is each whole, and of the form that it must have?"""

import json
import re
from pathlib import Path
from typing import Any

from verl_ext.run.files import reason_of

AGAIN = "download the model again, or mend the file"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""Pickles that trainers leave beside weights, and nobody loads with them."""
LONGEST_NAME = 200
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Tags that transformers adds to Jinja; they change nothing of what is rendered."""


def check_files(key: str, folder: Path) -> None:
    """Refuse a model folder with a file that is cut off or cannot be parsed.

    Args:
        key: the setting, for error messages.
        folder: with config.json.

    Raises:
        ValueError: naming `key`, the file and the fix.
    """
    contents = {file.name: read_json(key, file) for file in sorted(folder.glob("*.json"))}
    if (pickled := pickled_weights(folder)) and not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"{key}={folder} has its weights in {pickled}, a pickle, which runs code when it is loaded; give one in "
            "safetensors, or, where you trust its maker, save it as one (transformers' save_pretrained)"
        )
    if lacking := lacking_weights(folder):
        raise ValueError(f"{key}={folder} is no model: the folder has no {lacking}; give one that is whole")
    for file in sorted(folder.glob("*.safetensors")):
        _check_weights(key, file)
    _check_template(key, folder, contents.get("tokenizer_config.json", {}).get("chat_template"))


def read_json(key: str, file: Path) -> dict[str, Any]:
    """A file of a model. ValueError naming `key`, file and line where it is no JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{key}: {file} is no JSON (line {error.lineno}: {error.msg}); {AGAIN}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{key}: {file} cannot be read ({error}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{key}: {file} holds no JSON object; {AGAIN}")
    return found


def own_words(key: str, path: str, name: str = "config.json") -> dict[str, Any]:
    """What a file of a model's folder says; empty where there is none, and for a name of the hub."""
    file = Path(path) / name
    return read_json(key, file) if file.is_file() else {}


def lacking_weights(folder: Path) -> str:
    """What is missing of a model's weights, as after half a download; "" for nothing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return next((name for name in _indexed(index) if not (folder / name).is_file()), "")
    return "" if list(folder.glob("*.safetensors")) else "weights (*.safetensors)"


def pickled_weights(folder: Path) -> str:
    """A file of weights that is a pickle; "" where there is none."""
    files = sorted(file.name for ending in PICKLES for file in folder.glob(f"*{ending}"))
    return next((name for name in files if name not in NO_WEIGHTS), "")


def _indexed(index: Path) -> list[str]:
    """The files that an index names. ValueError where it is none, or names one outside of its folder."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} is no index of weights; {AGAIN}") from None
    names = {str(name) for name in found}
    if outside := sorted(name for name in names if Path(name).name != name or len(name) > LONGEST_NAME):
        raise ValueError(f"{index} names {outside[0]}, which is not a file of its folder; {AGAIN}")
    return sorted(names)


def _check_weights(key: str, file: Path) -> None:
    """A .safetensors file: 8 bytes, the header's length; the header, JSON with each tensor's place; the tensors."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length <= size - 8 else b""
    try:
        places = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        needed = 8 + length + max((end for _, end in places), default=0)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{key}: {file} is no safetensors file, or cut off in its header; {AGAIN}") from None
    if needed != size:
        raise ValueError(f"{key}: {file} has {size:,} bytes, and {needed:,} by its header; {AGAIN}")


def _check_template(key: str, folder: Path, configured: Any) -> None:
    """The chat template is Jinja. `configured`: the one of tokenizer_config.json, a text or a list of named ones."""
    from jinja2 import Environment, TemplateSyntaxError

    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            sources = [file.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise ValueError(f"{key}: {file} is no text ({reason_of(error)}); {AGAIN}") from None
    else:
        file = folder / "tokenizer_config.json"
        named = configured if isinstance(configured, list) else [{"template": configured}]
        sources = [each["template"] for each in named if isinstance(each.get("template"), str)]
    syntax = Environment(extensions=["jinja2.ext.loopcontrols"])
    for source in sources:
        try:
            syntax.parse(_GENERATION.sub("", source))
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{key}: {file} is no Jinja template (its line {error.lineno}: {error.message}); {AGAIN}"
            ) from None
        except RecursionError:
            raise ValueError(f"{key}: {file} is nested too deep for a Jinja template; {AGAIN}") from None
