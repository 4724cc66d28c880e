"""Where the teacher enters: each finished training sample is scored before it reaches the replay buffer."""

import functools
import time
from typing import Any

import ray
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_ext.config import settings_of
from verl_ext.teacher.client import TeacherClient, TeacherResponseError, TeacherUnavailableError
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.ray_classes import plain_class
from verl_ext.trainer.reward import exact_match


class DistillationAgentLoopWorker(plain_class(AgentLoopWorkerTQ)):
    """verl's agent-loop worker, with our teacher in place of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = TeacherClient(
            settings_of(self.config.teacher, TeacherConfig), vocab_size=self.model_config.hf_config.vocab_size
        )

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool = True,
        **kwargs,
    ) -> None:
        """verl builds a loop object through Hydra for every sample (6 ms each); the single-turn one keeps no state
        between samples, so one object serves all."""
        if agent_name != "single_turn_agent" or trace:
            await super()._run_agent_loop(sampling_params, trajectory, agent_name=agent_name, trace=trace, **kwargs)
            return
        output = await self._single_turn.run(sampling_params, **kwargs)
        await self._agent_loop_postprocess(output, trajectory["validate"], **kwargs)

    @functools.cached_property
    def _single_turn(self) -> SingleTurnAgentLoop:
        return SingleTurnAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=self.llm_client,
            tokenizer=self.tokenizer,
            processor=self.processor,
            dataset_cls=self.dataset_cls,
            data_config=DictConfigWrap(self.config.data),
            hf_model_type=self.hf_model_type,
        )

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        """Reward by exact match in this process, unless verl's reward workers were asked for."""
        if self.reward_loop_worker_handles:
            await super()._compute_score(outputs, kwargs)
            return
        text = self.tokenizer.decode(outputs[-1].response_ids, skip_special_tokens=True)
        outputs[-1].reward_score = exact_match(text, kwargs["reward_model"]["ground_truth"])
        outputs[-1].extra_fields["reward_extra_info"] = {}

    async def _compute_teacher_logprobs(
        self,
        output: AgentLoopOutput,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Score the response under the teacher's own prompt; nats, one per response token.

        A sample that no teacher could score keeps its place in the batch with its response masked out of
        the loss; the trainer counts it (`teacher/unscored`).
        """
        del prompt_ids  # the student's prompt; the teacher has its own
        if validate:
            return
        assert sample_kwargs is not None
        teacher_prompt_ids = self.tokenizer.apply_chat_template(
            list(sample_kwargs["teacher_messages"]),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **self.config.data.get("apply_chat_template_kwargs", {}),
        )
        start = time.perf_counter()
        try:
            teacher_logprobs = await self.teacher.score(teacher_prompt_ids, response_ids)
        except (TeacherResponseError, TeacherUnavailableError) as error:
            print(f"teacher: sample left unscored: {error}")
            teacher_logprobs = [0.0] * len(response_ids)
            output.response_mask = [0] * len(response_ids)
        output.extra_fields["teacher_logprobs"] = torch.tensor(teacher_logprobs, dtype=torch.float32)
        output.extra_fields["teacher_start"] = start
        output.extra_fields["teacher_end"] = time.perf_counter()
        output.extra_fields["teacher_tokens"] = len(teacher_prompt_ids) + len(response_ids)


class DistillationAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager, starting our workers; picked by `rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(DistillationAgentLoopWorker)
