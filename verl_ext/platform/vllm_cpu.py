"""vLLM's CPU build, made fit for weight sync.

After loading, vLLM packs each linear weight for oneDNN (any AVX512 machine) or AMX and throws the original away:
the next weight update then fails (`'Parameter' object has no attribute 'weight_loader'`), and `lm_head`, whose
original stays, goes on answering from the packed copy of the old weights. Unpacked, every layer reads the
parameter that the update writes.
"""

import os
from typing import Any


def keep_weights_unpacked() -> None:
    """Entry point `vllm.general_plugins`, run by vLLM in each of its processes; acts where VERL_PLATFORM=cpu."""
    if os.environ.get("VERL_PLATFORM") != "cpu":
        return
    import vllm._custom_ops as ops
    import vllm.model_executor.layers.utils as layers

    ops._supports_onednn = False
    layers.check_cpu_sgl_kernel = _never


def _never(*_: Any) -> bool:
    return False
