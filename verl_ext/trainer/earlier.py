"""An earlier student as its own teacher: a second adapter beside the student's in vLLM's workers.

`teacher.mode=base` with `teacher.refresh_every=N` above 1, or with `teacher.ema`: at the weight sync of every N-th step
the teacher's adapter becomes `ema` x itself + (1 - ema) x the student's, which has just arrived; the first one is its
start. It is changed where the student's is, while nothing is sampled or scored, and lies in the checkpoint.

The trainer gives the orders (`refreshing.py`), the workers hold the adapter.
"""

from typing import Any

import torch
from safetensors.torch import load_file, save_file

FILE = "teacher_adapter.safetensors"


def moved(teacher: dict[str, torch.Tensor] | None, student: dict[str, torch.Tensor], ema: float) -> Any:
    """`ema` x the teacher + (1 - ema) x the student, by tensor, in float32; without a teacher, the student."""
    if teacher is None:
        return {name: tensor.float().clone() for name, tensor in student.items()}
    return {name: torch.lerp(tensor.float(), teacher[name].to(tensor.device), ema) for name, tensor in student.items()}


class TeachingWorker:
    """In vLLM's worker. It is mixed into a class of vLLM's, whose own `__init__` runs."""

    _teacher: dict[str, torch.Tensor] | None = None
    _refresh: float | None = None
    """`ema` of the refresh that the next adapter brings."""

    def refresh_teacher(self, ema: float) -> None:
        """With the adapter that arrives next."""
        self._refresh = ema

    def save_teacher(self, file: str) -> None:
        """One of the workers writes; all have the same."""
        if self._teacher is not None and self.rank == 0:  # pyright: ignore[reportAttributeAccessIssue]  vLLM's
            save_file({name: tensor.cpu().contiguous() for name, tensor in self._teacher.items()}, file)

    def load_teacher(self, file: str) -> None:
        self._teacher = load_file(file)

    def _update_weights(self, weights: Any, peft_config: Any, base_sync_done: bool) -> Any:
        """verl's, which takes the student's adapter; the teacher's goes beside it."""
        _super: Any = super()
        done = _super._update_weights(weights, peft_config=peft_config, base_sync_done=base_sync_done)
        if peft_config and base_sync_done:
            if self._refresh is not None:
                self._teacher, self._refresh = moved(self._teacher, dict(weights), self._refresh), None
            if self._teacher is not None:
                self._serve(self._teacher, dict(weights), peft_config)
        return done

    def _serve(self, teacher: dict[str, torch.Tensor], like: dict[str, torch.Tensor], peft_config: Any) -> None:
        """Under its own number, in the dtype in which the student's adapter came."""
        from verl.utils.vllm import TensorLoRARequest

        worker: Any = self
        tensors = {name: teacher[name].to(tensor, copy=True) for name, tensor in like.items()}
        request = teachers_request()
        worker.remove_lora(request.lora_int_id)
        worker.add_lora(
            TensorLoRARequest(
                lora_name=request.lora_name,
                lora_int_id=request.lora_int_id,
                lora_path=request.lora_path,
                peft_config=peft_config,
                lora_tensors=tensors,
            )
        )


def teachers_request() -> Any:
    """vLLM's name for the teacher's adapter, the number after the student's."""
    from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, VLLM_LORA_PATH
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name="teacher", lora_int_id=VLLM_LORA_INT_ID + 1, lora_path=VLLM_LORA_PATH)
