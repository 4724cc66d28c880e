"""FSDP2 shards a language-model head that has an adapter of its own, as a student with an untied head has after SFT.

verl shards such a head alone and makes FSDP's class abstract for it, since PEFT's is. With `ABC` the first base, Python
refuses to give a layer that exists the new class (`object layout differs from 'Linear'`); behind FSDP's it does not.
Importing this module puts our order in the place of verl's.
"""

import contextlib
from abc import ABC
from collections.abc import Iterator
from typing import Any

from torch.distributed.fsdp._fully_shard import _fully_shard
from verl.utils import fsdp_utils


@contextlib.contextmanager
def abstract_where_needed(module: Any) -> Iterator[None]:
    """FSDP's class for `module`, which may be abstract."""
    theirs = _fully_shard.FSDPModule

    class AbstractFSDPModule(theirs, ABC):
        pass

    try:
        if isinstance(module, ABC):
            _fully_shard.FSDPModule = AbstractFSDPModule
        yield
    finally:
        _fully_shard.FSDPModule = theirs


fsdp_utils.maybe_patch_fsdp_module = abstract_where_needed
