"""Declare `torchvision::nms` and `qnms` where torchvision's own library cannot load.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its C++ library does not load,
and `import torchvision` then dies because the two operators it describes do not exist. SGLang
imports torchvision before any SGLang plugin runs (through transformers' image processors), so the
declaration hangs on torch's own start-up entry point, `torch.backends`. A text model never calls
the operators; only their names are needed.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import library

_SIGNATURES = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: library.Library | None = None  # torch drops the operators when this is collected


def _torchvision_needs_cuda() -> bool:
    """True if the installed torchvision is a CUDA build. Reads a file: importing it is what fails."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    return "+cu" in (Path(spec.origin).parent / "version.py").read_text()


def declare() -> None:
    """Entry point `torch.backends`: runs at the end of `import torch`, in every process."""
    global _library
    if torch.version.cuda is not None or not _torchvision_needs_cuda():
        return
    _library = library.Library("torchvision", "DEF")
    for signature in _SIGNATURES.values():
        _library.define(signature)
