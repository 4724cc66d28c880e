"""vLLM's log-probs of a prompt beside an adapter.

With LoRA on, vLLM 0.28 adds an adapter's part to every row of logits, and picks each row's adapter from the list of
rows that it samples from. The rows of a prompt whose log-probs are asked for are not in that list: on a CPU the engine
ends with an error, on a GPU the list is read beyond its end. Here they get the base's logits where several
requests are read together, which is right for one without an adapter, and for every adapter that leaves the head alone.

On a CPU vLLM's kernels also take "no adapter", index -1, for the last adapter there is, wherever a request without one
is read in one batch with others that have one.
"""

from typing import Any


class _NoAdapter:
    """In place of vLLM's wrapper of its LoRA kernels."""

    @staticmethod
    def add_lora_logits(logits: Any, *_: Any) -> Any:
        return logits


def base_logits_of_prompts() -> None:
    """Rows that are not those to be sampled from get no adapter's part."""
    from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA

    theirs = LogitsProcessorWithLoRA._get_logits

    def logits_of(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        kernels = self.punica_wrapper
        if len(kernels.sampler_indices) in (1, len(hidden_states)):  # one request alone: its adapter is every row's
            return theirs(self, hidden_states, *args, **kwargs)
        self.punica_wrapper = _NoAdapter()
        try:
            return theirs(self, hidden_states, *args, **kwargs)
        finally:
            self.punica_wrapper = kernels

    LogitsProcessorWithLoRA._get_logits = logits_of


def rows_without_adapter_stay_so() -> None:
    """On a CPU: what an adapter's first matrix makes of a row without adapter is 0, and so is all that follows."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    theirs = PunicaWrapperCPU._apply_shrink

    def shrink(self: Any, y: Any, x: Any, w_t_all: Any, scale: float) -> None:
        theirs(self, y, x, w_t_all, scale)
        rows = y.view(-1, y.shape[-1])
        rows[: len(self.token_lora_indices)][self.token_lora_indices[: len(rows)] < 0] = 0

    PunicaWrapperCPU._apply_shrink = shrink
