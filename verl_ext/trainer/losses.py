"""What the actor descends, registered with verl or handed to it.

- Policy losses: loaded in the actor by `actor_rollout_ref.model.external_lib`, picked by `actor.policy_loss.loss_mode`.
- `loss_from_logits`: given to the actor as its loss where the method reads its logits
  (`MethodConfig.needs_student_logits`). verl calls it twice a micro-batch: with the logits, then with what the first
  call returned.

Shapes: `B` sequences, `T` response tokens, `P` positions of the packed micro-batch (prompts and responses), `n` of them
that predict a trained response token, `V` vocabulary, `K` top-k. Log-probs in nats.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_policy_loss
from verl.utils.metric import AggregationType, Metric
from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor
from verl.workers.config import PolicyLossConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from verl_ext.method.chunked import chunked_from_logits
from verl_ext.method.divergence import TokenDivergence
from verl_ext.method.policy_loss import (
    aggregate,
    importance_sampling_loss,
    ppo_clip_loss,
    tail_sample_loss,
    truncated_importance_sampling_loss,
)
from verl_ext.method.reverse_kl import advantage_of, charge
from verl_ext.platform import adapted_head as adapted_head  # importing it is the effect
from verl_ext.platform import loading as loading  # the same
from verl_ext.trainer import engine as engine  # as above: verl picks it by `VERL_ENGINE_VENDOR`
from verl_ext.trainer import rollout_registry as rollout_registry  # as above
from verl_ext.trainer import update_guard as update_guard  # as above
from verl_ext.trainer.config import MethodConfig

Tensor = torch.Tensor


@dataclass(kw_only=True)
class BoundedPolicyLossConfig(PolicyLossConfig):
    """verl's settings of a policy loss, and ours: the bounds, and what a charge under the current student needs."""

    low: float
    high: float
    student_logprobs: str
    coef: float
    discount: float
    normalization: str


def _register(name: str, per_token: Callable[..., Tensor]) -> None:
    """Give verl a per-token loss under `name`: `per_token(logprobs, rollout_logprobs, advantages, low=, high=)`."""

    @register_policy_loss(name)
    def compute(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str,
        config: Any,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """verl's policy-loss seam; all tensors (B, T).

        With `algorithm.rollout_correction.bypass_mode=true` verl passes the rollout's log-probs as `old_log_prob`;
        otherwise the trainer's own, and the rollout correction's weights beside them.
        """
        low, high = config.policy_loss.low, config.policy_loss.high
        if config.policy_loss.student_logprobs == "current":
            advantages = under_current_student(
                advantages, log_prob, old_log_prob, response_mask, settings=config.policy_loss
            )
        loss_BT = per_token(log_prob, old_log_prob, advantages, low=low, high=high)
        if rollout_is_weights is not None:
            loss_BT = loss_BT * rollout_is_weights
        loss = aggregate(loss_BT, response_mask, loss_agg_mode, **config.global_batch_info)
        with torch.no_grad():
            gap_BT = torch.where(response_mask.bool(), (log_prob - old_log_prob).abs(), 0.0)
            ratio_BT = torch.exp(log_prob - old_log_prob)
            outside_BT = (ratio_BT < low) | (ratio_BT > high)
            metrics = {
                # Near 0 on the first update after a weight sync: sampler and trainer hold the same weights.
                "actor/rollout_gap_mean": _mean(gap_BT, response_mask),
                "actor/rollout_gap_max": gap_BT.max().item(),
                "actor/ratio_outside_share": _mean(outside_BT.float(), response_mask),
                "actor/effective_sample_size": effective_sample_size(ratio_BT, response_mask),
            }
        return loss, metrics


def under_current_student(
    advantages_BT: Tensor, logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, *, settings: Any
) -> Tensor:
    """The advantages of `reverse_kl_advantage` with the reverse KL taken under the student in training, (B, T).

    They are linear in the student's log-probs, and the teacher's cancel: `-coef * (current - teacher)` is
    `-coef * (rollout - teacher)`, which is given, less `coef * (current - rollout)`.
    """
    moved_BT = charge(logprobs_BT.detach(), rollout_logprobs_BT, mask_BT, discount=settings.discount)
    return advantages_BT + advantage_of(moved_BT, mask_BT, coef=settings.coef, normalization=settings.normalization)


def effective_sample_size(ratio_BT: Tensor, mask_BT: Tensor) -> float:
    """`(sum w)^2 / (n sum w^2)` over the n response tokens of a micro-batch, in (0, 1]: 1 where all weigh the same."""
    weights_n = ratio_BT[mask_BT.bool()].double()
    return (weights_n.sum().square() / (len(weights_n) * weights_n.square().sum())).item() if len(weights_n) else 1.0


def _unbounded(logprobs: Tensor, rollout: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    del low, high
    return importance_sampling_loss(logprobs, rollout, advantages)


_register("importance_sampling", _unbounded)
_register("ppo_clip", ppo_clip_loss)
_register("truncated_importance_sampling", functools.partial(truncated_importance_sampling_loss, outside="clamp"))
_register("masked_importance_sampling", functools.partial(truncated_importance_sampling_loss, outside="mask"))


def _mean(x_BT: Tensor, mask_BT: Tensor) -> float:
    """Mean over the response tokens of a micro-batch; 0 if it has none."""
    return (torch.where(mask_BT.bool(), x_BT, 0.0).sum() / mask_BT.sum().clamp(min=1)).item()


def loss_from_logits(
    config: Any,
    method: MethodConfig,
    model_output: dict[str, Tensor] | None = None,
    data: Any = None,
    dp_group: Any = None,
    student_logits: Tensor | None = None,
) -> Any:
    """verl's loss seam in its two roles (as `verl.trainer.distillation.losses.distillation_ppo_loss`).

    Args:
        config: verl's actor configuration.
        model_output: second call: per-position outputs, the first call's among them.
        data: the micro-batch, with nested `input_ids`, `response_mask`, `teacher_top_ids`, `teacher_top_logprobs`; with
            `method.tail_samples` also `responses`, `rollout_log_probs`, `teacher_logprobs`.
        student_logits: first call: (1, P, V), with gradient.

    Returns:
        First call: per-position tensors (1, P), by name. Second call: the scalar loss and its metrics.
    """
    if student_logits is not None:
        return read_logits(method, student_logits[0], data)
    assert model_output is not None
    if method.is_direct:
        return _direct_loss(config, method, model_output, data)
    expected_BT = no_padding_2_padding(model_output["expected_reverse_kl"], data)
    data = data.copy()
    data["advantages"] = response_to_nested(
        add_expected_baseline(method, data["advantages"].to_padded_tensor(0.0), expected_BT, _mask(data)),
        data["response_mask"],
    )
    loss, metrics = policy_loss(config, model_output, data, dp_group)
    return loss, metrics | _divergence_metrics(method, model_output, data)


def policy_loss(config: Any, model_output: dict[str, Tensor], data: Any, dp_group: Any = None) -> Any:
    """verl's loss, which reports the entropy only as what it descends: with `token-sum`, a sum over tokens."""
    loss, metrics = ppo_loss(config, model_output, data, dp_group)
    return loss, metrics | entropy_metric(model_output, data)


def entropy_metric(model_output: dict[str, Tensor], data: Any) -> dict[str, Any]:
    """Entropy of a token, nats, mean over the response tokens of the mini-batch; nothing where none was computed."""
    if "entropy" not in model_output:
        return {}
    entropy_BT = no_padding_2_padding(model_output["entropy"].detach(), data)
    tokens = max(1, data["batch_num_tokens"])  # of a batch that is masked out, 0
    mean = aggregate(entropy_BT, _mask(data), "token-mean", batch_num_tokens=tokens, dp_size=data["dp_size"])
    return {"actor/entropy": Metric(value=mean, aggregation=AggregationType.SUM)}


def add_expected_baseline(
    method: MethodConfig, advantages_BT: Tensor, expected_reverse_kl_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """The advantages of `reverse_kl_advantage` with the position's expected reverse KL as `baseline`, (B, T).

    Only the actor has the student's logits, so the baseline's share is taken off here.
    """
    baseline_BT = torch.where(mask_BT, expected_reverse_kl_BT, 0.0)
    return advantages_BT - advantage_of(baseline_BT, mask_BT, coef=method.coef, normalization=method.normalization)


def read_logits(method: MethodConfig, student_logits_PV: Tensor, data: Any) -> dict[str, Tensor]:
    """Divergence, expected reverse KL and masses at every position, (1, P); 0 where no trained token is predicted.

    Memory beside the logits that verl holds: a copy of the n rows that are read and its gradient, in the logits' dtype,
    and `method.chunk_tokens` x V in fp32.
    """
    entries_P = teacher_entries(data)
    if get_ulysses_sequence_parallel_world_size() > 1:
        entries_P = slice_input_tensor(entries_P, dim=0)  # pads with 0, as verl pads the sequence
    (rows_n,) = entries_P.nonzero(as_tuple=True)
    entries_n = entries_P[rows_n] - 1
    with torch.set_grad_enabled(method.is_direct):
        tokens: TokenDivergence = chunked_from_logits(
            student_logits_PV[rows_n],
            data["teacher_top_ids"].values()[entries_n].long(),
            data["teacher_top_logprobs"].values()[entries_n],
            kind=method.loss if method.is_direct else "reverse_kl",
            mix=method.mix if method.is_direct else 0.0,
            tail=method.tail,
            chunk_tokens=method.chunk_tokens,
        )
    found = {name.removesuffix("_N"): value for name, value in tokens._asdict().items()}
    return {name: value.new_zeros(len(entries_P)).index_put((rows_n,), value)[None] for name, value in found.items()}


def teacher_entries(data: Any) -> Tensor:
    """For every position 1 + the row of the token it predicts in `teacher_top_*.values()`, or 0, (P,) before slicing.

    Position i of a sequence predicts its token i + 1; only tokens inside `response_mask` have a row. The teacher's rows
    start with the response, also in verl's synthetic padding samples, which keep more rows than they have tokens.
    """
    offsets, mask = data["input_ids"].offsets(), data["response_mask"]
    lengths_B = mask.offsets().diff()
    first_position_B = offsets[1:] - lengths_B - 1
    first_row_B = data["teacher_top_ids"].offsets()[:-1]
    token = torch.arange(len(mask.values()), device=offsets.device) - mask.offsets()[:-1].repeat_interleave(lengths_B)
    keep = mask.values().bool()
    positions = (first_position_B.repeat_interleave(lengths_B) + token)[keep]
    entries_P = torch.zeros(int(offsets[-1]), dtype=torch.long, device=offsets.device)
    entries_P[positions] = (first_row_B.repeat_interleave(lengths_B) + token)[keep] + 1
    return entries_P


def _mask(data: Any) -> Tensor:
    return data["response_mask"].to_padded_tensor(0).bool()


def _direct_loss(
    config: Any, method: MethodConfig, model_output: dict[str, Tensor], data: Any
) -> tuple[Tensor, dict[str, Any]]:
    """`coef` x the divergence, over the batch as `actor.loss_agg_mode` says; verl's entropy term as in its own loss."""
    mask_BT = _mask(data)
    batch = {key: data[key] for key in ("dp_size", "batch_num_tokens", "global_batch_size")}
    batch["loss_scale_factor"] = config.loss_scale_factor
    divergence_BT = no_padding_2_padding(model_output["divergence"], data)
    if method.tail_samples:
        divergence_BT = divergence_BT + within_tail(model_output, data, mask_BT)
    if "rollout_is_weights" in data:  # of replayed rows (`ReplayingTrainer`)
        divergence_BT = divergence_BT * data["rollout_is_weights"].to_padded_tensor(0.0)
    loss = method.coef * aggregate(divergence_BT, mask_BT, config.loss_agg_mode, **batch)
    metrics = {"actor/direct_loss": Metric(value=loss, aggregation=AggregationType.SUM)}
    if "entropy" in model_output:
        entropy_BT = no_padding_2_padding(model_output["entropy"], data)
        entropy = aggregate(entropy_BT, mask_BT, config.loss_agg_mode, **batch)
        metrics["actor/entropy_loss"] = Metric(value=entropy, aggregation=AggregationType.SUM)
        loss = loss - config.entropy_coeff * entropy
    return loss, metrics | entropy_metric(model_output, data) | _divergence_metrics(method, model_output, data)


def within_tail(model_output: dict[str, Tensor], data: Any, mask_BT: Tensor) -> Tensor:
    """What a sampled token outside the support adds to the loss of its position (`method.tail_samples`), (B, T)."""
    width = mask_BT.shape[1]  # verl's synthetic padding samples keep rows beyond their tokens
    ids_BTK = data["teacher_top_ids"].to_padded_tensor(-1)[:, :width]
    tokens_BT = data["responses"].to_padded_tensor(0)[:, :width]
    return tail_sample_loss(
        no_padding_2_padding(model_output["log_probs"], data),
        data["rollout_log_probs"].to_padded_tensor(0.0)[:, :width],
        data["teacher_logprobs"].to_padded_tensor(0.0)[:, :width],
        no_padding_2_padding(model_output["tail_reverse_kl"], data),
        mask_BT & (ids_BTK != tokens_BT[..., None]).all(-1),
    )


def _divergence_metrics(method: MethodConfig, model_output: dict[str, Tensor], data: Any) -> dict[str, Any]:
    """Means over the response tokens of a micro-batch."""
    mask_BT = _mask(data)
    names = ("divergence",) * method.is_direct + ("expected_reverse_kl", "student_mass", "teacher_mass")
    means = {name: _mean(no_padding_2_padding(model_output[name].detach(), data), mask_BT) for name in names}
    return {f"actor/{name}": Metric(AggregationType.MEAN, value) for name, value in means.items()}
