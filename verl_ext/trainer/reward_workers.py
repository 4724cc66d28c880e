"""verl's reward workers (`reward.num_workers`), in which code that comes with the student runs only where allowed.

verl 0.9.1 loads the student's tokenizer there with `trust_remote_code=True`, whatever the settings say. Importing this
module lets verl's manager start ours in their place.
"""

import functools
from typing import Any

from verl.experimental.reward_loop import reward_loop as _module

reward_loop: Any = _module
_theirs = reward_loop.hf_tokenizer


class RewardLoopWorker(_module.RewardLoopWorker):
    """As verl's; the class has its name, by which a run's watchdog knows it."""

    def _init_reward_fn(self) -> None:
        """verl passes `trust_remote_code` by keyword; the setting takes its place."""
        allowed = bool(self.config.actor_rollout_ref.model.trust_remote_code)
        reward_loop.hf_tokenizer = functools.partial(_load_tokenizer, allowed)
        super()._init_reward_fn()


def _load_tokenizer(allowed: bool, path: str, **settings: Any) -> Any:
    return _theirs(path, **settings | {"trust_remote_code": allowed})


reward_loop.RewardLoopWorker = RewardLoopWorker
