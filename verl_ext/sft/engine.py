"""verl's FSDP engine with what Tinker's recipe needs: a linear schedule, the LR that was used, adapters in fp32.

verl picks an engine by device and vendor, and lets `VERL_ENGINE_VENDOR` name the vendor: ours is `VENDOR`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from verl.workers.config import FSDPOptimizerConfig
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_ext.platform import adapted_head as adapted_head  # importing it is the effect
from verl_ext.platform import loading as loading  # the same
from verl_ext.sft.schedule import linear_multiplier, warmup_steps

_Engine: Any = FSDPEngineWithLMHead  # verl's register decorator hides the class from pyright

VENDOR = "verl_ext_sft"
LINEAR = "linear"


@dataclass
class LinearOptimizerConfig(FSDPOptimizerConfig):
    """verl's optimizer configuration (`optim._target_`) that also takes `lr_scheduler_type: linear`."""

    def __post_init__(self) -> None:
        asked = self.lr_scheduler_type
        if asked == LINEAR:
            self.lr_scheduler_type = "constant"  # passes verl's assertion
        super().__post_init__()
        if asked == LINEAR:
            self.lr_scheduler_type = LINEAR


def linear_scheduler(optimizer: torch.optim.Optimizer, config: FSDPOptimizerConfig) -> LambdaLR:
    """The linear schedule as the LR scheduler that verl steps and saves."""
    total = config.total_training_steps
    warmup = warmup_steps(config.lr_warmup_steps, config.lr_warmup_steps_ratio, total)
    # Called once more after the last step, where the multiplier is 0.
    return LambdaLR(optimizer, lambda step: linear_multiplier(step, total, warmup))


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu"], vendor=VENDOR)
class SftEngine(_Engine):
    """verl's engine for a language model; three methods differ."""

    def _build_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        if self.optimizer_config.lr_scheduler_type != LINEAR:
            return super()._build_lr_scheduler(optimizer)
        return linear_scheduler(optimizer, self.optimizer_config)

    def lr_scheduler_step(self) -> float:
        """Advance the scheduler; return the LR that the step was taken with. verl returns the next one's."""
        used = self.lr_scheduler.get_last_lr()[0]
        super().lr_scheduler_step()
        return used

    def _build_lora_module(self, module: Any) -> Any:
        """verl casts adapters to the base's dtype, as FSDP1 needs; FSDP2 takes fp32 ones on a frozen bf16 base."""
        module = super()._build_lora_module(module)
        if self.model_config.lora["dtype"] == "fp32":
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        return module
