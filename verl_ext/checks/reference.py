"""The student's own samples, and transformers' opinion of a teacher's weights.

Log-probs are nats at temperature 1, over the model's whole vocabulary; `R` response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_ext.teacher.types import ScoreRequest


@dataclass(frozen=True)
class Rollout:
    """One answer of the student to one row."""

    prompt_ids: list[int]
    """What the student saw."""
    teacher_prompt_ids: list[int]
    """What the teacher sees."""
    response_ids: list[int]
    """The answer, R token ids, the end token included."""
    rollout_logprobs: np.ndarray
    """The sampler's own, float32, (R,)."""
    teacher: str
    """Name of the row's teacher."""

    def request(self, *, own_prompt: bool) -> ScoreRequest:
        """To be scored under the student's own prompt, or the teacher's."""
        return ScoreRequest(self.prompt_ids if own_prompt else self.teacher_prompt_ids, self.response_ids)

    def probe_request(self) -> ScoreRequest:
        """The teacher's prompt and the answer, scored from the middle on: many tokens even where answers are short."""
        ids = [*self.teacher_prompt_ids, *self.response_ids]
        half = max(1, len(self.teacher_prompt_ids) // 2)
        return ScoreRequest(ids[:half], ids[half:])


Sampled = list[tuple[list[int], np.ndarray]]


def sample_with_transformers(
    model: str, prompts: Sequence[list[int]], *, max_tokens: int, dtype: str, device: str, seed: int
) -> Sampled:
    """Response ids and their log-probs, a prompt each, drawn at temperature 1."""
    import torch

    torch.manual_seed(seed)
    student = _load(model, dtype, device)
    sampled: Sampled = []
    for prompt in prompts:
        out = student.generate(
            torch.tensor([prompt], device=device),
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_new_tokens=max_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        response = out.sequences[0, len(prompt) :]
        table_RV = torch.cat(out.logits).float().log_softmax(-1)
        chosen_R = table_RV.gather(1, response[:, None])[:, 0]
        sampled.append((response.tolist(), chosen_R.cpu().numpy()))
    return sampled


def transformers_logprobs(model: str, requests: Sequence[ScoreRequest], *, dtype: str, device: str) -> list[np.ndarray]:
    """Log-probs of the responses, one sequence at a time, without padding; float32, `(R,)` a request."""
    import torch

    teacher = _load(model, dtype, device)
    expected = []
    with torch.no_grad():
        for request in requests:
            ids = torch.tensor([[*request.prompt_ids, *request.response_ids]], device=device)
            first = len(request.prompt_ids)
            table_RV = teacher(ids).logits[0, first - 1 : -1].float().log_softmax(-1)
            expected.append(table_RV.gather(1, ids[0, first:, None])[:, 0].cpu().numpy())
    return expected


def _load(model: str, dtype: str, device: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would run through the table
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    return loaded.to(device).eval()


def weights_bytes(folder: Path) -> int:
    """Size of a model's weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
