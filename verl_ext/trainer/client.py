"""verl's client of vLLM, to whose callers neither a weight sync nor a server's death shows in the middle of an answer.

verl's own for this (`FullyAsyncLLMServerClient`) waits a second before it goes on, drops what a server says beside the
tokens (why an answer ended), and draws the tokens of every part from the same random numbers where requests are seeded.
"""

import asyncio
import zlib
from typing import Any

import numpy as np
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_ext.trainer.shared_calls import SamplerLost
from verl_ext.trainer.support import joined

ABORTED = ("aborted", "abort")
GOES_FIRST = -1
"""A request's priority in vLLM: the lower the sooner, 0 where nothing is said (`rollout.scheduling_policy`)."""


class ResumingClient(LLMServerClient):
    """An answer that a server gave up for a weight sync goes on where it stopped, under the new weights.

    `extra_fields["tokens_by_version"]` holds, part by part, the weight version and the number of tokens it sampled.
    """

    async def generate(
        self,
        request_id,
        *,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
        audio_data: list[Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TokenOutput:
        budget = sampling_params.get("max_tokens") or self.config.actor_rollout_ref.rollout.response_length
        parts: list[TokenOutput] = []
        tokens: list[int] = []
        while True:
            # What is begun goes before what waits to begin, so that it is not interrupted again and again.
            first = {"priority": GOES_FIRST} if tokens else {}
            try:
                part = await super().generate(
                    request_id,
                    prompt_ids=[*prompt_ids, *tokens],
                    sampling_params=part_of(sampling_params, len(tokens), budget),
                    image_data=image_data,
                    video_data=video_data,
                    audio_data=audio_data,
                    mm_processor_kwargs=mm_processor_kwargs,
                    **(kwargs | first),
                )
            except SamplerLost:
                # The prompt has not failed: it stays under way, as which a checkpoint keeps it, until the trainer has
                # seen the same (`presence.py`) and ends the run.
                await asyncio.Event().wait()
                raise
            parts.append(part)
            tokens.extend(part.token_ids)
            # The server parks what comes while it gets weights, so this does not spin.
            if part.stop_reason not in ABORTED or len(tokens) >= budget:
                return merged(parts)


def part_of(sampling_params: dict[str, Any], sampled: int, budget: int) -> dict[str, Any]:
    """How an answer is sampled on from its token `sampled`: what is left of its length, another seed."""
    if not sampled:
        return sampling_params
    seeded = {}
    if "seed" in sampling_params:
        seeded = {"seed": zlib.crc32(f"{sampling_params['seed']}/{sampled}".encode())}
    return sampling_params | {"max_tokens": budget - sampled} | seeded


def merged(parts: list[TokenOutput]) -> TokenOutput:
    """One answer of its parts: why it ended is the last one's word, and that it filled its length is an end too."""
    first, last = parts[0], parts[-1]
    versions = [[part.extra_fields["global_steps"], len(part.token_ids)] for part in parts if part.token_ids]
    fields = last.extra_fields | {"tokens_by_version": versions or [[last.extra_fields["global_steps"], 0]]}
    if len(parts) == 1:
        return last.model_copy(update={"extra_fields": fields})
    fields |= joined([part.extra_fields for part in parts])
    full = last.stop_reason in ABORTED
    fields |= {
        "min_global_steps": first.extra_fields["global_steps"],
        "num_cached_tokens": first.extra_fields.get("num_cached_tokens"),
        "finish_reason": "length" if full else last.extra_fields["finish_reason"],
    }
    sampled = [part for part in parts if part.token_ids]
    routed = [part.routed_experts[-len(part.token_ids) :] for part in sampled[1:] if part.routed_experts is not None]
    if sampled and sampled[0].routed_experts is not None:
        routed = [sampled[0].routed_experts, *routed]
    return TokenOutput(
        token_ids=[token for part in sampled for token in part.token_ids],
        log_probs=[logprob for part in sampled for logprob in part.log_probs or []],
        routed_experts=np.concatenate(routed) if routed else None,
        stop_reason="length" if full else last.stop_reason,
        num_preempted=sum(part.num_preempted or 0 for part in parts),
        extra_fields=fields,
    )
