"""The replay buffer with its tokens on the GPU (`replay.device=cuda`)."""

import json
import time

import numpy as np
import torch

from verl_ext.trainer.replay.buffer import PriorityBuffer
from verl_ext.trainer.replay.config import ReplayConfig
from verl_ext.trainer.replay.storage import TOKEN_FIELDS, Rows

LENGTH, BATCH, STEPS = 1024, 256, 20


def rows_of(step: int) -> Rows:
    ids_N = torch.randint(150_000, (LENGTH * BATCH,), generator=torch.Generator().manual_seed(step), dtype=torch.int32)
    ones_B = np.ones(BATCH)
    return Rows(
        token_ids_N=ids_N,
        rollout_logprobs_N=-0.25 * ids_N.float(),
        teacher_logprobs_N=-0.5 * ids_N.float(),
        mask_N=ids_N % 2 > 0,
        top_ids_NK=torch.zeros(len(ids_N), 0, dtype=torch.int32),
        top_logprobs_NK=torch.zeros(len(ids_N), 0),
        lengths_B=LENGTH * np.ones(BATCH, dtype=np.int64),
        prompt_lengths_B=64 * ones_B,
        rewards_B=ones_B,
        truncated_B=ones_B > 0,
        first_versions_B=step * ones_B,
        last_versions_B=step * ones_B,
    )


def test_a_buffer_on_the_gpu_draws_what_one_on_the_host_draws(machine, out):
    """And both hold the newest 1,024 samples of 1,024 tokens, over five wraps of the ring."""
    devices = ["cpu", machine.platform]
    settings = {"share": 0.5, "capacity_tokens": 2**20, "max_uses": 100, "max_age": 100}
    buffers = [PriorityBuffer(ReplayConfig(device=device, **settings), seed=0) for device in devices]
    seconds = [0.0, 0.0]
    for step in range(STEPS):
        rows, drawn = rows_of(step), []
        for place, buffer in enumerate(buffers):
            start = time.perf_counter()
            buffer.add(rows, np.arange(BATCH) / BATCH)
            drawn.append(buffer.draw(BATCH, step=step, version=step))
            seconds[place] += time.perf_counter() - start
        assert drawn[0].numbers_B.tolist() == drawn[1].numbers_B.tolist()
        for name in TOKEN_FIELDS:
            assert torch.equal(getattr(drawn[0].rows, name), getattr(drawn[1].rows, name)), (step, name)
    state = {name: value.tolist() for name, value in buffers[1].state_dict().items() if name == "numbers"}
    assert state["numbers"] == [STEPS * BATCH - 1024, STEPS * BATCH, STEPS * BATCH * LENGTH]
    per_step = {device: total / STEPS for device, total in zip(("host", "device"), seconds, strict=True)}
    (out / "replay.json").write_text(json.dumps({"device": machine.gpu, "seconds_a_step": per_step}))
