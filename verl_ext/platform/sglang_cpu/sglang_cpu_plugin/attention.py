"""Attention for the new tokens only.

SGLang 0.5.21's `torch_native` back end pads a sequence's queries to its whole length and computes every row, so a
cached prefix saves no attention. Here only the new tokens' rows are computed, under a mask that lets each see the
prefix and the tokens up to itself. Everything but plain causal attention stays SGLang's.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend_new_tokens(
    query_NHD: torch.Tensor,
    key_SHD: torch.Tensor,
    value_SHD: torch.Tensor,
    *,
    scaling: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """Output of the last N of S tokens of one sequence, (N, H, D); H heads, keys and values may have fewer."""
    new, whole = query_NHD.shape[0], key_SHD.shape[0]
    prefix = whole - new
    mask_NS = torch.ones(new, whole, dtype=torch.bool).tril(prefix) if prefix else None
    output = scaled_dot_product_attention(
        query_NHD.movedim(0, 1)[None],
        key_SHD.movedim(0, 1)[None].to(query_NHD.dtype),
        value_SHD.movedim(0, 1)[None].to(query_NHD.dtype),
        attn_mask=mask_NS,
        is_causal=mask_NS is None,
        scale=scaling,
        enable_gqa=enable_gqa,
    )
    return output[0].movedim(0, 1)


def install() -> None:
    """Entry point `sglang.srt.plugins`: runs in every process of a server, before its model is built."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    theirs = TorchNativeAttnBackend._run_sdpa_forward_extend

    def run_sdpa_forward_extend(
        self: Any,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        extend_prefix_lens: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        scaling: float | None = None,
        enable_gqa: bool = False,
        causal: bool = False,
        is_cross_attn: bool = False,
        sliding_window_size: int | None = None,
    ) -> torch.Tensor:
        windowed = sliding_window_size is not None and sliding_window_size > -1
        if encoder_lens is not None or is_cross_attn or windowed or not causal:
            return theirs(
                self, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, extend_prefix_lens,
                extend_seq_lens, encoder_lens, scaling, enable_gqa, causal, is_cross_attn, sliding_window_size,
            )  # fmt: skip
        start = 0
        rows = zip(req_pool_indices.tolist(), seq_lens.tolist(), extend_seq_lens.tolist(), strict=True)
        for request, length, new in rows:
            places = req_to_token[request, :length]
            output[start : start + new] = attend_new_tokens(
                query[start : start + new], k_cache[places], v_cache[places], scaling=scaling, enable_gqa=enable_gqa
            )
            start += new
        return output

    TorchNativeAttnBackend._run_sdpa_forward_extend = run_sdpa_forward_extend
