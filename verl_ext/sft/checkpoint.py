"""A checkpoint of SFT is whole or not there: written by every rank into a folder of its own, made the newest by one."""

from pathlib import Path

import torch
from verl.utils.checkpoint.checkpoint_handler import CheckpointHandler

from verl_ext.platform.loading import as_data
from verl_ext.run.checkpoints import STEP, UNFINISHED, prune, publish, stage
from verl_ext.run.resume import add_settings


class WholeCheckpoints:
    """verl's handler, whose checkpoints are published; its own retention, which forgets earlier starts, is ours."""

    def __init__(self, theirs: CheckpointHandler, run_dir: Path) -> None:
        self._theirs, self._run_dir = theirs, run_dir
        self._checkpoints, self._keep = Path(theirs.default_local_dir), theirs.max_ckpt_to_keep
        theirs.max_ckpt_to_keep = None
        self.saved_step = 0
        """Whose weights the newest checkpoint has."""

    def save_checkpoint(self, step: int) -> None:
        """Every rank calls it."""
        if self._theirs.rank == 0:
            stage(self._checkpoints)
        torch.distributed.barrier()
        self._theirs.default_local_dir = str(self._checkpoints / UNFINISHED)
        try:
            self._theirs.save_checkpoint(step)  # returns when every rank has written its part
        finally:
            self._theirs.default_local_dir = str(self._checkpoints)
        if self._theirs.rank == 0:
            add_settings(self._run_dir, self._checkpoints / UNFINISHED / f"{STEP}{step}")
            publish(self._checkpoints, step)
            prune(self._checkpoints, self._keep)
        torch.distributed.barrier()
        self.saved_step = step

    def load_checkpoint(self) -> int:
        """Step of the checkpoint that was loaded, as data; 0 for none."""
        with as_data():
            self.saved_step = self._theirs.load_checkpoint()
        return self.saved_step
