"""After each save, `<run_dir>/student` is the newest student in Hugging Face format."""

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback


class LinkStudent(CheckpointCallback):
    """verl's checkpoint callback (`trainer.checkpoint_callback_class`): link the exported model."""

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        del trainer, global_step, async_save, kwargs
        assert self.config is not None
        exported = Path(checkpoint_dir) / "actor" / "huggingface"
        link = Path(self.config.run_dir) / "student"
        new = link.with_name("student.new")
        new.unlink(missing_ok=True)
        new.symlink_to(exported.resolve().relative_to(link.parent.resolve()))
        new.replace(link)  # at once: a reader finds the old student or the new one
