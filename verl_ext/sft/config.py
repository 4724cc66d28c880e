"""The settings that SFT adds to verl's, each with its default in one place."""

from dataclasses import dataclass

ADAPTER_DTYPES = ("base", "fp32")


@dataclass(frozen=True)
class SftConfig:
    """What verl's SFT trainer has no key for."""

    renderer: str = "qwen3_instruct"
    """How a conversation becomes tokens; only renderers that are exact are taken."""
    seed: int = 0
    """Of the rows' order (Tinker's `shuffle_seed`) and of the adapters' first weights, >= 0."""
    adapter_dtype: str = "base"
    """Dtype that LoRA's weights and Adam's moments are kept in: `base`, that of the base weights
    (`engine.model_dtype`), or `fp32`, which matters where those are bf16."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"sft.seed={self.seed} must be >= 0")
        if self.adapter_dtype not in ADAPTER_DTYPES:
            raise ValueError(f"sft.adapter_dtype={self.adapter_dtype} must be one of {', '.join(ADAPTER_DTYPES)}")
