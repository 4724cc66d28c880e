"""The arm of `teacher_scoring.py` that scores as verl 0.9.1 does, in a child process.

python -m benchmarks.arms.verl_teacher MODEL MAX_MODEL_LEN   # the child: `VerlTeacher` starts it
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson

from benchmarks.arms.scoring_arms import ARM_TIMEOUT_S, Outcome, cpu_of_group
from verl_ext.sampling.vllm import prepare_engine_environment
from verl_ext.teacher.server.process import group_members
from verl_ext.teacher.types import ScoreRequest

START_TIMEOUT_S = 240
REPLY_BYTES = 1 << 26


class VerlTeacher:
    """verl 0.9.1's vLLM teacher in a child process; `async with VerlTeacher(...) as teacher`.

    Included: vLLM's AsyncLLM in its own processes with the engine arguments of verl's `launch_server` and
    `distillation.yaml`, the sampling parameters of `_get_teacher_sampling_params`, every sample its own request, all
    at once, verl's `extract_prompt_logprobs` and the two tensors a sample. Left out, in verl's favour: Ray's remote
    calls, the load balancer, and padding.
    """

    def __init__(self, model: Path, max_model_len: int, log: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.arms.verl_teacher", str(model), str(max_model_len)]
        self._log = log
        self._child: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "VerlTeacher":
        with self._log.open("wb") as log:
            self._child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=REPLY_BYTES,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"},
            )
        try:
            await self._read(START_TIMEOUT_S)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        assert self._child is not None
        for pid in group_members(self._child.pid):
            os.kill(pid, signal.SIGKILL)
        await self._child.wait()

    async def score(self, requests: Sequence[ScoreRequest]) -> Outcome:
        """The clock runs in the child, from the first request to the last sample's tensors."""
        assert self._child is not None
        assert self._child.stdin is not None
        before = cpu_of_group(self._child.pid)
        self._child.stdin.write(orjson.dumps([[*r.prompt_ids, *r.response_ids] for r in requests]) + b"\n")
        await self._child.stdin.drain()
        reply = await self._read(ARM_TIMEOUT_S)
        logprobs = [row[len(r.prompt_ids) - 1 : -1] for row, r in zip(reply["logprobs"], requests, strict=True)]
        return Outcome(reply["seconds"], logprobs, 0.0, cpu_of_group(self._child.pid) - before)

    async def _read(self, timeout_s: float) -> Any:
        assert self._child is not None
        assert self._child.stdout is not None
        line = await asyncio.wait_for(self._child.stdout.readline(), timeout_s)
        if not line:
            raise RuntimeError(f"verl's teacher ended: {self._log.read_text(errors='replace')[-2000:]}")
        return json.loads(line)


async def serve_verl_teacher(model: str, max_model_len: int, replies: int) -> None:
    """Score each line of stdin (a JSON list of sequences) and answer with a line on `replies`."""
    prepare_engine_environment()
    import torch
    from verl.workers.rollout.vllm_rollout.utils import extract_prompt_logprobs
    from vllm import SamplingParams, TokensPrompt
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype="float32",
            max_model_len=max_model_len,
            max_num_seqs=1024,
            max_num_batched_tokens=8192,
            enable_chunked_prefill=True,
            enable_prefix_caching=True,  # vLLM does not read it for a request with prompt log-probs
            logprobs_mode="processed_logprobs",
            enforce_eager=True,
            distributed_executor_backend="mp",
            scheduling_policy="fcfs",
            disable_log_stats=True,
        )
    )

    async def score_one(ids: list[int]) -> list[float]:
        params = SamplingParams(
            max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False, repetition_penalty=1.0, logprobs=None
        )
        final = None
        async for output in engine.generate(TokensPrompt(prompt_token_ids=ids), params, uuid4().hex):
            final = output
        assert final is not None
        fields: dict[str, list] = {}
        extract_prompt_logprobs(final, 0, fields)
        teacher_ids = torch.tensor(fields["prompt_ids"], dtype=torch.int32)
        teacher_logprobs = torch.tensor(fields["prompt_logprobs"])
        assert teacher_ids.shape == teacher_logprobs.shape == (len(ids), 1)
        return teacher_logprobs[:, 0].tolist()

    await score_one([0, 1])
    os.write(replies, b"{}\n")
    while line := await asyncio.to_thread(sys.stdin.readline):
        sequences = json.loads(line)
        started = time.perf_counter()
        logprobs = await asyncio.gather(*(score_one(ids) for ids in sequences))
        reply = orjson.dumps({"seconds": time.perf_counter() - started, "logprobs": logprobs}) + b"\n"
        with os.fdopen(os.dup(replies), "wb") as out:
            out.write(reply)
    engine.shutdown()


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints goes to the log
    asyncio.run(serve_verl_teacher(sys.argv[1], int(sys.argv[2]), answers))
