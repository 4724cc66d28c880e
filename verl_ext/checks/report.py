"""What a bug report needs: versions, the machine, the resolved settings and the findings; secrets are left out.

Left out are: values under a key that names a secret, environment values (of the settings' own and by `oc.env`), the
user's part and the query of a URL, words after `--api-key` and the like, and any text that is the value of an
environment variable with such a name. The home directory is written `~`; prompts of the data are not shown.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ext.checks.finding import Finding
from verl_ext.run.environment import installed, machine
from verl_ext.teacher.store.fingerprint import version_of_engine

HIDDEN = "<hidden>"
SECRET = re.compile(
    r"(token|secret|password|passwd|credential|api_?key|(^|[^a-z])(key|pwd|auth\w*|cookie))s?(_env)?$", re.IGNORECASE
)
"""A name whose value is a secret: it ends so. `max_tokens` counts as one too, and is a number."""
ENVIRONMENTS = ("env_vars", "environment")
"""Mappings of environment variables in the settings."""
IN_TEXT = (
    re.compile(r"(\w://)[^\s'\",\]]*(?=@)"),  # the user's part of a URL
    re.compile(r"([?&][\w.-]+=)[^&\s'\",\]]+"),  # its query
    re.compile(r"(--[\w-]*(?:key|token|secret|password)s?[ =])[^\s'\",\]]+", re.IGNORECASE),
    re.compile(r"(bearer\s+)[^\s'\",\]]+", re.IGNORECASE),
)
"""What stands before a secret within a text, and the secret."""
SHORTEST = 4
"""Characters from which on an environment variable's value is looked for in the text."""
PRIVATE = ("prompts", "chat template")
"""Checks whose findings quote the data."""


def bug_report(config: DictConfig, findings: Sequence[Finding]) -> str:
    """The whole report as text."""
    lines = ["versions", *(f"  {name}: {value}" for name, value in versions(config).items())]
    lines += ["machine", *(f"  {name}: {value}" for name, value in machine().items())]
    lines += ["findings", *(f"  {_short(finding)}" for finding in findings)]
    lines += ["settings", *(f"  {key}: {value}" for key, value in settings_without_secrets(config))]
    asked = re.findall(r"oc\.env:\s*(\w+)", OmegaConf.to_yaml(config))
    names = [name for name in os.environ if name in asked or SECRET.search(name)]
    return hide("\n".join(lines), [os.environ[name] for name in names])


def _short(finding: Finding) -> str:
    quoted = finding.name.rpartition(": ")[2] in PRIVATE
    return f"{finding.verdict}: {finding.name if quoted else finding.line}"


def versions(config: DictConfig) -> dict[str, str]:
    """Of what computes, by package, the teacher's engine too; the commit, where this is a checkout."""
    teacher = config.teacher
    try:
        engine = version_of_engine(teacher.python, teacher.engine)
    except ValueError as error:
        engine = str(error)
    return installed() | {f"teacher's {teacher.engine}": engine}


def settings_without_secrets(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Every resolved setting by its full key, in order; Hydra's own are left out."""
    for key in config:
        if key != "hydra":
            yield from _leaves(config, str(key), str(key), secret=False)


def _leaves(node: DictConfig | ListConfig, key: Any, path: str, *, secret: bool) -> Iterator[tuple[str, str]]:
    secret = secret or bool(SECRET.search(str(key))) or str(key) in ENVIRONMENTS
    try:
        value = None if OmegaConf.is_missing(node, key) else node[key]
    except OmegaConfBaseException as error:
        yield path, f"cannot be resolved ({type(error).__name__})"
        return
    if isinstance(value, DictConfig):
        for name in value:
            yield from _leaves(value, name, f"{path}.{name}", secret=secret)
    elif isinstance(value, ListConfig) and any(OmegaConf.is_config(item) for item in value):
        for number in range(len(value)):
            yield from _leaves(value, number, f"{path}[{number}]", secret=secret)
    elif isinstance(value, ListConfig):
        yield path, HIDDEN if secret else _hidden_words([str(word) for word in value])
    elif OmegaConf.is_missing(node, key):
        yield path, "???"
    else:
        yield path, HIDDEN if secret and isinstance(value, str) and value else repr(value)


def _hidden_words(words: Sequence[str]) -> str:
    """A list of words, as of a command line: what follows `--api-key`, or stands behind its `=`, is hidden."""
    shown, hide_next = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        names_secret = word.startswith("-") and bool(SECRET.search(name.lstrip("-").replace("-", "_")))
        shown.append(HIDDEN if hide_next else f"{name}={HIDDEN}" if names_secret and equals else word)
        hide_next = names_secret and not equals
    return f"[{', '.join(shown)}]"


def hide(text: str, secrets: Sequence[str]) -> str:
    """Hide the secrets and what looks like one within a text."""
    for pattern in IN_TEXT:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    for value in sorted({value for value in secrets if len(value) >= SHORTEST}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text.replace(str(Path.home()), "~")
