"""What the student makes of stored rows now: how far it has moved from them, and what it would be charged for them."""

from dataclasses import dataclass

import numpy as np
import torch

from verl_ext.trainer.replay.storage import Rows
from verl_ext.trainer.replay.sum_tree import Floats


@dataclass(frozen=True)
class Looked:
    """Of each row, over its trained tokens; every row has one."""

    ess_B: Floats
    """Effective sample size as a share, (sum w)^2 / (n sum w^2) of the n ratios of student to sampler, in (0, 1]."""
    reverse_kl_B: Floats
    """Mean of student - teacher, nats."""
    priorities_B: Floats
    """Mean of its absolute value, nats."""


def look_at(rows: Rows, student_logprobs_N: torch.Tensor) -> Looked:
    """Statistics of rows under the student whose log-probs of their tokens are given, nats, (N,)."""
    row_n = torch.from_numpy(np.repeat(np.arange(len(rows)), rows.lengths_B))[rows.mask_N]

    def per_row(x_n: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_n, x_n.double())

    student_n, teacher_n = student_logprobs_N[rows.mask_N], rows.teacher_logprobs_N[rows.mask_N]
    log_ratio_n = (student_n - rows.rollout_logprobs_N[rows.mask_N]).double()
    largest_B = torch.full((len(rows),), -torch.inf, dtype=torch.float64).scatter_reduce(0, row_n, log_ratio_n, "amax")
    # A common factor of a row's ratios leaves its effective sample size as it is; with this one, exp cannot overflow.
    ratio_n = (log_ratio_n - largest_B[row_n]).exp()
    count_B = per_row(torch.ones_like(ratio_n))
    return Looked(
        ess_B=(per_row(ratio_n).square() / (count_B * per_row(ratio_n.square()))).numpy(),
        reverse_kl_B=(per_row(student_n - teacher_n) / count_B).numpy(),
        priorities_B=(per_row((student_n - teacher_n).abs()) / count_B).numpy(),
    )
