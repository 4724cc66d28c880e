"""Attention in a row of one prompt and the answers to it: an answer's tokens meet their prompt and their own answer.

A mask over the row would say the same, and have every answer multiplied with every other: for n answers, some n times
the work. Here each answer is a row of its own, behind its prompt's keys.

transformers' `sdpa` is replaced by one that does so where a call brings `shared`; without, it is transformers' own.

Shapes: `G` prompts, `B` answers, `P` and `A` columns of the longest prompt and answer, `R` of all answers of a prompt;
`H` heads (of keys and values there may be fewer), `D` a head's width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Tensor = torch.Tensor

ANY = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""For a mask that nobody reads: transformers takes one of this many dimensions as it is, and makes none."""


@dataclass(frozen=True)
class SharedRows:
    """Which columns are whose: P of a prompt, which ends in column P - 1, then its answers, R columns in all."""

    group_B: Tensor
    """The prompt that an answer belongs to."""
    places_BA: Tensor
    """Where an answer's tokens are among the G x R columns; past its end, anywhere."""
    slots_GR: Tensor
    """The inverse: where, among B x A, a column's token is; anywhere for a column that is nobody's."""
    prompt_mask_G1PP: Tensor
    answer_mask_B1AK: Tensor
    """K = P + A: the keys of the prompt, and the answer's own."""

    def to(self, device: torch.device) -> "SharedRows":
        return SharedRows(**{name: value.to(device) for name, value in vars(self).items()})


def shared_rows(prompt_lengths: list[int], group_of: list[int], starts: list[int], lengths: list[int]) -> SharedRows:
    """Of G prompts, and of B answers: the prompt it belongs to, the first of its R columns, and its length."""
    widest, longest = max(prompt_lengths), max(1, *lengths)
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    columns = max(1, *ends)
    group_B, first_B = torch.tensor(group_of), torch.tensor(starts)
    token_A = torch.arange(longest)
    places_BA = (group_B * columns + first_B)[:, None] + token_A
    is_token_BA = token_A < torch.tensor(lengths)[:, None]
    slots_GR = torch.zeros(len(prompt_lengths) * columns, dtype=torch.long)
    slots_GR[places_BA[is_token_BA]] = torch.arange(is_token_BA.numel()).view(is_token_BA.shape)[is_token_BA]
    is_prompt_GP = torch.arange(widest) >= widest - torch.tensor(prompt_lengths)[:, None]
    earlier_PP, earlier_AA = (torch.ones(size, size, dtype=torch.bool).tril() for size in (widest, longest))
    sees_GPP = is_prompt_GP[:, None] & earlier_PP | torch.eye(widest, dtype=torch.bool)  # padding sees itself
    prompt_BAP = is_prompt_GP[group_B][:, None].expand(-1, longest, -1)
    own_BAA = earlier_AA.expand(len(group_B), -1, -1)
    return SharedRows(
        group_B=group_B,
        places_BA=torch.where(is_token_BA, places_BA, 0),
        slots_GR=slots_GR.view(-1, columns),
        prompt_mask_G1PP=sees_GPP[:, None],
        answer_mask_B1AK=torch.cat([prompt_BAP, own_BAA], dim=2)[:, None],
    )


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared: SharedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: (G, H, L, D) in, (G, L, H, D) out; with `shared`, L = P + R."""
    if shared is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = shared.prompt_mask_G1PP.shape[-1]
    key_of_prompt, value_of_prompt = key[:, :, :prompt], value[:, :, :prompt]
    own_query, own_key, own_value = (
        _taken(states[:, :, prompt:].transpose(1, 2), shared.places_BA).transpose(1, 2)
        for states in (query, key, value)
    )
    prompts_GPHD, _ = sdpa_attention_forward(
        module, query[:, :, :prompt], key_of_prompt, value_of_prompt, shared.prompt_mask_G1PP, **kwargs
    )
    answers_BAHD, _ = sdpa_attention_forward(
        module,
        own_query,
        torch.cat([key_of_prompt[shared.group_B], own_key], dim=2),
        torch.cat([value_of_prompt[shared.group_B], own_value], dim=2),
        shared.answer_mask_B1AK,
        **kwargs,
    )
    return torch.cat([prompts_GPHD, _taken(answers_BAHD, shared.slots_GR)], dim=1), None


def _taken(states: Tensor, places: Tensor) -> Tensor:
    """Of states (rows, columns, H, D) those at places among all columns, in the places' shape."""
    return states.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape)


AttentionInterface.register("sdpa", attend)
