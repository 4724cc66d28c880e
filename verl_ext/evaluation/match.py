"""The task reward: a diagnostic here, since the advantage of label-free distillation holds no task term."""

from verl.utils.reward_score import math_reward

from verl_ext.evaluation.math_verifier import MathVerifier

verifier = MathVerifier()


def boxed_answer(text: str) -> str | None:
    """What the response's last \\boxed{} holds; None without one, or where it is not closed."""
    # From the last one on: verl takes a `\\boxed ` anywhere before it for the box.
    box = math_reward.last_boxed_only_string(text[max(text.rfind("\\boxed"), 0) :])
    if box is None or not box.startswith(("\\boxed{", "\\boxed ")):  # verl also finds \fbox, and takes it for an error
        return None
    return math_reward.remove_boxed(box)


def math_match(text: str, ground_truth: str) -> float:
    """1.0 if the response's last \\boxed{} holds the answer, else 0.0; 0.0 too where the answer is unknown ("").

    Equal is what verl's math_reward makes the same text (units, percent and degree signs dropped), or what math-verify
    finds to have the same value.
    """
    answer = boxed_answer(text)
    if not ground_truth or not answer:
        return 0.0
    return float(math_reward.is_equiv(answer, ground_truth) or verifier.equal(answer, ground_truth))
