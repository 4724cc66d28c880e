"""How the verbs of `recipe/` meet Hydra: dataclasses as schemas, no side files, verl's YAML without importing verl."""

import sys
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf


def register_schema(name: str, config_class: type) -> None:
    """Make a frozen dataclass available to `defaults` lists as `name`; its unknown keys are errors."""
    schema = OmegaConf.structured(config_class)
    _lift_readonly(schema)
    ConfigStore.instance().store(name=name, node=schema)


def _lift_readonly(node: DictConfig) -> None:
    """A frozen dataclass makes its node read-only, nested ones too, and Hydra could not compose it."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            _lift_readonly(node[key])


def register_verb(name: str, config_class: type, groups: Sequence[str] = ()) -> None:
    """Make a dataclass the whole configuration of a verb whose only outputs are its own: no Hydra folders or logs.

    `groups` are the fields for which `configs/<field>/` has sets of values.

    `--help` shows the verb's module docstring, every key with its default, and where each is documented.
    """
    register_schema(f"{name}_schema", config_class)
    quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    module = sys.modules[config_class.__module__]
    where = f"What each key means: class {config_class.__name__} in recipe/{name}.py"
    help_text = f"{module.__doc__}\nSettings (change any with key=value):\n\n$CONFIG\n{where}\n"
    hydra_part = {"run": {"dir": "."}, "output_subdir": None, "help": {"template": help_text}}
    defaults = [f"{name}_schema", *({group: None} for group in groups), *quiet, "_self_"]
    ConfigStore.instance().store(name=name, node={"defaults": defaults, "hydra": hydra_part})
