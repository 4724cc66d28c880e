"""From what a step fetched to its advantages: which tokens are trained, what each is charged, and what to report.

Pure but for `fetch` and `store_mask`, which read and write TransferQueue. Shapes: `B` samples, `T` response tokens,
right-padded; log-probs in nats.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.workers.utils.padding import response_to_nested

from verl_ext.method import baselines, controls, guards
from verl_ext.method.reverse_kl import advantage_of, charge, reverse_kl_advantage
from verl_ext.run.timeline import length, union
from verl_ext.trainer.config import GuardsConfig, MethodConfig

RANDOM_TEACHER_SEED = 0
OFF_POLICY = "off_policy"
"""Tag of a teacher's own answer, and the field that marks its tokens for the loss."""
NOT_FRESH = ("is_padding", "replayed", OFF_POLICY)


@dataclass(frozen=True)
class Samples:
    """The samples of one step."""

    token_ids_BT: torch.Tensor
    """What the student sampled and tools answered."""
    mask_BT: torch.Tensor
    """1 on tokens that are trained."""
    lengths_B: torch.Tensor
    """Response tokens of each row, tools' included."""
    truncated_B: torch.Tensor
    """True where the answer was cut off before its end, by whatever limit."""
    student_logprobs_BT: torch.Tensor
    """The sampler's, or the trainer's own with `method.student_logprobs=old`."""
    teacher_logprobs_BT: torch.Tensor
    rewards_B: torch.Tensor
    """The task's reward of each sample."""
    groups_B: torch.Tensor
    """Integer id of the prompt that each sample answers."""
    reference_logprobs_BT: torch.Tensor | None = None
    """Of the frozen first student; None unless `guards.reference_kl_coef` asks for them."""

    def select(self, rows: list[int]) -> "Samples":
        """These rows alone."""
        columns: dict[str, Any] = {name: None if value is None else value[rows] for name, value in vars(self).items()}
        return Samples(**columns)


def fresh_rows(batch: Any) -> list[int]:
    """Places of the rows that this step sampled: none that was sampled before, by whomever, or pads verl's batch."""
    return [place for place, tag in enumerate(batch.tags) if not any(tag.get(name) for name in NOT_FRESH)]


def fetch(batch: Any, method: MethodConfig) -> tuple[Samples, list[dict[str, Any]]]:
    """The step's samples out of TransferQueue, and the agent loop's notes on each."""
    # What the loss gets beside its own log-probs, and takes the charge of the current student from: verl's old ones,
    # which are the rollout's in bypass mode.
    student = {"old": "old_log_probs", "current": "old_log_probs", "rollout": "rollout_log_probs"}[
        method.student_logprobs
    ]
    fields = ["uid", "extra_fields", "responses", "response_mask", "rm_scores", "teacher_logprobs", student]
    if method.guards.reference_kl_coef:
        fields.append("ref_log_prob")
    data: Any = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    prompts: dict[str, int] = {}
    groups = [prompts.setdefault(uid, len(prompts)) for uid in data.pop("uid").tolist()]
    notes = data.pop("extra_fields").tolist()
    lengths_B = data["response_mask"].offsets().diff()
    data = data.to_padded_tensor()
    samples = Samples(
        token_ids_BT=data["responses"],
        mask_BT=data["response_mask"],
        lengths_B=lengths_B,
        truncated_B=torch.tensor([note["truncated"] for note in notes]),
        student_logprobs_BT=data[student],
        # verl's synthetic padding samples keep the teacher's row of the sample that they were made from.
        teacher_logprobs_BT=data["teacher_logprobs"][:, : data["response_mask"].shape[1]],
        rewards_B=data["rm_scores"].sum(-1),
        groups_B=torch.tensor(groups),
        reference_logprobs_BT=data.get("ref_log_prob", None),
    )
    return samples, notes


def store_mask(batch: Any, samples: Samples) -> None:
    """Make the trained tokens known to verl: it counts and sums over `response_mask` and `loss_mask`."""
    _store(batch, samples.mask_BT, samples.lengths_B, "response_mask", "loss_mask")


def store_advantages(batch: Any, samples: Samples, advantages_BT: torch.Tensor) -> Any:
    """What the update reads, stored as verl stores its own estimator's; returns the batch."""
    return _store(batch, advantages_BT, samples.lengths_B, "advantages", "returns")


def _store(batch: Any, values_BT: torch.Tensor, lengths_B: torch.Tensor, *names: str) -> Any:
    """The same values under some names, of each sample as many as it has tokens."""
    shape = torch.nested.as_nested_tensor([torch.empty(int(length)) for length in lengths_B], layout=torch.jagged)
    values = response_to_nested(values_BT, shape)
    fields = TensorDict(dict.fromkeys(names, values), batch_size=len(batch))
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def guard(samples: Samples, settings: GuardsConfig, *, step: int) -> tuple[Samples, dict[str, float]]:
    """The samples with the guarded mask, and one metric a guard. `step` counts from 0."""
    mask_BT, metrics = samples.mask_BT, {}
    if settings.repetition_ngram:
        _, found = guards.repetition_alarm(
            samples.token_ids_BT, mask_BT, ngram=settings.repetition_ngram, limit=settings.repetition_limit
        )
        metrics |= found
    if settings.truncated_mask:
        mask_BT, found = guards.truncation_mask(mask_BT, samples.truncated_B)
        metrics |= found
    if settings.special_token_mask:
        mask_BT, found = guards.special_token_mask(mask_BT, samples.token_ids_BT, settings.special_token_mask)
        metrics |= found
    if settings.prefix_steps:
        fraction = guards.prefix_fraction(step, settings.prefix_start, settings.prefix_steps)
        mask_BT, found = guards.prefix_mask(mask_BT, fraction)
        metrics |= found
    return dataclasses.replace(samples, mask_BT=mask_BT), metrics


def with_controlled_teacher(samples: Samples, control: str, *, step: int, vocabulary: int) -> Samples:
    """The samples with the teacher that `method.control` names in place of the real one."""
    if control == "shuffled_teacher":
        order = torch.Generator().manual_seed(step)
        teacher_BT = controls.shuffle_tokens(samples.teacher_logprobs_BT, samples.mask_BT, generator=order)
    elif control == "random_teacher":
        same_every_step = torch.Generator().manual_seed(RANDOM_TEACHER_SEED)
        teacher_BT = controls.random_teacher(samples.token_ids_BT, vocabulary, generator=same_every_step)
    elif control == "teacher_is_student":
        teacher_BT = controls.student_as_teacher(samples.student_logprobs_BT)
    else:
        return samples
    return dataclasses.replace(samples, teacher_logprobs_BT=teacher_BT)


def advantages(samples: Samples, method: MethodConfig) -> tuple[torch.Tensor, dict[str, float]]:
    """The advantage of every token, nats, (B, T), and what to report.

    A baseline of `expected_reverse_kl` is not in it: the actor adds it, which has the student's logits.
    """
    log_probs = (samples.student_logprobs_BT, samples.teacher_logprobs_BT, samples.mask_BT)
    mask_BT = samples.mask_BT.bool()
    metrics = {}
    task_BT = None
    if method.task_reward.coef:
        task_B = baselines.task_advantage(samples.rewards_B, samples.groups_B, std=method.task_reward.std)
        task_BT = torch.where(mask_BT, method.task_reward.coef * task_B[:, None], 0.0)
    shape = {"discount": method.discount, "clip": method.clip}
    baseline_BT = None
    if method.baseline in ("group", "batch"):
        one_group_B = torch.zeros_like(samples.groups_B)
        groups_B = samples.groups_B if method.baseline == "group" else one_group_B
        baseline_BT = baselines.group_baseline(charge(*log_probs, **shape), groups_B, mask_BT)
    advantages_BT = reverse_kl_advantage(
        *log_probs,
        **shape,
        coef=method.coef,
        discount_mode=method.discount_mode,
        normalization=method.normalization,
        task_advantage=task_BT,
        baseline=baseline_BT,
    )
    if samples.reference_logprobs_BT is not None:
        gap_BT = guards.reference_kl(samples.student_logprobs_BT, samples.reference_logprobs_BT, kind="k1")
        gap_BT = torch.where(mask_BT, gap_BT, 0.0)
        metrics["guards/reference_kl"] = float(gap_BT.sum() / mask_BT.sum().clamp(min=1))
        advantages_BT = advantages_BT + advantage_of(gap_BT, mask_BT, coef=method.guards.reference_kl_coef)
    if method.control == "flipped_sign":
        advantages_BT = controls.flipped_sign(advantages_BT)
    if method.control == "constant_negative":
        advantages_BT = controls.constant_negative_advantage(mask_BT, magnitude=method.coef)
    return advantages_BT, metrics | _spread(advantages_BT[mask_BT])


def _spread(advantages_n: torch.Tensor) -> dict[str, float]:
    """Mean and variance over the trained tokens; a baseline shows in the second."""
    if len(advantages_n) == 0:
        return {}
    return {
        "advantage/mean": advantages_n.mean().item(),
        "advantage/variance": advantages_n.var(unbiased=False).item(),
    }


# Ratios and states; everything else that a scorer counts is added up.
LEVELS = ("open_breakers", "store_bytes")


def teacher_metrics(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics `teacher/*` of one batch.

    `seconds`: wall-clock during which at least one sample was at the teacher (union of spans). `unscored`: samples
    that no teacher could score, masked out of the loss. `from_store`: samples that no server was asked for. Of the
    scorers: `requests` (HTTP), `sequences`, `tokens` sent, `cached_share` of them in the server's prefix cache,
    `queue_seconds` a sequence, `retries`, `failures`, `times_opened` (breakers), `open_breakers`.
    """
    counts: dict[str, float] = {}
    for sample in samples:
        for name, value in sample["teacher_metrics"].items():
            counts[name] = max(counts.get(name, 0.0), value) if _is_level(name) else counts.get(name, 0.0) + value
    busy = length(union((sample["teacher_start"], sample["teacher_end"]) for sample in samples))
    tokens = sum(sample["teacher_tokens"] for sample in samples)
    unscored = sum(bool(sample["teacher_error"]) for sample in samples)
    found: dict[str, float] = {
        "seconds": busy,
        "tokens_per_second": tokens / busy if busy else 0.0,
        "scored": len(samples) - unscored,
        "unscored": unscored,
        "from_store": sum(sample["teacher_from_store"] for sample in samples),
    }
    if counts.get("sequences"):
        found["cached_share"] = counts.pop("cached_tokens") / counts["tokens"]
        found["queue_seconds"] = counts.pop("queue_seconds") / counts["sequences"]
    return {f"teacher/{name}": value for name, value in (counts | found).items()}


def _is_level(name: str) -> bool:
    return name.rpartition("/")[2] in LEVELS
