"""What the teacher did in one step, from what each sample brought along (`agent_loop.py`)."""

from collections.abc import Sequence
from typing import Any

# Ratios and states; everything else that a scorer counts is added up.
LEVELS = ("servers_left_alone", "store_bytes")


def teacher_metrics(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics `teacher/*` of one batch.

    `seconds`: wall-clock during which at least one sample was at the teacher (union of spans). `unscored`: samples
    that no teacher could score, masked out of the loss. `from_store`: samples that no server was asked for. Of the
    scorers: `requests` (HTTP), `sequences`, `tokens` sent, `cached_share` of them in the server's prefix cache,
    `queue_seconds` a sequence, `retries`, `hedges`, `failures`, `times_opened` (breakers), `servers_left_alone`.
    """
    counts: dict[str, float] = {}
    for sample in samples:
        for name, value in sample["teacher_metrics"].items():
            counts[name] = max(counts.get(name, 0.0), value) if _is_level(name) else counts.get(name, 0.0) + value
    busy = _busy_seconds([(sample["teacher_start"], sample["teacher_end"]) for sample in samples])
    tokens = sum(sample["teacher_tokens"] for sample in samples)
    unscored = sum(bool(sample["teacher_error"]) for sample in samples)
    found: dict[str, float] = {
        "seconds": busy,
        "tokens_per_second": tokens / busy if busy else 0.0,
        "scored": len(samples) - unscored,
        "unscored": unscored,
        "from_store": sum(sample["teacher_from_store"] for sample in samples),
    }
    if counts.get("sequences"):
        found["cached_share"] = counts.pop("cached_tokens") / counts["tokens"]
        found["queue_seconds"] = counts.pop("queue_seconds") / counts["sequences"]
    return {f"teacher/{name}": value for name, value in (counts | found).items()}


def _is_level(name: str) -> bool:
    return name.rpartition("/")[2] in LEVELS


def _busy_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of `(start, end)` spans."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy
