"""A checkpoint before a run gives up, so that nothing it learned is lost."""

from pathlib import Path
from typing import Any

import torch


def save_last_finished_step(trainer: Any, data_state: dict[str, Any]) -> str:
    """Checkpoint the weights as the last finished step left them, in the middle of the one after it.

    `data_state` is the dataloader's state from before the unfinished step, whose rows a resumed run must see again.

    Returns:
        What to tell the user.
    """
    step = trainer.global_steps - 1
    if step < 1:
        return "no step was finished, so there is no checkpoint"
    folder = Path(trainer.config.trainer.default_local_dir) / f"global_step_{step}"
    if not (folder / "data.pt").is_file():
        trainer.global_steps = step
        try:
            trainer._save_checkpoint()
        finally:
            trainer.global_steps = step + 1
        torch.save(data_state, folder / "data.pt")
    return f"step {step} is saved; the same command resumes after it"
