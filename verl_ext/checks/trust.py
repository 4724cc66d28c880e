"""What a configuration must not hold, for a run's folder, logs and Ray show it; and whose code it lets run."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from verl_ext.checks.context import Context
from verl_ext.checks.finding import WARN, Finding

NAME = re.compile(
    r"((api|access|secret|private|ssh|encryption)_?key|(api|auth|access|hf|hub|bearer|refresh)_?token|secret|"
    r"password|passwd|credentials?)s?$",
    re.IGNORECASE,
)
"""The name of a secret. `prompt_key` and `eos_token` are none."""
IN_URL = re.compile(r"\w://[^/\s?#]*:[^/\s?#]*@")
"""A password in a URL."""
REMOTE_CODE = "trust_remote_code"


def secrets(context: Context) -> str:
    """No key, token or password is among the settings."""
    settings = OmegaConf.to_container(context.config, resolve=False)
    for key, value in leaves(settings):
        if not isinstance(value, str) or not value:
            continue
        name = key.rpartition(".")[2]
        if NAME.search(name):
            fix = f"export {name}" if ".env_vars." in key else "export the environment variable that its program reads"
            raise ValueError(
                f"{key} is a secret, and config.yaml, logs and Ray's records show it; leave it out, and {fix}"
            )
        if IN_URL.search(value):
            raise ValueError(
                f"{key} holds a password in its URL, which config.yaml and error messages show; leave it out"
            )
    return "none among the settings"


def remote_code(context: Context) -> str | Finding:
    """Python code that comes with a model runs only where that was asked for, and that is said."""
    settings = [] if context.config is None else [*leaves(OmegaConf.to_container(context.config, resolve=False))]
    keys = [key for key, value in settings if key.rpartition(".")[2] == REMOTE_CODE and value is True]
    if context.config is None:
        keys = [f"teacher.{REMOTE_CODE}" for teacher in context.teachers.values() if teacher.trust_remote_code]
    if not keys:
        return "none is run"
    return Finding(
        WARN,
        f"{', '.join(keys)} is true: Python code that comes with the model runs as you, with your keys and files",
        "read it first, and leave this out where transformers knows the model",
    )


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of all that is no mapping or list; the elements of a list have its key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, path)
    else:
        yield path, node
