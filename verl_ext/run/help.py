"""`--help` for people: what a verb does, what it must be given, the settings that people change, groups and choices.

Texts come from the settings' own classes and defaults from the composed configuration, so that neither drifts.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ext.run.field_docs import doc_of, field_docs, nested
from verl_ext.run.overrides import choices, options

WIDTH = 100
COLUMN = 36
"""Where a setting's text begins, at most: a longer `key=default` has its text below."""
TEXT = 110
"""Characters of a text of which only whole sentences are shown, the first in any case."""


class Described(Protocol):
    """What help needs to know of a verb: fields of `verl_ext.run.verb.Verb`, documented there."""

    @property
    def name(self) -> str: ...
    @property
    def doc(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, type]: ...
    @property
    def config_dir(self) -> Path | None: ...
    @property
    def keys(self) -> Mapping[str, str]: ...
    @property
    def required(self) -> tuple[str, ...]: ...
    @property
    def added(self) -> tuple[str, ...]: ...


def help_text(verb: Described) -> str:
    """All but the closing lines. Hydra must be initialised."""
    settings, config = verb.settings, compose(verb.name, list(verb.added))
    texts = dict(verb.keys) or dict.fromkeys(field_docs(settings[""]), "")
    given, usual = [], []
    for key, text in texts.items():
        default = "..." if key in verb.required else _default(config, key)
        fields_of = _below(settings, key, config)
        row = (f"{key}.*" if fields_of else f"{key}={default}", shortened(text or _text(settings, key)) + fields_of)
        (given if default == "..." else usual).append(row)
    parts = [verb.doc.strip()]
    parts += ["Must be given:\n" + _rows(given)] if given else []
    parts += ["Settings and their defaults; any can be set with key=value:\n" + _rows(usual)]
    if groups := _groups(verb):
        parts += ["Groups, each a set of values:\n" + _rows(groups)]
    return "\n\n".join(parts) + "\n"


def shortened(text: str) -> str:
    """The first sentences of a text, as many as fit."""
    sentences = re.split(r"(?<=[^.]\.) (?=[A-Z`])", " ".join(text.split()))
    first = sentences[0].split(" ")[0]
    kept = sentences[0].replace(first, first.capitalize(), 1) if first.islower() else sentences[0]
    for sentence in sentences[1:]:
        if len(kept) + len(sentence) >= TEXT:
            break
        kept += f" {sentence}"
    return kept


def _rows(rows: list[tuple[str, str]]) -> str:
    column = min(COLUMN, max(len(left) for left, _ in rows) + 2)
    lines = []
    for left, text in rows:
        beside = len(left) + 2 <= column
        indent = " " * (column + 2)
        first = f"  {left:{column}}" if beside else indent
        lines += [] if beside else [f"  {left}"]
        lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


def _default(config: DictConfig, key: str) -> str:
    """The default as it is typed; `...` where there is none, nothing where the key holds others."""
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
    except OmegaConfBaseException:
        parent, _, name = key.rpartition(".")
        raw = OmegaConf.to_container(OmegaConf.select(config, parent) if parent else config, resolve=False)
        assert isinstance(raw, dict)
        return "..." if raw[name] == "???" else str(raw[name])
    if OmegaConf.is_dict(value):
        return ""
    return typed(OmegaConf.to_container(value) if OmegaConf.is_list(value) else value)


def typed(value: Any) -> str:
    """A value as one writes it after `key=`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(typed(each) for each in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(settings: Mapping[str, type], key: str) -> str:
    """What the class documents that holds the key. KeyError for a key without a text."""
    owner = max((prefix for prefix in settings if not prefix or key.startswith(f"{prefix}.")), key=len)
    return doc_of(settings[owner], key.removeprefix(f"{owner}.") if owner else key)


def _below(settings: Mapping[str, type], key: str, config: DictConfig) -> str:
    """Names and defaults of a nested dataclass' fields, in one run."""
    kind = nested(settings[""], key) if "" in settings and "." not in key else None
    if kind is None:
        return ""
    return " " + ", ".join(f"{field.name}={_default(config, f'{key}.{field.name}')}" for field in fields(kind))


def _groups(verb: Described) -> list[tuple[str, str]]:
    """Each group of ours with its choices. Verl's own groups are no matter of a command line."""
    defaults, folder = choices(verb.name, verb.added), verb.config_dir
    rows = []
    for group in defaults:
        if "/" in group or "@" in group or (folder is not None and not (folder / group).is_dir()):
            continue
        found = options(verb.name, group)
        listed = [f"{option} (default)" if option == defaults[group] else option for option in found]
        rows.append((f"{group}=", ", ".join(listed)))
    return rows
