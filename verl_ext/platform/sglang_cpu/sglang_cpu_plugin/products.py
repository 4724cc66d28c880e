"""fp32 products by oneDNN.

`torch.nn.functional.linear` asks MKL, the slower of the two on a processor of another maker than its own: on two cores
of an AMD EPYC 171 against 202 GFLOP/s for 2,052 rows of 512 x 3,072, 151 against 163 for 512 x 32,000.
"""

from typing import Any

import torch


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`linear`, of fp32 on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def install() -> None:
    """Entry point `sglang.srt.plugins`, as that of `attention.py`."""
    from sglang.srt.layers.logits_processor import LogitsProcessor, should_apply_lm_head_quant_method
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
    from sglang.srt.utils import use_intel_amx_backend

    if not torch.backends.mkldnn.is_available():
        return
    their_apply, their_head = UnquantizedLinearMethod.apply, LogitsProcessor._compute_lm_head

    def is_ours(rows: torch.Tensor, layer: Any) -> bool:
        weight = getattr(layer, "weight", None)
        return (
            weight is not None
            and rows.dtype == weight.dtype == torch.float32
            and rows.device.type == weight.device.type == "cpu"
            and not use_intel_amx_backend(layer)
        )

    def apply(self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return product(x, layer.weight, bias) if is_ours(x, layer) else their_apply(self, layer, x, bias)

    def head(self: Any, hidden_states: torch.Tensor, lm_head: Any, embedding_bias: Any = None) -> torch.Tensor:
        quantized = should_apply_lm_head_quant_method(lm_head, getattr(lm_head, "quant_method", None))
        if quantized or hasattr(lm_head, "set_lora") or not is_ours(hidden_states, lm_head):
            return their_head(self, hidden_states, lm_head, embedding_bias)
        return product(hidden_states, lm_head.weight)

    UnquantizedLinearMethod.apply = apply
    LogitsProcessor._compute_lm_head = head
