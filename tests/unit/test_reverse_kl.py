"""The advantage, against values worked out by hand (the first from Tinker's own fixture)."""

import pytest
import torch

from verl_ext.method.importance_sampling import importance_sampling_loss
from verl_ext.method.reverse_kl import reverse_kl_advantage, sampled_reverse_kl, teacher_kl

# tinker-cookbook, `incorporate_kl_penalty`: two rows, the second one shorter (padded here) and with a task advantage.
ROLLOUT_BT = torch.tensor([[-1.0, -2.0, -0.5], [-0.1, -0.2, 7.0]])
TEACHER_BT = torch.tensor([[9.0, -1.5, -1.0], [-0.3, -0.1, float("nan")]])
MASK_BT = torch.tensor([[0, 1, 1], [1, 1, 0]])
TASK_BT = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])


def advantage(**kwargs) -> torch.Tensor:
    return reverse_kl_advantage(ROLLOUT_BT, TEACHER_BT, MASK_BT, **kwargs)


def assert_rows(found: torch.Tensor, rows: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(rows), atol=1e-6, rtol=0)


def test_advantage_is_tinkers():
    assert_rows(advantage(task_advantage=TASK_BT), [[0, 0.5, -0.5], [0.8, 1.1, 0]])


def test_strict_discount_is_tinkers_and_leaks_onto_the_masked_token():
    assert_rows(
        advantage(task_advantage=TASK_BT, discount=0.9, discount_mode="strict"), [[0.045, 0.05, -0.5], [0.89, 1.1, 0]]
    )


def test_fixed_discount_leaves_masked_tokens_alone():
    assert_rows(advantage(task_advantage=TASK_BT, discount=0.9), [[0, 0.05, -0.5], [0.89, 1.1, 0]])


def test_coefficient_scales_the_reverse_kl_only():
    assert_rows(advantage(coef=2.0, task_advantage=TASK_BT), [[0, 1.0, -1.0], [0.6, 1.2, 0]])
    assert_rows(advantage(coef=0.0, task_advantage=TASK_BT), TASK_BT.tolist())


def test_teacher_kl_is_the_signed_mean_over_sampled_tokens():
    # (-0.5 + 0.5 + 0.2 - 0.1) / 4
    assert teacher_kl(ROLLOUT_BT, TEACHER_BT, MASK_BT) == pytest.approx(0.025)


def test_garbage_behind_the_mask_never_shows():
    assert torch.isfinite(sampled_reverse_kl(ROLLOUT_BT, TEACHER_BT, MASK_BT)).all()


def test_inputs_are_not_changed():
    before = ROLLOUT_BT.clone()
    advantage(discount=0.5)
    assert torch.equal(ROLLOUT_BT, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"coef": -1.0}, "coef must be >= 0"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\]"),
        ({"discount_mode": "loose"}, "discount_mode must be"),
        ({"task_advantage": torch.zeros(2, 1)}, "task_advantage must be"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        advantage(**kwargs)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="must share one"):
        reverse_kl_advantage(ROLLOUT_BT, TEACHER_BT[:, :1], MASK_BT)


def test_importance_sampling_loss_and_gradient_by_hand():
    logprobs_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    rollout_BT = torch.tensor([[-1.0, -2.0 - torch.log(torch.tensor(2.0)).item()]])  # second ratio: 2
    loss_BT = importance_sampling_loss(logprobs_BT, rollout_BT, torch.tensor([[3.0, -1.0]]))
    torch.testing.assert_close(loss_BT.detach(), torch.tensor([[-3.0, 2.0]]))
    loss_BT.sum().backward()
    # d(-ratio * A)/dlogp = -ratio * A
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[-3.0, 2.0]]))
