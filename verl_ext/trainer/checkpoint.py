"""A checkpoint is whole or not there; after each, `<run_dir>/student` (for LoRA `<run_dir>/adapter`) is the newest."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from verl_ext.run.checkpoints import STEP, prune, publish, stage
from verl_ext.run.resume import add_settings
from verl_ext.student.export import is_lora, link, link_adapter, link_merged
from verl_ext.student.model_card import write_cards
from verl_ext.student.weights import note_largest_weight

DATA_STATE = "data.pt"
"""verl's, of the dataloader."""


class LinkStudent(CheckpointCallback):
    """verl's checkpoint callback (`trainer.checkpoint_callback_class`).

    verl writes a fully trained model in Hugging Face format itself. Of a LoRA run, a PEFT adapter leaves with each
    checkpoint and the merged model, which takes the base's memory again in fp32, with the last.
    """

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        del async_save, kwargs
        assert self.config is not None
        actor, run_dir, base = Path(checkpoint_dir) / "actor", Path(self.config.run_dir), self.config.student.path
        if not is_lora(actor):
            note_largest_weight(actor / "huggingface")
            link(run_dir / "student", actor / "huggingface")
        elif global_step < trainer.total_training_steps:
            link_adapter(actor, base, run_dir)
        else:
            link_merged(actor, base, run_dir)
        write_cards(run_dir)


def save_whole(trainer: Any, write: Callable[[], None], add: Callable[[Path], None]) -> None:
    """Let verl `write` the checkpoint of the trainer's step into a folder of its own, and make it the newest one.

    verl's retention sees none of them, so ours is the only one: it counts those of earlier starts too.

    Args:
        add: puts what else belongs to the step into the folder it is given.
    """
    config, step = trainer.config.trainer, trainer.global_steps
    checkpoints, keep = Path(config.default_local_dir), config.max_actor_ckpt_to_keep
    callback = trainer.checkpoint_callback
    folder = stage(checkpoints)
    with _elsewhere(config, folder):
        trainer.checkpoint_callback = CheckpointCallback(config=trainer.config)  # verl calls it before it is whole
        try:
            write()
        finally:
            trainer.checkpoint_callback = callback
    add(folder / f"{STEP}{step}")
    add_settings(Path(trainer.config.run_dir), folder / f"{STEP}{step}")
    published = publish(checkpoints, step)
    callback.on_save(trainer=trainer, global_step=step, checkpoint_dir=str(published), async_save=False)
    prune(checkpoints, keep)


@contextlib.contextmanager
def _elsewhere(config: DictConfig, folder: Path) -> Iterator[None]:
    """verl saves into `folder`, and removes nothing."""
    kept = {key: config[key] for key in ("default_local_dir", "max_actor_ckpt_to_keep")}
    config.default_local_dir, config.max_actor_ckpt_to_keep = str(folder), None
    try:
        yield
    finally:
        for key, value in kept.items():
            config[key] = value


def save_last_finished_step(trainer: Any, step: int, data_state: dict[str, Any] | None, left_out: int = 0) -> str:
    """Checkpoint the weights as the last finished step, `step`, left them.

    `data_state` is the dataloader's state from before the unfinished step, whose rows a resumed run must see again.
    None where later prompts are under way already: they are saved with the queue, but for the `left_out` that the
    unfinished step has taken from it, which are not seen again in this epoch.

    Returns:
        What to tell the user.
    """
    if step < 1:
        return "no step was finished, so there is no checkpoint"
    if trainer.updates.bad_in_a_row:
        return f"step {step} is not saved: its last update went wrong"
    if trainer.saved_step != step:
        at, trainer.global_steps, trainer.data_state_to_save = trainer.global_steps, step, data_state
        try:
            trainer._save_checkpoint()
        finally:
            trainer.global_steps, trainer.data_state_to_save = at, None
        if left_out:
            return f"step {step} is saved; the same command resumes after it, without {left_out} prompts of this one"
    return f"step {step} is saved; the same command resumes after it"


def write_data_state(state: dict[str, Any] | None, folder: Path) -> None:
    """Put another state of the dataloader in the place of the one that verl wrote."""
    if state is not None:
        torch.save(state, folder / DATA_STATE)
