"""Where the teacher enters: each finished training sample is scored before it reaches the replay buffer."""

import asyncio
import contextlib
import sqlite3
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.workers.rollout.llm_server import LLMServerClient

from verl_ext.data.conversations import read_label
from verl_ext.data.rows import MATH
from verl_ext.evaluation.match import math_match
from verl_ext.run.settings import settings_of
from verl_ext.run.visible import print
from verl_ext.teacher.store.store import StoreError
from verl_ext.teacher.teachers import RoutedScorer, teachers_of
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError
from verl_ext.trainer.base_teacher import open_teacher
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.early import EarlyActor
from verl_ext.trainer.failures import failures_noted, place_of, some_of
from verl_ext.trainer.kept import KeptAnswer, KeptAnswers
from verl_ext.trainer.looping import LoopingWorker
from verl_ext.trainer.loops import last_answer
from verl_ext.trainer.queue_writer import COLUMNS, QueueWriter
from verl_ext.trainer.report_config import ReportConfig
from verl_ext.trainer.sample_fields import cut_off, logprobs_or_zeros, top_fields
from verl_ext.trainer.sampler import FinishReasonServer as FinishReasonServer  # its handle would ask for it, later
from verl_ext.trainer.shared_calls import share_calls
from verl_ext.trainer.support import ASKED, in_students_support
from verl_ext.trainer.support_config import STUDENT
from verl_ext.trainer.tool_metrics import WANTED

# Of its own: verl renders prompts in the loop's default threads, and the verifier compares one pair at a time.
MATH_THREAD = ThreadPoolExecutor(1)
UNREAD = ("teacher_messages", "extra_info", "raw_prompt")
"""Columns of the data that nobody reads of a scored sample; the last one a reward model does."""


class DistillationAgentLoopWorker(LoopingWorker):
    """verl's agent-loop worker, with our teacher in place of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teachers = teachers_of(self.config)
        self.teacher = RoutedScorer(
            {
                name: open_teacher(each, self.config.student.path, self.llm_client)
                for name, each in self.teachers.items()
            }
        )
        method = settings_of(self.config.method, MethodConfig)
        self.top_k, self.labels = method.top_k, method.labels
        self.named_tokens = method.support_tokens if method.support == STUDENT else 0
        if self.top_k < 0:
            self.top_k = len(self.tokenizer)
        self.kept = KeptAnswers(settings_of(self.config.report, ReportConfig), len(self.tokenizer))
        self._primes: set[asyncio.Task[None]] = set()
        self._at = {"student": 0, "teacher": 0}
        self._begun: dict[str, dict[int, float]] = {}
        """When the samples of a prompt were asked for, by the prompt's id and the sample's number."""
        self._rows: dict[str, str] = {}
        """By its id, where the data has a prompt that is under way."""
        self._last_error = ""
        QueueWriter(UNREAD[:-1] if self.config.reward.reward_model.enable else UNREAD).install()
        if isinstance(self.llm_client, LLMServerClient):
            share_calls(self.llm_client)

    async def waiting(self) -> str:
        """How many samples are where, of which rows, and the last error, in words."""
        at = ", ".join(f"{count} at the {where}" for where, count in self._at.items())
        at += some_of(self._rows.values())
        return f"{at}; the last error: {self._last_error}" if self._last_error else at

    async def keep_answers(self, rows: dict[int, int]) -> list[KeptAnswer]:
        """`KeptAnswers.begin`, for the trainer."""
        return self.kept.begin(rows)

    async def gone(self) -> str:
        """Never returns: the trainer hears of the end of this process by the end of the call."""
        await asyncio.Event().wait()
        return ""

    @contextlib.contextmanager
    def _counted(self, where: str) -> Iterator[None]:
        """A sample is there; what goes wrong is noted for `waiting`, and raised on."""
        self._at[where] += 1
        try:
            yield
        except Exception as error:  # whatever it is, its words are for who waits; raised on
            self._last_error = str(error) or type(error).__name__
            raise
        finally:
            self._at[where] -= 1

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        """The teacher reads the prompt while the student writes: its n samples then share the prefix."""
        uid = prompt["uid"]
        self._begun[uid] = {}
        self._rows[uid] = place_of(prompt)
        if not trajectory["validate"]:
            task = asyncio.create_task(self._prime(prompt))
            self._primes.add(task)
            task.add_done_callback(self._primes.discard)
        try:
            await super()._run_prompt(prompt, sampling_params, trajectory, trace)
        finally:
            del self._begun[uid]
            del self._rows[uid]

    async def _prime(self, row: dict) -> None:
        with contextlib.suppress(ValueError, sqlite3.Error):  # scoring the samples will say it
            await self.teacher.prime(self._request(row, [], None, self.top_k))

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool = True,
        **kwargs,
    ) -> None:
        if self.config.seeded_rollout and not trajectory["validate"]:
            sample = f"{self.config.data.seed}/{trajectory['step']}/{kwargs['index']}/{kwargs['session_id']}"
            sampling_params = sampling_params | {"seed": zlib.crc32(sample.encode())}
        if self.named_tokens and not trajectory["validate"]:
            sampling_params = sampling_params | {ASKED: self.top_k}
        self._begun[kwargs["uid"]][kwargs["session_id"]] = time.time()
        del trace  # never asked for (tests/contract)
        try:
            with failures_noted(self.config.run_dir, kwargs, trajectory), self._counted("student"):
                output = await self._answer(agent_name, sampling_params, kwargs, trajectory["validate"])
            with failures_noted(self.config.run_dir, kwargs, trajectory):
                await self._agent_loop_postprocess(output, trajectory["validate"], **kwargs)
        finally:
            self._ended(kwargs)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        """Reward by the label or the math answer in this process, unless verl's reward workers were asked for.

        Read is what the student said last: what a tool wrote earns nothing.
        """
        if self.reward_loop_worker_handles:
            await super()._compute_score(outputs, kwargs)
            return
        said = last_answer(outputs[-1].response_ids, outputs[-1].response_mask)
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        truth = kwargs["reward_model"]["ground_truth"]
        if kwargs["data_source"] == MATH:
            # Not in the loop, where other samples are answered: a comparison can take seconds.
            loop = asyncio.get_running_loop()
            outputs[-1].reward_score = await loop.run_in_executor(MATH_THREAD, math_match, text, truth)
        else:
            found = read_label(text, self.labels.extract, self.labels.policy, self.labels.label_set or [truth])
            outputs[-1].reward_score = float(bool(truth) and found.label == truth)
        used = outputs[-1].extra_fields.get("tool_use")
        outputs[-1].extra_fields["reward_extra_info"] = {"tool_calls": len(used["calls"])} if used else {}

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
        assert sample_kwargs is not None
        begun = self._begun[sample_kwargs["uid"]][sample_kwargs["session_id"]]
        if validate:
            if self.kept.wants(sample_kwargs):
                await self.kept.keep(sample_kwargs, output, self._request, self._score)
            return
        request, counts = self._request(sample_kwargs, response_ids, output.response_mask, self.top_k), {}
        if self.named_tokens:
            request, counts = in_students_support(request, output, self.named_tokens)
        start, sampled = time.time(), sum(output.response_mask)
        with self._counted("teacher"):
            outcome, early = await self._scored(sample_kwargs, output, request)
        if not isinstance(outcome, Score):
            print(f"teacher: sample left unscored: {outcome}")
            output.response_mask = [0] * len(response_ids)
        output.extra_fields |= {
            COLUMNS: top_fields(outcome, request),
            "truncated": cut_off(output, self.rollout_config.response_length),
            "early_turns": early,
            "teacher_logprobs": logprobs_or_zeros(outcome, request),
            "teacher_error": "" if isinstance(outcome, Score) else str(outcome),
            "teacher_from_store": isinstance(outcome, Score) and outcome.from_store,
            "student_start": begun,
            "teacher_start": start,
            "teacher_end": time.time(),
            "sampled_tokens": sampled,
            "response_tokens": len(response_ids),
            WANTED: sample_kwargs["extra_info"].get(WANTED),
            "teacher": request.teacher,
            "teacher_tokens": len(request.prompt_ids) + len(response_ids),
            # What the scorer did since the last sample; the trainer adds them up.
            "teacher_metrics": self.teacher.metrics() | counts,
        }

    async def _score(self, request: ScoreRequest) -> Score | TeacherError:
        """An error of ours ends as an unscored sample too: verl would wait for the group of a sample that raises."""
        try:
            (outcome,) = await self.teacher.score([request])
        except (ValueError, StoreError, sqlite3.Error) as error:  # an id that must not be sent; a damaged store
            return TeacherError(str(error))
        return outcome


class DistillationAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager, starting our workers; picked by `rollout.agent.agent_loop_manager_class`."""

    early: EarlyActor | None = None

    @classmethod
    def start_early(cls) -> None:
        """Start the first worker's process, on one node; what it is asked for with, its name, nobody asks it by."""
        cls.early = EarlyActor(DistillationAgentLoopWorker, indifferent=("name", "scheduling_strategy"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = self.early or ray.remote(DistillationAgentLoopWorker)
