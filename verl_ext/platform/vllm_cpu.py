"""vLLM's CPU build, made fit for weight sync, for sharing two cores, and for a short start.

After loading, vLLM packs each linear weight for oneDNN (any AVX512 machine) or AMX and throws the original away:
the next weight update then fails (`'Parameter' object has no attribute 'weight_loader'`), and `lm_head`, whose
original stays, goes on answering from the packed copy of the old weights. Unpacked, every layer but experts reads the
parameter that the update writes, and oneDNN multiplies with it as it is.

vLLM's processes also spin for a second after their last message before they sleep on a socket, which on two
cores is a second taken from the trainer's update. Here they sleep at once. A sleeper sometimes misses its wake-up,
and vLLM looks again only after 5 s; here after 10 ms.

On a CPU vLLM spawns the worker below its engine, which imports for seconds what the engine has imported. Here it is
forked, as vLLM's are elsewhere: the engine's process has used no thread pool by then. How tokens are sampled and
counted: vllm_draws.py.
"""

import functools
import multiprocessing
import os
from typing import Any

from verl_ext.platform.products import product
from verl_ext.platform.vllm_draws import count_ranks_uncompiled, draw_one_number_a_token
from verl_ext.platform.vllm_prompts import base_logits_of_prompts, rows_without_adapter_stay_so

RECHECK_MS = 10


def load() -> None:
    """Entry point `vllm.general_plugins`, run by vLLM in each of its processes; most of it where VERL_PLATFORM=cpu."""
    base_logits_of_prompts()
    if os.environ.get("VERL_PLATFORM") == "cpu":
        rows_without_adapter_stay_so()
        keep_weights_unpacked()
        pack_experts_again()
        multiply_linear_layers_with_onednn()
        sleep_when_idle()
        count_ranks_uncompiled()
        draw_one_number_a_token()
        fork_workers()


def fork_workers() -> None:
    """In the engine's process, which vLLM begins; how that one itself begins is the caller's."""
    if multiprocessing.parent_process() is not None:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"


def keep_weights_unpacked() -> None:
    """Every linear layer goes through `torch.nn.functional.linear` on its own parameter."""
    import vllm._custom_ops as ops
    import vllm.model_executor.layers.utils as layers

    ops._supports_onednn = False
    layers.check_cpu_sgl_kernel = _never


def pack_experts_again() -> None:
    """Experts, whose kernel takes packed weights alone, are packed after every update and not the first time only.

    New weights arrive as they are, in place of the packed ones; verl has vLLM finish an update, which packs nothing.

    Raises (in vLLM's process):
        ValueError: for experts of a width that vLLM pads: new weights would not fit.
    """
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod as Method

    theirs = Method._setup_kernel

    def setup(self: Any, layer: Any, w13: Any, w2: Any) -> None:
        width, is_update = w2.shape[-1], self.moe_kernel is not None
        theirs(self, layer=layer, w13=w13, w2=w2)
        experts = self.moe_kernel.fused_experts
        if not isinstance(experts, CPUUnquantizedExperts):  # with adapters it takes others
            return
        if (padded := experts._padded_intermediate_size(experts.moe_config)) != width:
            raise ValueError(f"experts are {width} wide, which vLLM pads to {padded} on a CPU; give them that width")
        if is_update:
            experts.process_weights_after_loading(layer)

    Method._setup_kernel = setup


def multiply_linear_layers_with_onednn() -> None:
    """In fp32, where `torch.nn.functional.linear` asks MKL: of the two the slower one on a processor of another maker.

    On two cores of an AMD EPYC, 128 rows: 125 GFLOP/s against 185 for a head of 512 x 32,000, 156 against 200 for 512 x
    3,072; a product that takes less than 0.1 ms is 0.015 ms slower.
    """
    import torch
    import vllm.model_executor.layers.utils as layers

    if not torch.backends.mkldnn.is_available():
        return
    theirs = layers.dispatch_cpu_unquantized_gemm

    def dispatch(layer: Any, remove_weight: bool) -> None:
        theirs(layer, remove_weight)
        if layer.weight.dtype == torch.float32:
            layer.cpu_linear = product

    layers.dispatch_cpu_unquantized_gemm = dispatch


def sleep_when_idle() -> None:
    """Readers of vLLM's shared-memory queue wait on its socket without spinning first, and look again soon."""
    import vllm.distributed.device_communicators.shm_broadcast as queue

    sleepy = functools.partialmethod(queue.SpinCondition.__init__, busy_loop_s=0.0)
    queue.SpinCondition.__init__ = sleepy  # pyright: ignore[reportAttributeAccessIssue]
    queue.SHM_READER_RECHECK_INTERVAL_MS = RECHECK_MS


def _never(*_: Any) -> bool:
    return False
