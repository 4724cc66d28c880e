"""The models that can be planned for: a folder's configuration, or the numbers of a published one."""

import json
from pathlib import Path
from typing import Any

from verl_ext.run.model_shape import QWEN3, QWEN3_MOE, ModelShape, shape_from

PUBLISHED = Path(__file__).with_name("qwen3.json")
PLANNED = (QWEN3, QWEN3_MOE)
"""`model_type` of the models whose memory was measured (`benchmarks/plan_memory.py`)."""


class UnknownModelError(ValueError):
    """A model whose numbers the planner cannot find or does not understand."""


def load_shape(key: str, path: str) -> ModelShape:
    """The shape of a local folder (or of a config.json), else of a published model that we know by name.

    Raises:
        UnknownModelError: naming `key`, if neither is there, or the model is none that the planner knows.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    config = json.loads(file.read_text()) if file.is_file() else published().get(path)
    if config is None:
        raise UnknownModelError(
            f"{key}={path}: no such folder, and none of the published models whose numbers are in {PUBLISHED.name}; "
            "download its config.json alone and give that file or its folder"
        )
    if (kind := config.get("model_type")) not in PLANNED:
        raise UnknownModelError(f"{key}={path}: model_type {kind!r}: the planner knows {' and '.join(PLANNED)}")
    try:
        return shape_from(config)
    except ValueError as error:
        raise UnknownModelError(f"{key}={path}: {error}") from None
    except KeyError as error:
        raise UnknownModelError(f"{key}={path}: config.json lacks {error}") from None


def published() -> dict[str, dict[str, Any]]:
    """Configurations of the published models by hub name, as far as memory depends on them."""
    data = json.loads(PUBLISHED.read_text())
    return {
        name: data["common"] | data["shapes"][model["shape"]] | model.get("also", {})
        for name, model in data["models"].items()
    }
