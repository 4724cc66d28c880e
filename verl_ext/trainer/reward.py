"""The task reward: a diagnostic here, since the advantage of label-free distillation holds no task term."""


def exact_match(text: str, ground_truth: str) -> float:
    """1.0 if the response is the label, white space aside, else 0.0; 0.0 where the label is unknown ("")."""
    return float(bool(ground_truth) and text.strip() == ground_truth)
