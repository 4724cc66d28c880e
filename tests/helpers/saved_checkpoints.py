"""Checkpoints as a run leaves them, of small files."""

from pathlib import Path

from verl_ext.run.checkpoints import STEP, UNFINISHED, publish, stage
from verl_ext.run.resume import add_settings

SHARD = "actor/model_world_size_1_rank_0.pt"


def save(checkpoints: Path, step: int, run_dir: Path | None = None, ranks: int = 1) -> Path:
    """Save a checkpoint of a step, with the settings of `run_dir`; its folder."""
    part = stage(checkpoints) / f"{STEP}{step}"
    (part / "actor").mkdir(parents=True)
    (part / SHARD).write_bytes(f"weights of step {step}".encode() * 100)
    for folder in (part, part / "actor"):  # of SFT and of on-policy training
        (folder / "fsdp_config.json").write_text(f'{{"world_size": {ranks}}}')
    if run_dir is not None:
        add_settings(run_dir, part)
    return publish(checkpoints, step)


def publish_as_it_stands(folder: Path) -> None:
    """Give a folder that a test wrote, `checkpoints/global_step_N`, what makes it a checkpoint."""
    stage(folder.parent)
    folder.rename(folder.parent / UNFINISHED / folder.name)
    publish(folder.parent, int(folder.name.removeprefix(STEP)))
