"""The task reward: a diagnostic here, since the advantage of label-free distillation holds no task term."""

from verl.utils.reward_score import math_reward


def exact_match(text: str, ground_truth: str) -> float:
    """1.0 if the response is the label, white space aside, else 0.0; 0.0 where the label is unknown ("")."""
    return float(bool(ground_truth) and text.strip() == ground_truth)


def math_match(text: str, ground_truth: str) -> float:
    """1.0 if the response's last \\boxed{} equals the answer up to notation (verl's math_reward), else 0.0.

    0.0 too where the answer is unknown ("").
    """
    return float(bool(ground_truth) and math_reward.compute_score(text, ground_truth))
