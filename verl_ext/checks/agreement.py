"""Are two scorings of the same tokens the same? Pure functions on log-probs.

Every list holds one float array `(R,)` a sequence, `R` its response tokens; log-probs and differences are in nats.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from verl_ext.checks.config import Tolerance
from verl_ext.checks.finding import FAIL, OK, WARN, Finding

Logprobs = Sequence[np.ndarray]


@dataclass(frozen=True)
class Difference:
    """How far two scorings are apart, over all tokens."""

    mean: float
    """Mean of the absolute difference a token, nats."""
    max: float
    """Greatest absolute difference, nats."""
    tokens: int
    """Tokens compared."""

    def within(self, tolerance: Tolerance) -> bool:
        return self.mean <= tolerance.mean and self.max <= tolerance.max

    def __str__(self) -> str:
        return f"mean {self.mean:.1e}, max {self.max:.1e} nats over {self.tokens} tokens"


def difference(left: Logprobs, right: Logprobs) -> Difference:
    """Absolute difference token by token. ValueError if there is no token, or the shapes differ."""
    gaps = np.concatenate([np.abs(a.astype(np.float64) - b) for a, b in zip(left, right, strict=True)])
    if not gaps.size:
        raise ValueError("data: no token to compare, every response is empty; raise data.max_response_length")
    return Difference(float(gaps.mean()), float(gaps.max()), int(gaps.size))


def shifted_difference(found: Logprobs, expected: Logprobs) -> Difference | None:
    """The difference if each found value belongs to the token before, or to the one after; the smaller of the two.

    None where no sequence has two tokens.
    """
    pairs = [(f, e) for f, e in zip(found, expected, strict=True) if len(f) > 1]
    if not pairs:
        return None
    later = difference([f[1:] for f, _ in pairs], [e[:-1] for _, e in pairs])
    earlier = difference([f[:-1] for f, _ in pairs], [e[1:] for _, e in pairs])
    return min(later, earlier, key=lambda shift: shift.mean)


def judge_probe(found: Logprobs, expected: Logprobs, tolerance: Tolerance) -> Finding:
    """The teacher's log-probs against transformers on its own weights, with the shift by one as the control."""
    straight, shifted = difference(found, expected), shifted_difference(found, expected)
    numbers = {"straight": asdict(straight), "shifted": None if shifted is None else asdict(shifted)}
    if straight.within(tolerance):
        control = "" if shifted is None else f"; the control, shifted by one: mean {shifted.mean:.1e}"
        return Finding(OK, f"against transformers: {straight}{control}", numbers=numbers)
    if shifted is not None and shifted.within(tolerance):
        seen = f"looks shifted by one: straight {straight}, shifted {shifted}"
        fix = "each token got its neighbour's log-prob: look at logprob_start_len (P-1) and at proxies in between"
        return Finding(FAIL, seen, fix, numbers)
    fix = "the server does not serve teacher.model_path's weights, or miscomputes: look at its log, dtype and back ends"
    return Finding(FAIL, f"against transformers: {straight}", fix, numbers)


def judge_noise(passes: Sequence[Logprobs], tolerance: Tolerance, fix: str) -> Finding:
    """The greatest difference of any pass to the first one."""
    differences = [difference(passes[0], other) for other in passes[1:]]
    worst = max(differences, key=lambda one: one.max)
    numbers = {"to_first": [asdict(one) for one in differences]}
    good = all(one.within(tolerance) for one in differences)
    return Finding(OK if good else FAIL, str(worst), "" if good else fix, numbers)


@dataclass(frozen=True)
class ReverseKL:
    """The sampled-token reverse KL: mean over tokens of rollout minus teacher log-prob (k1 of Schulman 2020)."""

    mean: float
    """Nats a token; may be below 0 by chance."""
    max: float
    """Greatest absolute value of one token, nats."""
    tokens: int
    """Tokens in the mean."""


def reverse_kl(rollout_logprobs: Logprobs, teacher_logprobs: Logprobs) -> ReverseKL:
    """Of the student's own samples under the teacher."""
    gap = np.concatenate([a.astype(np.float64) - b for a, b in zip(rollout_logprobs, teacher_logprobs, strict=True)])
    return ReverseKL(float(gap.mean()), float(np.abs(gap).max()), int(gap.size))


def judge_self_kl(own_prompt: ReverseKL | None, teacher_prompt: ReverseKL, tolerance: Tolerance) -> Finding:
    """A teacher with the student's weights and prompt gives reverse KL 0; `own_prompt` is None for other weights."""
    numbers = {"teacher_prompt": asdict(teacher_prompt), "own_prompt": own_prompt and asdict(own_prompt)}
    information = f"with the teacher's prompt: reverse KL {teacher_prompt.mean:+.4f} nats a token"
    if own_prompt is None:
        return Finding(OK, f"skipped: other weights; {information}", numbers=numbers)
    seen = f"same prompt: reverse KL {own_prompt.mean:+.1e}, max {own_prompt.max:.1e} nats; {information}"
    if Difference(abs(own_prompt.mean), own_prompt.max, own_prompt.tokens).within(tolerance):
        return Finding(OK, seen, numbers=numbers)
    fix = "sampler and teacher disagree on equal weights: look at dtype, vocabulary padding, and what the server serves"
    return Finding(FAIL, seen, fix, numbers)


@dataclass(frozen=True)
class PrecisionGap:
    """What a lower precision of the teacher does to the training signal."""

    mean: float
    """Mean absolute difference of the teacher's log-probs, nats."""
    max: float
    """Greatest absolute difference, nats."""
    sign_changes: float
    """Share of tokens whose advantage, teacher minus student log-prob, has another sign, in [0, 1]."""
    sign_mass: float
    """Share of the summed absolute advantage (at the higher precision) that lies on those tokens, in [0, 1]."""
    tokens: int
    """Tokens compared."""


def precision_gap(rollout_logprobs: Logprobs, lower: Logprobs, higher: Logprobs) -> PrecisionGap:
    """The teacher's log-probs of the student's samples at two precisions."""
    gap = difference(lower, higher)
    student, low, high = (np.concatenate(list(part)).astype(np.float64) for part in (rollout_logprobs, lower, higher))
    changed = np.sign(low - student) != np.sign(high - student)
    weight = np.abs(high - student)
    mass = float(weight[changed].sum() / weight.sum()) if weight.sum() else 0.0
    return PrecisionGap(gap.mean, gap.max, float(changed.mean()), mass, gap.tokens)


def judge_precision(gap: PrecisionGap, pair: str, max_sign_changes: float) -> Finding:
    """`pair` names the two precisions, e.g. `fp8 against bfloat16`."""
    seen = (
        f"{pair}: mean {gap.mean:.1e}, max {gap.max:.1e} nats; advantage changes sign on {gap.sign_changes:.1%} "
        f"of {gap.tokens} tokens ({gap.sign_mass:.2%} of its mass)"
    )
    good = gap.sign_changes <= max_sign_changes
    fix = "" if good else "use the higher precision, or accept the noise with doctor.max_sign_changes"
    return Finding(OK if good else WARN, seen, fix, asdict(gap))
