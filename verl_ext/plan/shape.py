"""The models that can be planned for: a folder's configuration, or the numbers of a published one."""

import json
from pathlib import Path
from typing import Any

from verl_ext.plan.counted import count
from verl_ext.run.model_shape import KINDS, ModelShape, shape_from

PUBLISHED = Path(__file__).with_name("qwen3.json")


class UnknownModelError(ValueError):
    """A model whose numbers the planner cannot find or does not understand."""


def load_shape(key: str, path: str) -> ModelShape:
    """The shape of a local folder (or of a config.json), else of a published model that we know by name.

    Raises:
        UnknownModelError: naming `key`, if neither is there, or transformers cannot build such a model.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    config = json.loads(file.read_text()) if file.is_file() else published().get(path)
    if config is None:
        raise UnknownModelError(
            f"{key}={path}: no such folder, and none of the published models whose numbers are in {PUBLISHED.name}; "
            "download its config.json alone and give that file or its folder"
        )
    try:
        return _by_formula(config) or count(config)
    except ValueError as error:
        raise UnknownModelError(f"{key}={path}: {error}") from None


def _by_formula(config: dict[str, Any]) -> ModelShape | None:
    """What needs no torch; None where there is no formula, or it does not see all of this model."""
    if config.get("model_type") not in KINDS:
        return None
    try:
        return shape_from(config)
    except (ValueError, KeyError):  # windows, biases; a default that only transformers knows
        return None


def published() -> dict[str, dict[str, Any]]:
    """Configurations of the published models by hub name, as far as memory depends on them."""
    data = json.loads(PUBLISHED.read_text())
    return {
        name: data["common"] | data["shapes"][model["shape"]] | model.get("also", {})
        for name, model in data["models"].items()
    }
