"""How the verbs of `recipe/` meet Hydra: dataclasses as schemas, no side files, verl's YAML without importing verl."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf


def register_schema(name: str, config_class: type, group: str | None = None) -> None:
    """Make a frozen dataclass available to `defaults` lists as `name`; its unknown keys are errors."""
    schema = OmegaConf.structured(config_class)
    _lift_readonly(schema)
    ConfigStore.instance().store(group=group, name=name, node=schema)


def _lift_readonly(node: DictConfig) -> None:
    """A frozen dataclass makes its node read-only, nested ones too, and Hydra could not compose it."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            _lift_readonly(node[key])


def register_verb(name: str, config_class: type, groups: Sequence[Path] = ()) -> None:
    """Make a dataclass the whole configuration of a verb whose only outputs are its own: no Hydra folders or logs.

    `groups` are folders named like a field, whose files are sets of values for it. Only they become groups: with all of
    `configs/` in Hydra's path, a key named like another folder (`model`) could not be set.
    """
    register_schema(f"{name}_schema", config_class)
    for folder in groups:
        for file in sorted(folder.glob("*.yaml")):
            node = OmegaConf.load(file)
            ConfigStore.instance().store(group=folder.name, name=file.stem, node=node, package=folder.name)
    quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    hydra_part = {"run": {"dir": "."}, "output_subdir": None}
    defaults = [f"{name}_schema", *({folder.name: None} for folder in groups), *quiet, "_self_"]
    ConfigStore.instance().store(name=name, node={"defaults": defaults, "hydra": hydra_part})
