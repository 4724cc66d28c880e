"""What vLLM's offline engine needs in its environment on this machine."""

import os

# Beside other programs on a CPU; where the user did not set it.
CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",  # our vLLM plugin: sleep, do not spin, while waiting
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; by default vLLM takes half of the memory and clears it first
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def prepare_engine_environment() -> bool:
    """Call before vLLM is imported. Returns whether there is a GPU; without one, sets CPU_ENVIRONMENT."""
    import torch

    if torch.cuda.is_available():
        return True
    for key, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    return False
