"""Log-probs of a model by transformers, vLLM and SGLang, each as it is used here."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.types import Score, ScoreRequest


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


VLLM_SCORER = """
import json, sys
from verl_ext.sampling.vllm import close
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
model, sequences, adapter = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[4]
lora = {"enable_lora": True, "max_lora_rank": 32} if adapter else {}
llm = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=256, **lora)
params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0)
request = LoRARequest("adapter", 1, adapter) if adapter else None
# One at a time: vLLM's prompt log-probs of a batch fail with an adapter on lm_head (einsum over rows, not tokens).
outputs = [llm.generate([{"prompt_token_ids": ids}], params, lora_request=request)[0] for ids in sequences]
scores = [[out.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))] for out, ids in zip(outputs, sequences)]
json.dump(scores, open(sys.argv[3], "w"))
close(llm)
"""


def vllm_scores(model: Path, sequences: list[list[int]], folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """vLLM's log-prob of every token after the first, flat."""
    (folder / "in.json").write_text(json.dumps(sequences))
    files = [str(model), str(folder / "in.json"), str(folder / "out.json"), str(adapter or "")]
    command_ = [sys.executable, "-c", VLLM_SCORER, *files]
    environment = os.environ | {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
    subprocess.run(command_, env=environment, check=True, timeout=300)
    return torch.tensor([score for row in json.loads((folder / "out.json").read_text()) for score in row])


def sglang_scores(model: Path, python: str, sequences: list[list[int]], folder: Path) -> torch.Tensor:
    """SGLang's log-prob of every token after the first, flat."""
    config = TeacherConfig(model_path=str(model), python=python, context_length=512)
    vocabulary = load(model).config.vocab_size

    async def score(url: str) -> list[list[float]]:
        async with TeacherPool(config, vocab_size=vocabulary, urls=[url]) as pool:
            outcomes = await pool.score([ScoreRequest(ids[:1], ids[1:]) for ids in sequences])
            return [outcome.logprobs.tolist() for outcome in outcomes if isinstance(outcome, Score)]

    with ManagedServer(config, folder / "sglang.log") as server:
        return torch.tensor([score for row in asyncio.run(score(server.wait_ready())) for score in row])
