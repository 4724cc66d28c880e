"""vLLM's processes follow their parent also where a program that is not one of our verbs started them, as Ray does."""

from verl_ext.run.parent import follow_parent


def load() -> None:
    """Entry point `vllm.general_plugins`, run by vLLM in each of its processes."""
    follow_parent()
