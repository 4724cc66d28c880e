"""verl's agent loops, in which special tokens that a text holds are plain text, as they are everywhere here."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import hydra
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, _agent_loop_registry, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.tool_agent_loop import AgentData, AgentState, ToolAgentLoop
from verl.experimental.agent_loop.tool_parser import FunctionCall
from verl.tools.schemas import ToolResponse

from verl_ext.run.models import chat_text, render_chat
from verl_ext.run.plain_text import render_plain, written_in

SINGLE_TURN = "single_turn_agent"
CALL_OPENS = {"hermes": "<tool_call>", "qwen3_coder": "<tool_call>"}
"""What a call begins with, by `multi_turn.format`; of other formats calls that cannot be read are not told apart."""
DONE, FAILED, UNKNOWN, ARGUMENTS = "done", "failed", "unknown", "arguments"
"""What came of a call: an answer, an error of the tool's own, no such tool, arguments that are no JSON."""


class PlainTextLoop(SingleTurnAgentLoop):
    """verl's loop of one turn.

    The samples of a prompt, which start together, share its tokens.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rendering: dict[tuple[int, ...], asyncio.Task[list[int]]] = {}

    async def ct_build_initial_tokens(
        self, messages: list[dict], tools=None, images=None, videos=None, audios=None, mm_inputs_out=None
    ) -> list[int]:
        if written_in(self.tokenizer, messages):
            ids = render_chat(self.tokenizer, messages, self.apply_chat_template_kwargs)
            return self._cap_text_prompt_length(ids)
        if self.processor is not None or tools:
            return await super().ct_build_initial_tokens(messages, tools, images, videos, audios, mm_inputs_out)
        prompt = tuple(map(id, messages))  # the very messages of the data's row, which the task keeps alive
        if prompt not in self._rendering:
            task = asyncio.create_task(super().ct_build_initial_tokens(messages))
            self._rendering[prompt] = task
            task.add_done_callback(lambda _: self._rendering.pop(prompt))
        return list(await self._rendering[prompt])

    async def ct_merge_assistant_token(
        self,
        runtime_token_ids: list[int],
        assistant_token_ids: list[int],
        response_mask: list[int],
        response_logprobs: list[float] | None = None,
        assistant_logprobs: list[float] | None = None,
    ) -> Any:
        """As verl, which puts this copying of lists into a thread."""
        builder = self.continuous_token_builder
        merged = builder.merge_assistant_tokens(runtime_token_ids, assistant_token_ids)
        mask, logprobs = builder.align_response_metadata(
            merged, response_mask, response_logprobs, assistant_logprobs=assistant_logprobs
        )
        return merged, mask, logprobs


@dataclass
class ToolUse:
    """What a sample did with its tools."""

    calls: list[tuple[str, str, float, bool]] = field(default_factory=list)
    """Name, what came of it, seconds, and whether its answer was cut to `multi_turn.max_tool_response_length`."""
    left_out: int = 0
    """Calls of one turn beyond `multi_turn.max_parallel_calls`, which verl does not make."""
    unread: int = 0
    """Calls that begin as one and cannot be read, which verl takes for text."""
    unfinished: bool = False
    """It ended with a call that was not made, or whose answer had no room: by a limit of turns or tokens."""


_ToolAgentLoop: Any = ToolAgentLoop  # verl's register decorator hides the class from pyright


@register("tool_agent")
class ToolLoop(_ToolAgentLoop):
    """verl's loop of turns with tools, one object a sample: what tools write is plain text, and calls are counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use = ToolUse()
        self.continuous_token_builder._render_tokens = partial(self._rendered, self.continuous_token_builder)

    def _rendered(
        self, builder: Any, messages: list[dict], *, add_generation_prompt: bool, tools: list[dict] | None = None
    ) -> list[int]:
        """verl's rendering of a conversation, or of a part of one."""
        if not written_in(self.tokenizer, messages):
            kind = type(builder)
            return kind._render_tokens(builder, messages, add_generation_prompt=add_generation_prompt, tools=tools)
        kwargs = dict(self.apply_chat_template_kwargs) | {"tools": tools}
        template = partial(chat_text, self.tokenizer, template_kwargs=kwargs, answered=not add_generation_prompt)
        return render_plain(self.tokenizer, messages, template)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        output = await super().run(sampling_params, priority, **kwargs)
        output.extra_fields["tool_use"] = asdict(self.use)
        return output

    async def _handle_generating_state(
        self, agent_data: AgentData, sampling_params: dict[str, Any], ignore_termination: bool = False
    ) -> AgentState:
        state = await super()._handle_generating_state(agent_data, sampling_params, ignore_termination)
        ids = agent_data.response_ids
        if state == AgentState.PROCESSING_TOOLS:
            read = len(agent_data.tool_calls)
        else:  # verl has not looked at it where a limit was reached
            read = len((await self.tool_parser.extract_tool_calls(ids))[1])
            self.use.unfinished = read > 0
        if opens := CALL_OPENS.get(self.tool_parser_name):
            self.use.unread += max(0, self.tokenizer.decode(ids).count(opens) - read)
        return state

    async def _handle_processing_tools_state(self, agent_data: AgentData) -> AgentState:
        self.use.left_out += max(0, len(agent_data.tool_calls) - self.max_parallel_calls)
        state = await super()._handle_processing_tools_state(agent_data)
        self.use.unfinished = state == AgentState.TERMINATED
        return state

    async def _call_tool(
        self, tool_call: FunctionCall, tools_kwargs: dict[str, Any], agent_data: AgentData
    ) -> tuple[ToolResponse, float, dict]:
        """verl's, whose errors are texts for the student to read."""
        start = time.perf_counter()
        answer = await super()._call_tool(tool_call, tools_kwargs, agent_data)
        text = answer[0].text or ""
        outcome = DONE
        if tool_call.name not in agent_data._active_tools:  # pyright: ignore[reportAttributeAccessIssue]  verl sets it
            outcome = UNKNOWN
        elif not _is_json(tool_call.arguments):
            outcome = ARGUMENTS
        elif text.startswith(f"Error executing tool '{tool_call.name}'"):
            outcome = FAILED
        cut = len(text) > self.max_tool_response_length
        self.use.calls.append((tool_call.name, outcome, time.perf_counter() - start, cut))
        return answer


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (json.JSONDecodeError, TypeError):
        return False
    return True


def class_of(name: str) -> type[AgentLoopBase]:
    """The class of a loop. ValueError if verl knows none of this name."""
    if name not in _agent_loop_registry:
        raise ValueError(f"there is no agent loop {name}; name one of {', '.join(sorted(_agent_loop_registry))}")
    return hydra.utils.get_class(_agent_loop_registry[name]["_target_"])


def shows_tools(name: str) -> bool:
    """Whether a loop's prompts show the run's tools."""
    return issubclass(class_of(name), ToolAgentLoop)


def make_loop(name: str, parts: Mapping[str, Any]) -> AgentLoopBase:
    """A loop for one sample. verl's way through Hydra takes 6 ms, and is gone where there are settings for it."""
    kind, settings = class_of(name), _agent_loop_registry[name]
    return kind(**parts) if set(settings) == {"_target_"} else hydra.utils.instantiate(config=settings, **parts)


def last_answer(response_ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """What the student said last: its tokens behind the last ones that others wrote, at the end of the response."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return list(response_ids[start:end])
