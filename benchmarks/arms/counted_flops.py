"""What `torch.utils.flop_counter` counts of a model without weights (meta device), beside the ledger's formula.

`T` tokens of one sequence. A pass over the whole sequence multiplies every query with every key and masks half of it: T
x T pairs. Read token by token, each after the keys that the tokens before it left, a sequence meets the pairs that
attention needs: T (T + 1) / 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from verl_ext.ledger.flops import Work, adapters_of, backward, forward, pairs
from verl_ext.run.model_shape import shape_from


@dataclass(frozen=True)
class Counted:
    """FLOPs of one pass, counted by torch and by the formula."""

    what: str
    counted: float
    formula: float

    @property
    def error(self) -> float:
        """Share by which the formula is off; above 0 where it counts too much."""
        return self.formula / self.counted - 1


def build(config: Mapping[str, Any], rank: int, targets: Sequence[str], device: str) -> Any:
    """A model of this configuration whose attention is plain matrix products; with LoRA as verl builds it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    with torch.device(device):
        # torch counts no grouped matrix products, which transformers would take for experts.
        how: Any = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
        model = AutoModelForCausalLM.from_config(settings, **how)
        if not rank:
            return model
        from peft import LoraConfig, get_peft_model

        model.enable_input_require_grads()
        return get_peft_model(model, LoraConfig(r=rank, target_modules=list(targets)))


def token_by_token(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a sequence, (1, T, V), each token read with what the tokens before it left."""
    from transformers import DynamicCache

    cache, logits = DynamicCache(), []
    for token in ids[0]:
        logits.append(model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1)


def compare(
    config: Mapping[str, Any], tokens: int, rank: int = 0, targets: Sequence[str] = (), *, whole: bool, device: str
) -> list[Counted]:
    """Forward and backward of a sequence of `tokens`, read as a `whole` or token by token."""
    shape = shape_from(config)
    model, adapters = build(config, rank, targets, device), adapters_of(shape, rank, targets)
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    mask = torch.zeros(1, 1, tokens, tokens, device=device)  # given, since transformers reads values to make one
    with FlopCounterMode(display=False) as counter:
        if whole:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        else:
            logits = token_by_token(model, ids)
        ahead = counter.get_total_flops()
        logits.sum().backward()
    work = Work(tokens, tokens**2 if whole else pairs(0, tokens), tokens)
    back = counter.get_total_flops() - ahead
    return [
        Counted("forward", ahead, forward(shape, work, adapters)),
        Counted("backward", back, backward(shape, work, adapters)),
    ]
