"""Write `tinker_kl.json`: what the installed tinker-cookbook makes of given log-probs.

    python tests/golden/make_tinker_kl.py > tests/golden/tinker_kl.json

Runs its own `distillation.train_on_policy.incorporate_kl_penalty`, with a client that answers from a list: no network,
no key. Every row is a whole sequence as Tinker holds it: prompt, turns and tool output in one, `mask` 1 on what the
student sampled. Log-probs in nats.
"""

import asyncio
import contextlib
import importlib
import importlib.metadata
import json
import random
import sys
from typing import Any

# Masks of the rows of a batch, one character a token: `.` prompt or tool output, `x` sampled.
BATCHES = {
    "single_turn": ["..xxx", "..xxx"],
    "uneven_lengths": [".x", "...xxxxx", "..xxx"],
    "multi_turn": ["..xx..xxx", ".xxx...x.", "..x.x.x"],
    "empty_response": ["...", "..xxx"],
}
COEFS = (0.5, 1.0, 2.0)
DISCOUNTS = (0.0, 0.5, 0.9, 1.0)


def batch(name: str, masks: list[str], with_task: bool) -> list[dict[str, list[float]]]:
    """Log-probs and task advantages of one batch, the same for the same name; a task advantage is one number a row."""
    draw = random.Random(name)
    rows = []
    for mask in masks:
        task = round(draw.uniform(-1, 1), 3) if with_task else 0.0
        rows.append(
            {
                "mask": [float(token == "x") for token in mask],
                "rollout_logprobs": [-round(draw.expovariate(1), 3) for _ in mask],
                "teacher_logprobs": [-round(draw.expovariate(1), 3) for _ in mask],
                "task_advantage": [task * (token == "x") for token in mask],
            }
        )
    return rows


def run(rows: list[dict[str, list[float]]], coef: float, discount: float) -> dict[str, Any]:
    """The cookbook's advantages and metric for one batch."""
    tinker: Any = importlib.import_module("tinker")
    torch: Any = importlib.import_module("torch")
    cookbook = importlib.import_module("tinker_cookbook.distillation.train_on_policy")

    def datum(row: dict[str, list[float]]) -> Any:
        length = len(row["mask"])
        inputs = {
            "target_tokens": torch.arange(1, length + 1),
            "logprobs": torch.tensor(row["rollout_logprobs"]),
            "mask": torch.tensor(row["mask"]),
            "advantages": torch.tensor(row["task_advantage"]),
        }
        return tinker.Datum(
            model_input=tinker.ModelInput.from_ints(list(range(length))),
            loss_fn_inputs={key: tinker.TensorData.from_torch(value) for key, value in inputs.items()},
        )

    class Teacher:
        def __init__(self, logprobs: list[float]) -> None:
            self.logprobs = logprobs

        def compute_logprobs(self, sequence: Any) -> "Teacher":
            assert sequence.length == len(self.logprobs) + 1
            return self

        async def coroutine(self) -> list[float | None]:
            return [None, *self.logprobs]

    data = [datum(row) for row in rows]
    teachers = [Teacher(row["teacher_logprobs"]) for row in rows]
    metrics = asyncio.run(cookbook.incorporate_kl_penalty(data, teachers, [0] * len(data), coef, discount))
    return {
        "advantages": [d.loss_fn_inputs["advantages"].to_torch().tolist() for d in data],
        "teacher_kl": metrics["teacher_kl"],
    }


def golden() -> dict[str, Any]:
    """Every batch, every case, and the versions that answered."""
    batches = {
        name + suffix: batch(name, masks, bool(suffix))
        for name, masks in BATCHES.items()
        for suffix in ("", "_with_task")
    }
    return {
        "source": "tinker_cookbook.distillation.train_on_policy.incorporate_kl_penalty",
        "versions": {name: importlib.metadata.version(name) for name in ("tinker-cookbook", "tinker")},
        "batches": batches,
        "cases": [
            {"batch": name, "coef": coef, "discount": discount, **run(rows, coef, discount)}
            for name, rows in batches.items()
            for coef in COEFS
            for discount in DISCOUNTS
        ],
    }


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # the packages may print; standard output is ours
        result = golden()
    print(json.dumps(result).replace('{"batch": ', '\n{"batch": '))  # one case a line


if __name__ == "__main__":
    main()
