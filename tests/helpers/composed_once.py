"""Hydra composes a configuration's files once: tests compose verl's two dozen hundreds of times, 0.2 s each.

Values on the command line are applied by Hydra each time; only what files and groups make is remembered, by their
names, their times and what the ConfigStore holds.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins

ROOT = Path(__file__).parents[2]


def times_of(folder: Path) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((str(file), file.stat().st_mtime_ns) for file in folder.rglob("*.yaml")))


of_folder_that_stays = cache(times_of)


written: dict[int, tuple[Any, str]] = {}
"""Of each node of the ConfigStore by its id: itself, so that the id stays its own, and its content."""


def stored(node: Any) -> Any:
    """What the ConfigStore holds: each run of a verb registers its settings anew."""
    if isinstance(node, dict):
        return tuple((key, stored(value)) for key, value in sorted(node.items()))
    if id(node) not in written:
        written[id(node)] = node, f"{node.group} {node.package} {node.node}"
    return written[id(node)][1]


def stamp(repo: Any) -> tuple[Any, ...]:
    """Changes with whatever a composition may read."""
    folders = [Path(source.path) for source in repo.get_sources() if source.scheme() == "file"]
    stay = [folder.is_relative_to(ROOT) or "site-packages" in folder.parts for folder in folders]
    files = [(of_folder_that_stays if kept else times_of)(folder) for folder, kept in zip(folders, stay, strict=True)]
    names = tuple((source.scheme(), source.path) for source in repo.get_sources())
    return names, tuple(files), stored(ConfigStore.instance().repo)


@contextmanager
def composed_once() -> Iterator[None]:
    defaults_of, compose_from = (
        config_loader_impl.create_defaults_list,
        ConfigLoaderImpl._compose_config_from_defaults_list,
    )
    Plugins.instance()  # makes the classes of Hydra's sources anew
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    parse = FileConfigSource.load_config
    lists: dict[Any, DefaultsList] = {}
    configs: dict[Any, bytes] = {}
    parsed: dict[Any, bytes] = {}

    def create_defaults_list(repo: Any, config_name: Any, overrides_list: list[Any], **how: bool) -> DefaultsList:
        groups = [one for one in overrides_list if repo.group_exists(one.key_or_group)]
        odd = [one for one in groups if one.type != OverrideType.CHANGE or not isinstance(one.value(), str | None)]
        if odd or any(one.package is not None for one in overrides_list):
            return defaults_of(repo, config_name, overrides_list, **how)
        key = config_name, tuple(one.input_line for one in groups), tuple(how.items()), stamp(repo)
        if key not in lists:
            lists[key] = defaults_of(repo, config_name, groups, **how)
        return replace(lists[key], config_overrides=[one for one in overrides_list if one not in groups])

    def load(self: Any, config_path: str) -> Any:
        file = os.path.join(self.path, self._normalize_file_name(config_path))
        known = (file, os.path.getmtime(file)) if os.path.exists(file) else None
        if known is None:
            return parse(self, config_path)  # raises
        if known not in parsed:
            parsed[known] = pickle.dumps(parse(self, config_path))
        return pickle.loads(parsed[known])

    def compose(self: Any, defaults: list[Any], repo: Any) -> Any:
        key = tuple((one.config_path, one.package, one.is_self) for one in defaults), stamp(repo)
        if key not in configs:
            configs[key] = pickle.dumps(compose_from(self, defaults, repo))
        return pickle.loads(configs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_loader_impl, "create_defaults_list", create_defaults_list)
        patch.setattr(FileConfigSource, "load_config", load)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)
        yield
