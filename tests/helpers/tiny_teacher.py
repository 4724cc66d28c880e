"""A tiny model that scores in this process, and copies of it that are slightly off."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from verl_ext.teacher.store.fingerprint import TeacherFingerprint
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError, TeacherUnavailableError

VOCAB = 64
FINGERPRINT = TeacherFingerprint("m", None, "float32", "auto", "sglang", "0.5.21")


class TransformersScorer:
    """Scores with a transformers model in this process."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self.model = model

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        scores: list[Score | TeacherError] = []
        for request in requests:
            ids = torch.tensor([[*request.prompt_ids, *request.response_ids]])
            with torch.no_grad():
                logprobs_TV = self.model(ids).logits[0].log_softmax(-1)
            first = len(request.prompt_ids) - 1
            picked_R = logprobs_TV[first:-1].gather(1, ids[0, first + 1 :, None])[:, 0]
            scores.append(Score(picked_R.numpy()))
        return scores

    async def prime(self, request: ScoreRequest) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


class BrokenScorer(TransformersScorer):
    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        return [TeacherUnavailableError("gone") for _ in requests]


def make_model() -> Qwen3ForCausalLM:
    """Random, the same each time."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, tie_word_embeddings=True, **shape, **heads)).eval()  # pyright: ignore[reportArgumentType]  typed field by field


def with_noise(model: Qwen3ForCausalLM, share: float) -> Qwen3ForCausalLM:
    """A copy with relative noise in one norm's weights."""
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    weight = copy.get_parameter("model.layers.0.input_layernorm.weight")
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    weight.data *= 1 + share * noise
    return copy.eval()


def edit_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
