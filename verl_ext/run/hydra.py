"""How the verbs of `recipe/` meet Hydra: dataclasses as schemas, no side files, verl's YAML without importing verl."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def register_schema(name: str, config_class: type, group: str | None = None) -> None:
    """Make a frozen dataclass available to `defaults` lists as `name`; its unknown keys are errors."""
    ConfigStore.instance().store(group=group, name=name, node=schema_of(config_class))


def schema_of(config_class: type) -> DictConfig:
    """A frozen dataclass as a node that settings can be merged into; its unknown keys are errors."""
    schema = OmegaConf.structured(config_class)
    _lift_readonly(schema)
    return schema


def _lift_readonly(node: DictConfig) -> None:
    """A frozen dataclass makes its node read-only, nested ones too, and Hydra could not compose it."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            _lift_readonly(node[key])


def register_verb(name: str, config_class: type, groups: Sequence[str] = ()) -> None:
    """Make a dataclass the whole configuration of a verb whose only outputs are its own: no Hydra folders or logs.

    `groups` are the fields for which `Verb.groups` has sets of values.
    """
    register_schema(f"{name}_schema", config_class)
    quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    hydra_part = {"run": {"dir": "."}, "output_subdir": None}
    defaults = [f"{name}_schema", *({group: None} for group in groups), *quiet, "_self_"]
    ConfigStore.instance().store(name=name, node={"defaults": defaults, "hydra": hydra_part})


def chosen_groups(folder: Path) -> str:
    """The `defaults` of this process' configuration in YAML: each group of `folder` and its choice."""
    if not HydraConfig.initialized():
        return ""  # composed otherwise
    choices = HydraConfig.get().runtime.choices
    groups = sorted(each.name for each in folder.iterdir() if each.is_dir() and choices.get(each.name))
    return "".join(["defaults:\n", *(f"- {group}: {choices[group]}\n" for group in groups)])


@contextlib.contextmanager
def group_files(folders: Sequence[Path]) -> Iterator[None]:
    """The files of each folder are choices of the group of its name, for the length of a `with`.

    Only these folders: with all of `configs/` in Hydra's path, a key named like another one (`model`) could not be set.
    Only so long: Hydra's store is one for the process, and a verb may have a key of that name and no group.
    """
    store = ConfigStore.instance()
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            store.store(group=folder.name, name=file.stem, node=OmegaConf.load(file), package=folder.name)
    try:
        yield
    finally:
        for folder in folders:
            del store.repo[folder.name]
