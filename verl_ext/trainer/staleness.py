"""How old samples are, in weight versions: one version a step, and 0 is what a run starts with."""

from collections.abc import Sequence


def staleness_metrics(samples: Sequence[Sequence[Sequence[int]]], current: int) -> dict[str, float]:
    """Metrics `staleness/*` of one batch.

    `samples_<k>`: share of the samples whose first token is k versions older than the student in training.
    `tokens_mean`: versions by which a token lies behind, in the mean over sampled tokens. `max`: of the oldest token.
    `resumed_share`: share of the samples that more than one version sampled.

    Args:
        samples: of each sample [version, tokens], part by part, the oldest first.
        current: version of the student in training.
    """
    first = [current - parts[0][0] for parts in samples]
    found = {f"staleness/samples_{age}": first.count(age) / len(first) for age in range(max(first) + 1)}
    tokens = [(current - version, count) for parts in samples for version, count in parts]
    total = sum(count for _, count in tokens)
    return found | {
        "staleness/tokens_mean": sum(age * count for age, count in tokens) / max(total, 1),
        "staleness/max": float(max(first)),
        "staleness/resumed_share": sum(parts[-1][0] > parts[0][0] for parts in samples) / len(samples),
    }
