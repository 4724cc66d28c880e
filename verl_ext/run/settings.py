"""From a configuration node to a checked dataclass, and the checks of single values."""

from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

Settings = TypeVar("Settings")


def settings_of(node: Any, kind: type[Settings]) -> Settings:
    """The dataclass behind a configuration node, its values checked. Raises ValueError naming a bad or missing key."""
    try:
        settings = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} is not set: give {error.full_key}=...") from None
    assert isinstance(settings, kind)
    return settings


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
    if not low <= value <= high:
        bounds = f"in [{low}, {high}]" if high < float("inf") else f">= {low}"
        raise ValueError(f"{key}={value} must be {bounds}")
