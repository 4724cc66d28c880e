"""The tools of a run, as verl's tool agent has them, and what the student's and the teacher's prompt say of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl.tools.function_tool import load_function_tools_from_path
from verl.tools.tool_registry import load_all_tools
from verl.utils.import_utils import resolve_config_path

Schema = dict[str, Any]


def schemas(tools: Sequence[Any]) -> dict[str, Schema]:
    """What a chat template is given of each tool, by name: as `ToolAgentLoop` makes it."""
    return {tool.name: tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools}


def load_schemas(function_tool_path: str | None, tool_config_path: str | None) -> dict[str, Schema]:
    """The same of the files of a configuration; the first one's code is run, as in the agent loop's workers.

    Raises:
        ValueError: naming the key, where a file cannot be read or holds no tool.
    """
    resolved: dict[str, str | None] = {"tool_config_path": tool_config_path, "function_tool_path": function_tool_path}
    for key, path in resolved.items():
        try:
            resolved[key] = resolve_config_path(path) if path else None
        except FileNotFoundError:
            raise ValueError(f"actor_rollout_ref.rollout.multi_turn.{key}={path}: no such file; give one") from None
    try:
        found = schemas(load_all_tools(resolved["tool_config_path"], resolved["function_tool_path"]))
    except Exception as error:  # whatever the file's own code raises
        raise ValueError(
            f"actor_rollout_ref.rollout.multi_turn: the tools cannot be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); mend the file"
        ) from error
    if not found:
        raise ValueError(
            "actor_rollout_ref.rollout.multi_turn.function_tool_path and tool_config_path name no tool; give one "
            "(docs/tools.md)"
        )
    return found


def function_schemas(path: Path) -> list[Schema]:
    """Of the functions of one file."""
    return list(schemas(load_function_tools_from_path(str(path))).values())


def chosen(row: Mapping[str, Any], found: Mapping[str, Schema]) -> list[Schema]:
    """The tools that a row's prompts show: those of `extra_info.tool_selection`, all where it names none.

    Raises:
        ValueError: for a name that no tool has, which verl leaves out in silence.
    """
    names = row["extra_info"].get("tool_selection")
    if names is None or not len(names):
        return list(found.values())
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"extra_info.tool_selection names {unknown[0]}, and the tools are {', '.join(found)}")
    return [found[name] for name in names]
