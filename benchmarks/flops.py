"""The ledger's formula of FLOPs beside `torch.utils.flop_counter`: forward and backward, all weights trained and LoRA.

python -m benchmarks.flops --json flops.json

The tiny pair's model, SmolLM2-135M's, Qwen3-0.6B's and one with experts, without weights where torch can do without
(meta device). Attention is counted in two ways: a pass over a whole sequence, whose products are of whole squares, and
token by token, whose pairs are those that attention needs and the ledger counts (`arms/counted_flops.py`).
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arms.counted_flops import compare
from benchmarks.arms.runs import report
from verl_ext.plan.shape import published
from verl_ext.run.model_shape import ATTENTION, PROJECTIONS

SAME = 0.02
RANK = 16
SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}
EXPERTS: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "tiny pair": (TINY, "meta"),
    "SmolLM2-135M": (SMOLLM2, "meta"),
    "experts": (EXPERTS, "cpu"),  # which expert a token goes to is read from its values
}
"""Configuration, and the device on which it can be counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write rows and bars there")
    parser.add_argument("--tokens", type=int, default=64, help="of a sequence that is read as a whole")
    options = parser.parse_args()
    models = MODELS | {"Qwen3-0.6B": (published()["Qwen/Qwen3-0.6B"], "meta")}
    rows: list[dict[str, Any]] = []
    table = Table(title="FLOPs")
    for column in ("model", "trained", "read", "pass", "torch", "formula", "off by"):
        table.add_column(column)
    for name, (config, device) in models.items():
        projections = ATTENTION if "num_experts" in config else PROJECTIONS
        for trained, targets in {"all": (), "LoRA": projections, "LoRA, head too": (*projections, "lm_head")}.items():
            for whole, tokens in ((True, options.tokens), (False, 4)):
                for found in compare(config, tokens, RANK * bool(targets), targets, whole=whole, device=device):
                    read = f"{tokens} tokens, " + ("a whole" if whole else "one by one")
                    numbers = (f"{found.counted:.4g}", f"{found.formula:.4g}", f"{found.error:+.4%}")
                    table.add_row(name, trained, read, found.what, *numbers)
                    rows.append({"model": name, "trained": trained, "read": read, **asdict(found)})
    Console().print(table)
    bars = []
    for name in models:
        worst = max(abs(row["formula"] / row["counted"] - 1) for row in rows if row["model"] == name)
        bars.append((f"flops_off_{name.replace(' ', '_')}", worst, SAME))
    report(rows, bars, options.json)


if __name__ == "__main__":
    main()
