"""verl's agent-loop worker with our loops in place of its own, and what student and teacher are asked, in tokens."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap, ToolListWrap
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from verl_ext.run.models import render_chat
from verl_ext.teacher.config import BASE, DEFAULT_ENGINE, TeacherConfig
from verl_ext.teacher.teachers import teacher_of_row
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError
from verl_ext.trainer.loops import SINGLE_TURN, PlainTextLoop, make_loop, shows_tools
from verl_ext.trainer.runner import plain_class
from verl_ext.trainer.tools import chosen, schemas
from verl_ext.trainer.turns import SampleTurns, without_start

Name = tuple[str, int]
"""A sample: its prompt's id and its number."""


def name_of(row: dict) -> Name:
    return row["uid"], row["session_id"]


class LoopingWorker(plain_class(AgentLoopWorkerTQ), ABC):
    """Samples of one turn and of several, with tools or without; each output of a loop goes to the teacher."""

    teachers: dict[str, TeacherConfig]
    top_k: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._agents: dict[str, str] = {}
        """By a prompt's id, the loop that answers it."""
        self._prompts: dict[tuple[str, str], list[int]] = {}
        """Rendered, by the same id and the column of its messages."""
        self._turns: dict[Name, SampleTurns] = {}
        """Of the samples of other loops than the single-turn one."""

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        self._agents[prompt["uid"]] = prompt["agent_name"]
        try:
            await super()._run_prompt(prompt, sampling_params, trajectory, trace)
        finally:
            del self._agents[prompt["uid"]]
            for column in ("teacher_messages", "raw_prompt"):
                self._prompts.pop((prompt["uid"], column), None)

    async def _answer(self, agent_name: str, sampling_params: dict, row: dict, validate: bool) -> Any:
        """What the row's loop makes of it: one output, or a list.

        verl builds a loop object through Hydra for every sample (6 ms each); the single-turn one keeps no state between
        samples, so one object serves all.
        """
        if agent_name == SINGLE_TURN:
            return await self._single_turn.run(sampling_params, **row)
        turns = self._turns[name_of(row)] = SampleTurns(self.llm_client, *self._early(row, validate))
        return await make_loop(agent_name, self._parts(turns)).run(sampling_params, **row)

    def _early(self, row: dict, validate: bool) -> tuple[Any, ...]:
        """How turns are scored as they end: where they are scored at all, by a server that keeps prefixes."""
        if validate:
            return ()
        teacher = self.teachers[teacher_of_row(row, self.teachers)]
        if not teacher.prime or teacher.mode == BASE or teacher.engine != DEFAULT_ENGINE:
            return ()
        return (lambda ids, mask: self._request(row, ids, mask, self.top_k)), self._score

    def _ended(self, row: dict) -> None:
        """A sample is in the queue, or has failed."""
        if turns := self._turns.pop(name_of(row), None):
            turns.close()

    @functools.cached_property
    def _single_turn(self) -> PlainTextLoop:
        loop: Any = PlainTextLoop  # verl's decorator hides its `run`
        return loop(**self._parts(self.llm_client))

    def _parts(self, client: Any) -> dict[str, Any]:
        """What verl makes a loop of."""
        return {
            "trainer_config": DictConfigWrap(self.config),
            "server_manager": client,
            "tokenizer": self.tokenizer,
            "processor": self.processor,
            "dataset_cls": self.dataset_cls,
            "data_config": DictConfigWrap(self.config.data),
            "hf_model_type": self.hf_model_type,
            "tools": ToolListWrap(self.tools),
        }

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate, **kwargs
    ) -> None:
        """verl's, which has the last of several outputs scored alone, and takes none for an answer."""
        outputs = output if isinstance(output, list) else [output]
        if not outputs:
            raise ValueError("agent_loop: its run() gave no output; make it give one AgentLoopOutput or more")
        if turns := self._turns.get(name_of(kwargs)):
            for each in outputs:
                each.extra_fields |= turns.fields()
        for each in outputs[:-1]:
            if not validate:
                await self._compute_teacher_logprobs(each, each.prompt_ids, each.response_ids, validate, kwargs)
        await super()._agent_loop_postprocess(outputs, validate, **kwargs)

    async def _scored(
        self, row: dict, output: AgentLoopOutput, request: ScoreRequest
    ) -> tuple[Score | TeacherError, int]:
        """The score of an output, and how many of the sample's turns were sent to the teacher before it ended.

        `request` is for its response alone. A loop's prompt may be the row's and more: turns that other outputs hold.
        """
        if (turns := self._turns.get(name_of(row))) is None:
            return await self._score(request), 0
        prompt = self._prompt(row, "raw_prompt")
        if output.prompt_ids[: len(prompt)] != prompt:
            return TeacherError(
                "the agent loop's prompt is not the row's, rendered with the tools of the run: the teacher would read "
                "another conversation than the student"
            ), 0
        before = output.prompt_ids[len(prompt) :]
        request = dataclasses.replace(
            request,
            response_ids=[*before, *output.response_ids],
            response_mask=[0] * len(before) + output.response_mask,
        )
        outcome, early = await turns.scored(request, self._score)
        return without_start(outcome, len(before)) if isinstance(outcome, Score) else outcome, early

    @abstractmethod
    async def _score(self, request: ScoreRequest) -> Score | TeacherError:
        """By the teacher of the request; never raises."""

    def _request(self, row: dict, response_ids: list[int], mask: list[int] | None, top_k: int) -> ScoreRequest:
        """The response under the teacher's prompt of a data row."""
        prompt = self._prompt(row, "teacher_messages")
        return ScoreRequest(prompt, response_ids, mask, teacher_of_row(row, self.teachers), top_k=top_k)

    def _prompt(self, row: dict, column: str) -> list[int]:
        """A row's messages, rendered with the tools that its loop shows: the same for the student and the teacher."""
        name = (row["uid"], column)
        if name not in self._prompts:
            kwargs = dict(self.config.data.get("apply_chat_template_kwargs", {}))
            if self.tools and shows_tools(self._agents[row["uid"]]):
                kwargs["tools"] = chosen(row, schemas(self.tools))
            self._prompts[name] = render_chat(self.tokenizer, row[column], kwargs)
        return self._prompts[name]
