"""The plain class under a `@ray.remote` one: verl decorates what we subclass."""

from typing import Any


def plain_class(actor_class: Any) -> Any:
    """The class that `@ray.remote` wrapped, to subclass or to use in this process."""
    return actor_class.__ray_metadata__.modified_class
