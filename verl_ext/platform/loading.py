"""A checkpoint is loaded as data, never run as code, and with the learning rate that is asked for now.

verl loads its shards by `torch.load(weights_only=False)`, which runs what a file tells it to, and takes the optimizer's
whole state from them, the learning rate too. Importing this module puts `load` in the place of verl's
`FSDPCheckpointManager.load_checkpoint`.
"""

import contextlib
import functools
import os
import pickle
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed.tensor  # shards are loaded as DTensors, which must be known by then
from torch.optim.lr_scheduler import LambdaLR
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own variable: `torch.load` takes weights alone, whatever its caller says."""
NUMPY_STATE = [np.empty(0).__reduce__()[0], np.ndarray, np.dtype, np.dtypes.UInt32DType]
"""What the state of numpy's random generator is made of, an array of numbers, which verl keeps in every checkpoint."""


@contextlib.contextmanager
def as_data() -> Iterator[None]:
    """Within it every `torch.load` of this process takes data alone.

    Raises:
        ValueError: on a file that would have run code.
    """
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(NUMPY_STATE):
            yield
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"a file of the checkpoint is no data: it would call {asked[1] if asked else 'what it names'}; take a "
            "checkpoint that a run of yours has written"
        ) from error
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


def _hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each group of parameters, what the configuration says of it."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def take_as_configured(optimizer: torch.optim.Optimizer, asked: list[dict[str, Any]], scheduler: LambdaLR) -> None:
    """Give an optimizer that was loaded the hyperparameters `asked`, at the schedule's step that was loaded.

    Moments and the count of steps stay as loaded. Where nothing changed, every number stays what it was.
    """
    for group, wanted in zip(optimizer.param_groups, asked, strict=True):
        group.update(wanted)
    scheduler.base_lrs = [group["initial_lr"] for group in asked]
    rates = [
        base * scale(scheduler.last_epoch) for base, scale in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


_theirs = FSDPCheckpointManager.load_checkpoint


@functools.wraps(_theirs)
def load(self: Any, local_path: str, hdfs_path: Any = None, del_local_after_load: bool = False) -> None:
    """verl's, of data alone; a setting of the optimizer that changed is taken as it is now."""
    optimizer, scheduler = self.optimizer, self.lr_scheduler
    asked = _hyperparameters(optimizer) if optimizer is not None else []
    with as_data():
        _theirs(self, local_path, hdfs_path, del_local_after_load)
    if local_path is not None and optimizer is not None and scheduler is not None:
        take_as_configured(optimizer, asked, scheduler)


if not hasattr(_theirs, "__wrapped__"):
    FSDPCheckpointManager.load_checkpoint = load
