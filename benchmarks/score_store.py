"""The score store against a file of JSON lines: seconds for 10,000 scores of 512 tokens, and what a look-up costs.

A file of JSON lines is the least that a store could be; it must be read whole, and two writers would tear it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import report
from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.types import Score

SCORES, TOKENS, BATCH = 10_000, 512, 256


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each way to write and to read all scores, in batches of 256 as a step has them."""
    rows = np.random.default_rng(0).normal(-1, 1, (SCORES, TOKENS)).astype(np.float32)
    scores = {number.to_bytes(32, "big"): Score(row) for number, row in enumerate(rows)}
    keys = list(scores)
    batches = [keys[start : start + BATCH] for start in range(0, SCORES, BATCH)]
    seconds: dict[str, float] = {}
    lines = folder / "scores.jsonl"
    with timed(seconds, "JSON lines, write"), lines.open("w") as file:
        for key in keys:
            file.write(json.dumps({"key": key.hex(), "logprobs": scores[key].logprobs.tolist()}) + "\n")
    with timed(seconds, "JSON lines, read"), lines.open() as file:
        for line in file:
            np.array(json.loads(line)["logprobs"], np.float32)
    store = ScoreStore(folder, 1 << 30)
    with timed(seconds, "store, write"):
        for batch in batches:
            store.put_many({key: scores[key] for key in batch})
    with timed(seconds, "store, read"):
        found = [len(store.get_many(batch)) for batch in batches]
    assert sum(found) == SCORES
    store.close()
    full = ScoreStore(folder, store.size_bytes)
    with timed(seconds, "store, write while full"):
        for batch in batches:
            full.put_many({bytes([1]) + key[1:]: scores[key] for key in batch})
    full.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder))
    table = Table(title=f"{SCORES:,} scores of {TOKENS} tokens")
    for column in ("", "seconds", "scores a second"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{SCORES / value:,.0f}")
    Console().print(table)
    bars = [
        ("store_read_over_json_lines", seconds["store, read"] / seconds["JSON lines, read"], 0.5),
        ("store_write_over_json_lines", seconds["store, write"] / seconds["JSON lines, write"], 0.5),
        (
            "store_write_while_full_over_json_lines",
            seconds["store, write while full"] / seconds["JSON lines, write"],
            1.0,
        ),
    ]
    report([{"name": name, "seconds": value} for name, value in seconds.items()], bars, options.json)


if __name__ == "__main__":
    main()
