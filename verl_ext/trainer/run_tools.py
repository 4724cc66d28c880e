"""Which loop answers a row of a run, and which tools its prompts show, before anything of the run is started."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.experimental.agent_loop.tool_parser import ToolParser
from verl.utils.import_utils import resolve_config_path

from verl_ext.trainer.loops import shows_tools
from verl_ext.trainer.tools import Schema, chosen, load_schemas

ROLLOUT = "actor_rollout_ref.rollout"


class RunTools:
    """Of a run's configuration; loops of `agent.agent_loop_config_path` are made known to verl, as its workers do."""

    def __init__(self, config: DictConfig) -> None:
        rollout = config.actor_rollout_ref.rollout
        self._turns, self._default = rollout.multi_turn, rollout.agent.default_agent_loop
        if path := rollout.agent.agent_loop_config_path:
            try:
                loops: Any = OmegaConf.load(resolve_config_path(path))
                for each in loops:
                    _agent_loop_registry[each.name] = each
            except OSError as error:
                raise ValueError(f"{ROLLOUT}.agent.agent_loop_config_path={path}: {error}; correct the path") from None
        if self.given and self._turns.format not in ToolParser._registry:
            known = ", ".join(sorted(ToolParser._registry))
            raise ValueError(f"{ROLLOUT}.multi_turn.format={self._turns.format}: expected one of {known}")

    @property
    def given(self) -> bool:
        """The settings name files of tools."""
        return bool(self._turns.function_tool_path or self._turns.tool_config_path)

    @cached_property
    def schemas(self) -> dict[str, Schema]:
        """All tools of the run, by name. Raises ValueError where there are none."""
        return load_schemas(self._turns.function_tool_path, self._turns.tool_config_path)

    def shown(self, row: Mapping[str, Any]) -> bool:
        """Whether the prompts of a row show tools. Raises ValueError for a loop that verl does not know."""
        return shows_tools(row.get("agent_name") or self._default)

    def of(self, row: Mapping[str, Any]) -> list[Schema]:
        """The tools of such a row. Raises ValueError where it names one that there is not."""
        return chosen(row, self.schemas)
