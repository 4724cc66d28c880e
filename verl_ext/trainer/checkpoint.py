"""After each save, `<run_dir>/student` (for LoRA `<run_dir>/adapter`) is the newest student, with its model card."""

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from verl_ext.export import export_adapter, is_lora, merged_model, save_model
from verl_ext.model_card import write_cards


class LinkStudent(CheckpointCallback):
    """verl's checkpoint callback (`trainer.checkpoint_callback_class`).

    verl writes a fully trained model in Hugging Face format itself. Of a LoRA run, a PEFT adapter leaves with each
    checkpoint and the merged model, which takes the base's memory again, with the last.
    """

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        del async_save, kwargs
        assert self.config is not None
        actor, run_dir, base = Path(checkpoint_dir) / "actor", Path(self.config.run_dir), self.config.student.path
        if not is_lora(actor):
            link(run_dir / "student", actor / "huggingface")
        else:
            adapter = actor / "adapter"
            if not adapter.exists():  # saved by an earlier try of this step
                export_adapter(actor, base, adapter)
            link(run_dir / "adapter", adapter)
            if global_step >= trainer.total_training_steps:
                save_model(merged_model(base, adapter), base, actor / "merged")
                link(run_dir / "student", actor / "merged")
        write_cards(run_dir)


def link(name: Path, target: Path) -> None:
    """Point `name` at `target`, both below one run's folder, at once: a reader finds the old one or the new one."""
    new = name.with_name(f"{name.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.resolve().relative_to(name.parent.resolve()))
    new.replace(name)
