"""Stand-in for `sgl_kernel` on a machine without an accelerator.

No CPU wheel of sgl-kernel is published, yet SGLang's CPU path imports a handful of names from it at
module level. They belong to speculative decoding, which a scoring server never runs, so each raises when called.
Every other name stays missing on purpose: SGLang reads an ImportError as "not available" and
takes its plain torch path.
"""

from importlib import metadata
from typing import NoReturn

for _real in ("sgl-kernel", "sglang-kernel", "sglang-kernel-cpu", "sgl-kernel-cpu"):
    try:
        metadata.distribution(_real)
    except metadata.PackageNotFoundError:
        continue
    raise ImportError(
        f"the CPU stand-in for sgl_kernel would hide the real {_real}: "
        f"pip uninstall sglang-cpu-plugin, then reinstall {_real}"
    )


def _missing(*_args: object, **_kwargs: object) -> NoReturn:
    raise RuntimeError("speculative decoding needs the real sgl_kernel: take --speculative-* out of SGLang's arguments")


assign_draft_cache_locs_contiguous_cpu = _missing
assign_extend_cache_locs_cpu = _missing
assign_req_to_token_pool_cpu = _missing
build_tree_kernel_efficient_cpu = _missing
copy_all_layer_kv_cache_cpu = _missing
fill_accept_out_cache_loc_cpu = _missing
fill_bonus_tokens_cpu = _missing
rotate_input_ids_cpu = _missing
verify_tree_greedy_cpu = _missing
