"""The engines by the names that `teacher.engine` has for them."""

from verl_ext.teacher.engines.engine import Engine
from verl_ext.teacher.engines.sglang import SGLang
from verl_ext.teacher.engines.vllm import VLLM

KNOWN: dict[str, Engine] = {"sglang": SGLang(), "vllm": VLLM()}


def engine_of(name: str) -> Engine:
    """That of `teacher.engine`. ValueError if there is none of that name."""
    if name not in KNOWN:
        raise ValueError(f"teacher.engine: {name!r} must be one of {', '.join(KNOWN)}")
    return KNOWN[name]
