"""The settings that this plugin adds to verl's, each with its default in one place.

`configs/*.yaml` state only departures from these and from verl's own defaults.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from omegaconf import OmegaConf

Settings = TypeVar("Settings")

DISCOUNT_MODES = ("fixed", "strict")
CONTROLS = ("none", "flipped_sign", "shuffled_teacher", "no_weight_sync")


def settings_of(node: Any, kind: type[Settings]) -> Settings:
    """The dataclass behind a configuration node, its values checked. Raises ValueError naming a bad key."""
    settings = OmegaConf.to_object(node)
    assert isinstance(settings, kind)
    return settings


def mapping_of(node: Any) -> dict[str, Any]:
    """The plain, resolved dictionary behind a configuration node."""
    mapping = OmegaConf.to_container(node, resolve=True)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


@dataclass(frozen=True)
class MethodConfig:
    """How teacher and rollout log-probs become advantages (`verl_ext.method.reverse_kl`).

    coef: weight of the reverse KL in the advantage, >= 0. Tinker's `kl_penalty_coef`.
    discount: share of the next token's reverse KL that a token is charged for, in [0, 1].
        Tinker's `kl_discount_factor`.
    discount_mode: `fixed` keeps masked tokens at advantage 0; `strict` copies Tinker, which leaks onto them.
    control: breaks one thing on purpose, to show where the learning comes from: `flipped_sign` negates the
        advantage, `shuffled_teacher` permutes the teacher's log-probs among the batch's tokens,
        `no_weight_sync` leaves the sampler at its first weights. `none` for a real run.
    """

    coef: float = 1.0
    discount: float = 0.0
    discount_mode: str = "fixed"
    control: str = "none"

    def __post_init__(self) -> None:
        if self.coef < 0:
            raise ValueError(f"method.coef={self.coef} must be >= 0")
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"method.discount={self.discount} must be in [0, 1]")
        if self.discount_mode not in DISCOUNT_MODES:
            raise ValueError(f"method.discount_mode={self.discount_mode} must be one of {', '.join(DISCOUNT_MODES)}")
        if self.control not in CONTROLS:
            raise ValueError(f"method.control={self.control} must be one of {', '.join(CONTROLS)}")
