"""Whether the weights of a student are numbers that a model can have.

An update that went wrong leaves weights that are not finite, or larger than any model's: such a student still loads,
and answers nothing.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGEST = 1e4
"""No weight of a model that was trained is as large; the largest known are some hundred (biases of attention keys)."""
FILE = "largest_weight.json"


def is_sound(largest: float) -> bool:
    """`largest`: of all weights the largest absolute value; NaN where one is no number."""
    return math.isfinite(largest) and largest <= LARGEST


def largest_weight(tensors: "list[torch.Tensor]") -> float:
    """Of all elements of some floating-point tensors, the largest absolute value; NaN where one is no number."""
    import torch  # not for those who only ask what a card says, as `--help` without an engine does

    largest = [torch.linalg.vector_norm(each.detach(), math.inf).float() for each in tensors if each.numel()]
    return float(torch.stack(largest).max()) if largest else 0.0


def note_largest_weight(folder: Path) -> None:
    """Keep beside exported weights what the model card says of them; each tensor is read once."""
    from safetensors import safe_open

    found = 0.0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()  # it is no mapping, and cannot be gone through itself
            for name in names:
                largest = largest_weight([tensors.get_tensor(name)])
                found = largest if math.isnan(largest) else max(found, largest)
                if math.isnan(found):
                    break
    (folder / FILE).write_text(json.dumps({"largest_weight": found}) + "\n")


def warning_of(folder: Path) -> str:
    """What a person must know of these weights before they use them; "" where there is nothing."""
    file = folder / FILE
    if not file.is_file():
        return ""
    largest = float(json.loads(file.read_text())["largest_weight"])
    if is_sound(largest):
        return ""
    what = "are not finite numbers" if not math.isfinite(largest) else f"are as large as {largest:.3g}"
    return (
        f"> **Do not use these weights: some {what}.** Training went wrong, as it does with too large a learning rate; "
        "an earlier checkpoint of the run may be sound."
    )
