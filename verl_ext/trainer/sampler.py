"""verl's vLLM server, whose answers say why they ended, which answers others with a key alone, and whose base scores.

verl's calls an end token and a cut the same, `completed`. A length does not tell them apart: an end token may be the
last token allowed, and `rollout.max_model_len` may cut earlier.
"""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import ray
from verl.plugin.platform import get_platform
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm.v1.engine.exceptions import EngineDeadError

from verl_ext.platform.warm_workers import spawn_warm
from verl_ext.trainer.base_teacher import EARLIER, STUDENT, scores_of
from verl_ext.trainer.earlier import teachers_request
from verl_ext.trainer.early import EarlyActor
from verl_ext.trainer.presence import LOOK_S
from verl_ext.trainer.shared_calls import Answering, Answers, Requests, SamplerLost
from verl_ext.trainer.support import ASKED, likely_of
from verl_ext.trainer.vllm_door import middleware_of


class FinishReasonServer(vLLMHttpServer):
    """`extra_fields["finish_reason"]` of an answer is vLLM's own: `stop`, `length` or `abort`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.enforce_eager:  # an engine that compiles reads settings of vLLM's as it begins
            spawn_warm()
        self._reasons: dict[str, str | None] = {}
        self._scored: dict[str, Any] = {}
        """By request: what is to be scored of its prompt; once it ended, the scores."""
        self._likely: dict[str, Any] = {}
        """By request: how many of the most likely tokens are wanted with each sampled one; then vLLM's log-probs."""
        self._answering = Answering(self.generate)

    async def begin(self, client: str, requests: Requests) -> None:
        await self._answering.begin(client, requests)

    async def ended(self, client: str) -> Answers:
        return await self._answering.ended(client)

    async def gone(self) -> str:
        """Returns when the engine has ended. A node that only helps another has none, and ends with what it runs."""
        while self.node_rank != 0 or not self.engine.errored:
            await asyncio.sleep(LOOK_S)
        return "its engine ended"

    def _get_worker_extension_cls(self) -> str:
        return "verl_ext.trainer.weight_socket.ReceivingWorker"

    async def run_server(self, args: Namespace) -> None:
        of_vllm = self.config.engine_kwargs.get("vllm") or {}
        args.max_loras = of_vllm.get("max_loras", args.max_loras)  # verl writes 1 over it
        args.middleware = [*args.middleware, middleware_of(self.config.prometheus.enable)]
        await super().run_server(args)
        self.engine.generate = self._noting(self.engine.generate)

    async def generate(
        self, *args: Any, request_id: str, scored: dict[str, Any] | None = None, **kwargs: Any
    ) -> TokenOutput:
        """verl's. With `scored`, `{"start": ..., "top_k": ..., "adapter": ...}`, `extra_fields["scores"]` holds the
        log-probs of the prompt from its token `start` on, with the adapter that it names (`base_teacher.py`). Where
        the sampling parameters ask for them, the most likely tokens are in the extra fields too (`support.py`)."""
        self._reasons[request_id] = None
        asked = kwargs["sampling_params"]
        # The text of an answer is made where a `stop` string is looked for in it; verl reads the tokens.
        kwargs["sampling_params"] = params = {"detokenize": bool(asked.get("stop")), **asked}
        likely = params.pop(ASKED, 0)
        if likely:
            self._likely[request_id] = likely
        if scored is not None:
            self._scored[request_id] = scored
            params["prompt_logprobs"] = scored["top_k"]
        try:
            output = await super().generate(*args, request_id=request_id, **kwargs)
        except EngineDeadError as error:
            raise SamplerLost(str(error)) from error
        finally:
            reason, scores = self._reasons.pop(request_id), self._scored.pop(request_id, None)
            logprobs = self._likely.pop(request_id, None)
        output.extra_fields["finish_reason"] = reason or "abort"
        if likely:
            output.extra_fields |= likely_of(logprobs if output.token_ids else None, likely)
        if scored is not None:
            for of_verl in ("prompt_ids", "prompt_logprobs"):  # every position's, a list each
                output.extra_fields.pop(of_verl, None)
            output.extra_fields["scores"] = scores
        return output

    def _noting(self, theirs: Any) -> Any:
        """vLLM's `generate`, which notes the reason of the requests that are verl's; others come over HTTP."""

        async def generate(
            prompt: Any, sampling_params: Any, request_id: str, *args: Any, **kwargs: Any
        ) -> AsyncIterator[Any]:
            asked = self._scored.get(request_id)
            if asked is not None and asked["adapter"] != STUDENT:
                kwargs["lora_request"] = teachers_request() if asked["adapter"] == EARLIER else None
            if request_id in self._likely:
                sampling_params.logprobs = self._likely[request_id]
            async for output in theirs(prompt, sampling_params, request_id, *args, **kwargs):
                if asked is not None and output.finished and output.prompt_logprobs:
                    self._scored[output.request_id] = scores_of(
                        output.prompt_logprobs, output.prompt_token_ids, asked["start"], asked["top_k"]
                    )
                if output.request_id in self._reasons and output.outputs:
                    self._reasons[output.request_id] = output.outputs[0].finish_reason
                    if output.request_id in self._likely:
                        self._likely[output.request_id] = output.outputs[0].logprobs
                yield output

        return generate


class FinishReasonReplica(vLLMReplica):
    """verl's replica of that server."""

    early: EarlyActor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = self.early or ray.remote(FinishReasonServer)


def start_early(config: Any) -> None:
    """Start the server's process, on one node, where there is to be one."""
    rollout = config.actor_rollout_ref.rollout
    ranks = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    if rollout.name == "vllm" and ranks == config.trainer.n_gpus_per_node:
        FinishReasonReplica.early = EarlyActor(
            FinishReasonServer, indifferent=("scheduling_strategy",), **verls_options(rollout)
        )


def verls_options(rollout: Any) -> dict[str, Any]:
    """What verl starts the first server's actor with (`vLLMReplica.launch_servers`)."""
    platform, concurrency = get_platform(), cast(property, vLLMReplica.max_concurrency)
    assert concurrency.fget is not None
    return {
        "runtime_env": {
            "env_vars": {**dict.fromkeys(platform.ray_noset_envvars(), "1"), **platform.rollout_env_vars()}
        },
        "name": "vllm_server_0_0",
        "max_concurrency": concurrency.fget(SimpleNamespace(config=rollout)),
    }
