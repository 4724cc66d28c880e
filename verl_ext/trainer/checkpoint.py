"""After each save, `<run_dir>/student` (for LoRA `<run_dir>/adapter`) is the newest student, with its model card."""

from pathlib import Path
from typing import Any

import torch
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from verl_ext.student.export import is_lora, link, link_adapter, link_merged
from verl_ext.student.model_card import write_cards
from verl_ext.student.weights import note_largest_weight


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
    folder = Path(trainer.config.trainer.default_local_dir) / f"global_step_{step}"
    if not (folder / "data.pt").is_file():
        at, trainer.global_steps = trainer.global_steps, step
        try:
            trainer._save_checkpoint()
        finally:
            trainer.global_steps = at
        if data_state is not None:
            torch.save(data_state, folder / "data.pt")
        if left_out:
            return f"step {step} is saved; the same command resumes after it, without {left_out} prompts of this one"
    return f"step {step} is saved; the same command resumes after it"
