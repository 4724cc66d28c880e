"""transformers' tokenizers and configurations without torch, whose import is a third of what a refused run costs.

Both modules import one function for files in GGUF, and its module imports torch. Here that module is imported when the
function is called.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

GGUF = "transformers.modeling_gguf_pytorch_utils"
FUNCTION = "load_gguf_checkpoint"


def defer_gguf() -> None:
    """Call it before transformers' tokenizers or configurations are imported; nothing is done where torch is there."""
    if GGUF in sys.modules or "torch" in sys.modules:
        return
    sys.modules[GGUF] = stand_in()


def stand_in() -> ModuleType:
    """The module with its one function, which imports the module itself, and puts it in its place."""
    module = ModuleType(GGUF)
    setattr(module, FUNCTION, _load_gguf_checkpoint)
    return module


def _load_gguf_checkpoint(*args: Any, **kwargs: Any) -> Any:
    sys.modules.pop(GGUF)
    return getattr(importlib.import_module(GGUF), FUNCTION)(*args, **kwargs)
