"""What became of each update: verl skips one whose gradient is not finite with a line in a worker's log.

Importing this module lets verl's engine also say how large the weights are that an update left.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch.distributed.tensor import DTensor
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from verl_ext.student.weights import is_sound, largest_weight

_theirs = FSDPEngine.train_batch
LARGEST_WEIGHT = "weight_max"  # verl reduces what has `max` in its name to the largest


def train_batch(self: Any, data: Any, loss_function: Any) -> Any:
    """As verl's; beside its gradient norm, the largest trained weight of this rank after the update."""
    outputs = _theirs(self, data, loss_function)
    if self.is_mp_src_rank_with_outputs():
        trained = (parameter for parameter in self.module.parameters() if parameter.requires_grad)
        local = [each.to_local() if isinstance(each, DTensor) else each for each in trained]
        outputs["metrics"][LARGEST_WEIGHT] = [largest_weight(local)]  # verl joins lists, one a rank
    return outputs


FSDPEngine.train_batch = train_batch


@dataclass
class Updates:
    """Of one training process."""

    most_bad: int
    """Bad updates in a row at which training stops (`method.guards.max_bad_updates`)."""
    done: int = 0
    skipped: int = 0
    """For a gradient that was not finite, in the present step."""
    bad_in_a_row: int = 0
    """Skipped, or with weights that no model has; over steps."""

    def note(self, metrics: dict[str, Any]) -> None:
        """`metrics`: verl's of one call, a list of values each, one an update and rank."""
        sound = all(is_sound(float(largest)) for largest in metrics.get(LARGEST_WEIGHT, ()))
        for norm in metrics["grad_norm"]:
            skipped = not math.isfinite(norm)
            self.done, self.skipped = self.done + (not skipped), self.skipped + skipped
            self.bad_in_a_row = 0 if sound and not skipped else self.bad_in_a_row + 1

    def check(self) -> None:
        """Raises RuntimeError where training goes on in vain."""
        if self.bad_in_a_row >= self.most_bad:
            raise RuntimeError(
                f"{self.bad_in_a_row} updates in a row went wrong: a gradient that is not finite, or weights that are "
                "not or absurdly large (method.guards.max_bad_updates); nothing was saved since; a smaller "
                "actor_rollout_ref.actor.optim.lr helps, where it is not the rows' or the teacher's fault"
            )

    def close(self) -> dict[str, float]:
        """Metrics `updates/*` of the step; the next one begins."""
        found = {"done": self.done, "skipped": self.skipped, "bad_in_a_row": self.bad_in_a_row}
        self.done = self.skipped = 0
        return {f"updates/{name}": float(count) for name, count in found.items()}
