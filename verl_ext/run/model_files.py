"""The files of a model folder, looked at without loading a model: is each whole, and of the form that it must have?"""

import json
import re
from pathlib import Path
from typing import Any

AGAIN = "download the model again, or mend the file"
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
    if lacking := lacking_weights(folder):
        raise ValueError(f"{key}={folder} is no model: the folder has no {lacking}")
    for file in sorted(folder.glob("*.safetensors")):
        _check_weights(key, file)
    _check_template(key, folder, contents.get("tokenizer_config.json", {}).get("chat_template"))


def read_json(key: str, file: Path) -> dict[str, Any]:
    """A file of a model. ValueError naming `key`, file and line where it is no JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{key}: {file} is no JSON (line {error.lineno}: {error.msg}); {AGAIN}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{key}: {file} cannot be read ({error}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{key}: {file} holds no JSON object; {AGAIN}")
    return found


def lacking_weights(folder: Path) -> str:
    """What is missing of a model's weights, as after half a download; "" for nothing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return next((name for name in sorted(files) if not (folder / name).is_file()), "")
    return "" if list(folder.glob("*.safetensors")) or list(folder.glob("*.bin")) else "weights (*.safetensors)"


def _check_weights(key: str, file: Path) -> None:
    """A .safetensors file: 8 bytes, the header's length; the header, JSON with each tensor's place; the tensors."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length <= size - 8 else b""
    try:
        places = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        needed = 8 + length + max((end for _, end in places), default=0)
    except (ValueError, AttributeError, TypeError, KeyError):
        raise ValueError(f"{key}: {file} is no safetensors file, or cut off in its header; {AGAIN}") from None
    if needed != size:
        raise ValueError(f"{key}: {file} has {size:,} bytes, and {needed:,} by its header; {AGAIN}")


def _check_template(key: str, folder: Path, configured: Any) -> None:
    """The chat template is Jinja. `configured`: the one of tokenizer_config.json, a text or a list of named ones."""
    from jinja2 import Environment, TemplateSyntaxError

    file = folder / "chat_template.jinja"
    if file.is_file():
        sources = [file.read_text(encoding="utf-8")]
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
