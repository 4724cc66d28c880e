"""A user's reward function, which raises at some rows while a file says so; verl loads it by its path."""

import os
from pathlib import Path
from typing import Any

ONE_IN = 16


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    """1.0 for the right answer, else 0.0. Raises ValueError at one row in sixteen, always the same ones."""
    if extra_info["index"] % ONE_IN == 0 and Path(os.environ["CHAOS_SIGNS"], "rows fail").exists():
        raise ValueError(f"no score for row {extra_info['index']} of {data_source}")
    return float(solution_str.strip() == ground_truth)
