"""What the contract tests share."""

import inspect
from collections.abc import Callable
from typing import Any


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of a function's parameters; Ray adds one for tracing to the methods of an actor class."""
    return [name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx"]
