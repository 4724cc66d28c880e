"""From a configuration node to a checked dataclass, and the checks of single values."""

import math
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

Settings = TypeVar("Settings")

LARGEST = 2**31 - 1
"""No number of ours is larger; a field that may be says so: `field(metadata={"largest": ...})`."""


def settings_of(node: Any, kind: type[Settings]) -> Settings:
    """The dataclass behind a configuration node, its values checked. Raises ValueError naming a bad or missing key."""
    try:
        settings = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} is not set: give {error.full_key}=...") from None
    assert isinstance(settings, kind)
    check_sizes(settings, str(node._get_full_key(None)))
    return settings


def check_sizes(settings: Any, prefix: str = "") -> None:
    """Every number of a settings dataclass is finite and not absurdly large. Raises ValueError naming the key."""
    for field in fields(settings):
        key, value = f"{prefix}.{field.name}".lstrip("."), getattr(settings, field.name)
        largest = field.metadata.get("largest", LARGEST)
        if is_dataclass(value):
            check_sizes(value, key)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int | float) and (math.isnan(each) or abs(each) > largest):
                raise ValueError(f"{key}={each} must be a number, at most {largest}")


def check_given(config: DictConfig, *keys: str) -> None:
    """Every key has a value, null being none. Raises ValueError naming the first that has none."""
    for key in keys:
        if OmegaConf.select(config, key) in (None, ""):  # of ??? too
            raise ValueError(f"{key} is not set: give {key}=...")


def mapping_of(node: Any) -> dict[str, Any]:
    """The plain, resolved dictionary behind a configuration node."""
    mapping = OmegaConf.to_container(node, resolve=True)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value} must be one of {', '.join(allowed)}")


def within(key: str, value: float, low: float, high: float) -> None:
    """Both bounds are legal; NaN is not."""
    if not low <= value <= high:
        bounds = f"in [{low}, {high}]" if high < float("inf") else f">= {low}"
        raise ValueError(f"{key}={value} must be {bounds}")


def above(key: str, value: float, low: float, below: float = math.inf) -> None:
    """Neither bound is legal, nor is NaN."""
    if not low < value < below:
        raise ValueError(f"{key}={value} must be " + (f"above {low}" if below == math.inf else f"in ({low}, {below})"))
