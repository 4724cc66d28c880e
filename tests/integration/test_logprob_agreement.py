"""Student's engine, teacher's engine and transformers give the same fp32 weights the same log-probs."""

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.types import Score, ScoreRequest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TOLERANCE = 1e-4  # nats, fp32
PROMPT, SEQUENCES, LENGTH = 10, 20, 110  # 2,000 scored tokens

VLLM_SCORER = """
import json, sys
from verl_ext.sampling.vllm import close
from vllm import LLM, SamplingParams
model, sequences, prompt = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
llm = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=256)
params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0)
outputs = llm.generate([{"prompt_token_ids": ids} for ids in sequences], params)
scores = [[out.prompt_logprobs[i][ids[i]].logprob for i in range(prompt, len(ids))]
          for out, ids in zip(outputs, sequences)]
json.dump(scores, open(sys.argv[4], "w"))
close(llm)
"""


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(258) for _ in range(LENGTH)] for _ in range(SEQUENCES)]


def transformers_logprobs(model: torch.nn.Module, sequences: list[list[int]], shift: int = 0) -> torch.Tensor:
    """Log-probs of the tokens from PROMPT on, flat; `shift` reads them that many positions off (the control)."""
    out = []
    with torch.no_grad():
        for ids in sequences:
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            targets = torch.tensor(ids[PROMPT:])
            rows = table[PROMPT - 1 - shift : len(ids) - 1 - shift]
            out.append(rows.gather(1, targets[:, None])[:, 0])
    return torch.cat(out)


@pytest.fixture(scope="module")
def reference(tiny_qwen3: Path, sequences: list[list[int]]) -> torch.Tensor:
    return transformers_logprobs(AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32), sequences)


@pytest.fixture(scope="module")
def sglang_logprobs(tiny_qwen3: Path, teacher_python: str, sequences, tmp_path_factory) -> torch.Tensor:
    config = TeacherConfig(model_path=str(tiny_qwen3), python=teacher_python, context_length=512)

    async def score(url: str) -> list[list[float]]:
        async with TeacherPool(config, vocab_size=258, urls=[url]) as pool:
            outcomes = await pool.score([ScoreRequest(ids[:PROMPT], ids[PROMPT:]) for ids in sequences])
            return [outcome.logprobs.tolist() for outcome in outcomes if isinstance(outcome, Score)]

    with ManagedServer(config, tmp_path_factory.mktemp("agreement") / "teacher.log") as server:
        return torch.tensor(asyncio.run(score(server.wait_ready()))).flatten()


@pytest.fixture(scope="module")
def vllm_logprobs(tiny_qwen3: Path, sequences, tmp_path_factory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "in.json").write_text(json.dumps(sequences))
    command = [sys.executable, "-c", VLLM_SCORER, str(tiny_qwen3), str(folder / "in.json"), str(PROMPT)]
    environment = os.environ | {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
    subprocess.run([*command, str(folder / "out.json")], env=environment, check=True, timeout=300)
    return torch.tensor(json.loads((folder / "out.json").read_text())).flatten()


def largest_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape == (SEQUENCES * (LENGTH - PROMPT),)
    return (found - wanted).abs().max().item()


def test_three_engines_agree(reference, sglang_logprobs, vllm_logprobs):
    assert largest_gap(sglang_logprobs, reference) <= TOLERANCE
    assert largest_gap(vllm_logprobs, reference) <= TOLERANCE
    assert largest_gap(vllm_logprobs, sglang_logprobs) <= TOLERANCE


def test_a_shift_by_one_position_would_be_caught(tiny_qwen3, sequences, sglang_logprobs):
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    assert largest_gap(sglang_logprobs, transformers_logprobs(model, sequences, shift=1)) > 100 * TOLERANCE


def test_a_wrong_weight_would_be_caught(tiny_qwen3, sequences, vllm_logprobs):
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.mul_(1.01)
    assert largest_gap(vllm_logprobs, transformers_logprobs(model, sequences)) > 10 * TOLERANCE
