"""The loss of a batch that holds answers of the teacher beside samples of the student (`method.off_policy_share`).

The samples keep the method's loss. A token of the teacher's answers is charged its negative log-prob: the
cross-entropy of sequence-level distillation (Kim and Rush, arXiv 1606.07947), whose mean over the teacher's own samples
is the forward KL in the states that the teacher visits, plus the teacher's entropy. Both are summed over one batch with
the same denominators, as on- and off-policy data in GKD (arXiv 2306.13649).

Shapes: `B` sequences, `T` response tokens of a micro-batch. Log-probs in nats.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from verl_ext.method.policy_loss import aggregate
from verl_ext.trainer.advantages import OFF_POLICY
from verl_ext.trainer.losses import entropy_metric

OWN = "actor/own_sum/"
"""Begins the name of a metric that is summed over the student's samples; `means` divides it by their tokens."""
OWN_TOKENS, OFF_POLICY_TOKENS, OFF_POLICY_NLL = (
    f"actor/own_sum_of_{what}" for what in ("own_tokens", "off_policy_tokens", "off_policy_nll")
)


def mixed_loss(
    config: Any,
    own_loss: Callable[..., Any],
    model_output: Mapping[str, torch.Tensor] | None = None,
    data: Any = None,
    dp_group: Any = None,
    **logits: Any,
) -> Any:
    """verl's loss seam: `own_loss` on the student's samples, cross-entropy on the teacher's answers.

    Args:
        config: verl's actor configuration.
        own_loss: the method's, with its two roles (`loss_from_logits`).
        data: the micro-batch; its nested field OFF_POLICY is 1 on tokens of the teacher's answers.
        logits: `student_logits`, in the first of two calls.
    """
    own = own_tokens(data)
    if model_output is None:
        return own_loss(data=own, **logits)
    loss, metrics = own_loss(model_output=model_output, data=own, dp_group=dp_group)
    taught_BT = data[OFF_POLICY].to_padded_tensor(0.0).bool() & data["response_mask"].to_padded_tensor(0).bool()
    nll_BT = -no_padding_2_padding(model_output["log_probs"], data)
    batch = {key: data[key] for key in ("dp_size", "batch_num_tokens", "global_batch_size")}
    batch["loss_scale_factor"] = config.loss_scale_factor
    loss = loss + aggregate(nll_BT, taught_BT, config.loss_agg_mode, **batch)
    sums = {
        OWN_TOKENS: float(own["response_mask"].values().sum()),
        OFF_POLICY_TOKENS: float(taught_BT.sum()),
        OFF_POLICY_NLL: float(torch.where(taught_BT, nll_BT.detach(), 0.0).sum()),
    }
    found = {name: Metric(AggregationType.SUM, value) for name, value in sums.items()}
    # The entropy is that of all that is trained on, as the gradient's norm is.
    return loss, _summed(metrics, sums[OWN_TOKENS]) | found | entropy_metric(dict(model_output), data)


def own_tokens(data: Any) -> Any:
    """The micro-batch with the teacher's answers masked out; none of its tensors is changed."""
    own, rows = data.copy(), zip(data["response_mask"].unbind(), data[OFF_POLICY].unbind(), strict=True)
    kept = [mask_T * (taught_T == 0) for mask_T, taught_T in rows]
    own["response_mask"] = torch.nested.as_nested_tensor(kept, layout=torch.jagged)
    return own


def _summed(metrics: Mapping[str, Any], tokens: float) -> dict[str, Any]:
    """With each mean over the samples' tokens as a sum, so that micro-batches of few such tokens, or none, count as
    much as they have."""
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        if isinstance(metric, Metric) and metric.aggregation is AggregationType.MEAN:
            found[f"{OWN}{name}"] = Metric(AggregationType.SUM, metric.aggregate() * tokens)
        else:
            found[name] = metric
    return found


def means(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an update, its sums over micro-batches made means over the tokens that they are of."""
    sums = {name: metrics[name] for name in (OWN_TOKENS, OFF_POLICY_TOKENS, OFF_POLICY_NLL) if name in metrics}
    if not sums:  # nothing was trained
        return dict(metrics)
    found = {name: value for name, value in metrics.items() if name not in sums and not name.startswith(OWN)}
    if sums[OWN_TOKENS]:
        of_own = {name.removeprefix(OWN): value for name, value in metrics.items() if name.startswith(OWN)}
        found |= {name: value / sums[OWN_TOKENS] for name, value in of_own.items()}
    if sums[OFF_POLICY_TOKENS]:
        found["actor/off_policy_nll"] = sums[OFF_POLICY_NLL] / sums[OFF_POLICY_TOKENS]
    return found
