"""The settings that this plugin adds to verl's, each with its default in one place.

`configs/*.yaml` state only departures from these and from verl's own defaults.
"""

from dataclasses import dataclass, field
from typing import Any

from verl_ext.run.settings import one_of, settings_of, within
from verl_ext.trainer.support_config import TEACHER, check_support

POLICY_GRADIENT = "policy_gradient"
DIRECT_LOSSES = ("forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl")
POLICY_LOSSES = ("importance_sampling", "ppo_clip", "truncated_importance_sampling", "masked_importance_sampling")
BASELINES = ("none", "expected_reverse_kl", "group", "batch")
DISCOUNT_MODES = ("fixed", "strict")
NORMALIZATIONS = ("token", "sequence")
STUDENT_LOGPROBS = ("rollout", "old", "current")
NOT_OF_THE_ADVANTAGE = ("none", "no_weight_sync")
CONTROLS = (
    *NOT_OF_THE_ADVANTAGE,
    *("flipped_sign", "shuffled_teacher", "random_teacher", "teacher_is_student", "constant_negative"),
)
WHOLE_VOCABULARY = -1


@dataclass(frozen=True)
class PolicyLossConfig:
    """How an advantage moves the student (`verl_ext.method.policy_loss`).

    kind: `importance_sampling` (Tinker's, unbounded), `ppo_clip` (no gradient past a bound),
        `truncated_importance_sampling` (a ratio past a bound counts as the bound) or `masked_importance_sampling` (a
        token past a bound is dropped).
    low: smallest ratio of student to sampler left alone, in [0, 1]; not read by `importance_sampling`.
    high: largest ratio left alone, >= 1, .inf for no bound; not read by `importance_sampling`.
    """

    kind: str = "importance_sampling"
    low: float = 0.8
    high: float = field(default=1.2, metadata={"largest": float("inf")})

    def __post_init__(self) -> None:
        one_of("method.policy_loss.kind", self.kind, POLICY_LOSSES)
        within("method.policy_loss.low", self.low, 0.0, 1.0)
        within("method.policy_loss.high", self.high, 1.0, float("inf"))


@dataclass(frozen=True)
class TaskRewardConfig:
    """The task's reward beside the teacher (`verl_ext.method.baselines.task_advantage`).

    coef: weight of the group-centred reward in the advantage, >= 0; 0 leaves the reward a diagnostic.
    std: divide by the group's standard deviation, as GRPO; False as Tinker.
    """

    coef: float = 0.0
    std: bool = False

    def __post_init__(self) -> None:
        within("method.task_reward.coef", self.coef, 0.0, float("inf"))


@dataclass(frozen=True)
class LabelReadingConfig:
    """How the reward reads a label out of a response (`verl_ext.data.conversations.read_label`).

    extract: `whole`, the response is the label; `final_answer`, it follows `Final Answer:`.
    policy: `strict`, the label that a person would read (`Positive.` is `positive`); `exact`, character for character.
    label_set: all labels of the task. Empty: the right answers of the data, where there are at most 100.
    """

    extract: str = "whole"
    policy: str = "strict"
    label_set: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of("method.labels.extract", self.extract, ("whole", "final_answer"))
        one_of("method.labels.policy", self.policy, ("strict", "exact"))


@dataclass(frozen=True)
class GuardsConfig:
    """What keeps training away from bad tokens and samples (`verl_ext.method.guards`); all but the last two are off
    by default.

    truncated_mask: leave out samples that were cut off before their end, by whatever limit.
    special_token_mask: token ids to leave out, each >= 0.
    repetition_ngram: tokens in an n-gram for the repetition metrics, >= 1; 0 turns them off.
    repetition_limit: share of repeated n-grams above which a sample is counted as flagged, in [0, 1].
    reference_kl_coef: weight of the reverse KL to the frozen first student in the advantage, >= 0. Above 0, verl keeps
        a reference model.
    prefix_start: share of each response that is trained on in the first step, in (0, 1].
    prefix_steps: steps until the whole response is, linearly, >= 0; 0 trains on all of it from the start.
    max_failed_share: share of a step's samples that may fail of an error, in [0, 1]; beyond it the run stops.
    max_bad_updates: updates in a row that may be skipped for a gradient that is not finite, or leave weights that are
        not or absurdly large; with the last of them the run stops. >= 1.
    """

    truncated_mask: bool = False
    special_token_mask: list[int] = field(default_factory=list)
    repetition_ngram: int = 0
    repetition_limit: float = 0.5
    reference_kl_coef: float = 0.0
    prefix_start: float = 0.25
    prefix_steps: int = 0
    max_failed_share: float = 0.1
    max_bad_updates: int = 3

    def __post_init__(self) -> None:
        within("method.guards.special_token_mask", min(self.special_token_mask, default=0), 0, float("inf"))
        within("method.guards.repetition_ngram", self.repetition_ngram, 0, float("inf"))
        within("method.guards.repetition_limit", self.repetition_limit, 0.0, 1.0)
        within("method.guards.reference_kl_coef", self.reference_kl_coef, 0.0, float("inf"))
        within("method.guards.prefix_steps", self.prefix_steps, 0, float("inf"))
        within("method.guards.max_failed_share", self.max_failed_share, 0.0, 1.0)
        within("method.guards.max_bad_updates", self.max_bad_updates, 1, float("inf"))
        if not 0.0 < self.prefix_start <= 1.0:
            raise ValueError(f"method.guards.prefix_start={self.prefix_start} must be in (0, 1]")


@dataclass(frozen=True)
class MethodConfig:
    """How the teacher's log-probs become an update (`verl_ext.method`). The defaults are Tinker's.

    loss: `policy_gradient` charges each sampled token its reverse KL. The others are direct losses: a divergence
        between both distributions at every position of the sampled response, from the teacher's `top_k` tokens.
    coef: weight of the reverse KL in the advantage, or of the direct loss, >= 0. Tinker's `kl_penalty_coef`.
    discount: share of the next token's reverse KL that a token is charged for, in [0, 1].
        Tinker's `kl_discount_factor`.
    discount_mode: `fixed` keeps masked tokens at advantage 0; `strict` copies Tinker, which leaks onto them.
    clip: bound of one token's absolute reverse KL, nats, > 0. None for no bound.
    normalization: `token` as Tinker; `sequence` divides by the number of tokens of the response.
    baseline: subtracted from the reverse KL, without bias: `expected_reverse_kl` of the position (from `top_k`), the
        mean over the other samples of the `group` (one prompt) or of the `batch`. `none` as Tinker.
    student_logprobs: whose log-probs the reverse KL takes: the `rollout`'s as Tinker, the trainer's `old` ones, which
        need `algorithm.rollout_correction.bypass_mode=false`, or those of the `current` student in the loss, without
        gradient: of samples that an older student drew, what this one would be charged.
    policy_loss: see PolicyLossConfig.
    task_reward: see TaskRewardConfig.
    labels: see LabelReadingConfig.
    top_k: most likely tokens a position, >= 1; 0 asks for none; -1 for the whole vocabulary (small ones).
    support: whose most likely tokens those are, the `teacher`'s or the `student`'s, as its sampler has them.
    support_tokens: with support=student, different tokens of a response that the teacher is asked for, >= 1 (and at
        least top_k); a server answers all of them at each position. What else the support names is left to the tail.
    tail: a direct loss counts the rest of the vocabulary as one more token. False may be negative.
    tail_samples: with loss=reverse_kl, sampled tokens in the tail stand for how it is divided (docs/method.md).
    mix: weight of the mixture, in [0, 1), not 0 for `jensen_shannon`; read by it and the skewed losses alone.
    chunk_tokens: positions whose logits a direct loss holds in fp32 at once, >= 1.
    guards: see GuardsConfig.
    off_policy_share: of a step's prompts, in [0, 1), in whose place it trains on the teacher's own answers, by
        cross-entropy: rounded down to whole prompts.
    off_policy_data: file of them, of `verl-opd data teacher=...` or `verl-opd generate view=teacher`.
    control: breaks one thing on purpose, to show where the learning comes from: `flipped_sign` negates the advantage,
        `shuffled_teacher` permutes the teacher's log-probs among the batch's tokens, `random_teacher` takes a fixed
        random distribution, `teacher_is_student` the sampler's log-probs, `constant_negative` the advantage -coef
        everywhere, `no_weight_sync` leaves the sampler at its first weights. `none` for a real run.
    """

    loss: str = POLICY_GRADIENT
    coef: float = 1.0
    discount: float = 0.0
    discount_mode: str = "fixed"
    clip: float | None = None
    normalization: str = "token"
    baseline: str = "none"
    student_logprobs: str = "rollout"
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    task_reward: TaskRewardConfig = field(default_factory=TaskRewardConfig)
    labels: LabelReadingConfig = field(default_factory=LabelReadingConfig)
    top_k: int = 0
    support: str = TEACHER
    support_tokens: int = 256
    tail: bool = True
    tail_samples: bool = False
    mix: float = 0.5
    chunk_tokens: int = 1024
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    off_policy_share: float = 0.0
    off_policy_data: str = ""
    control: str = "none"

    @property
    def is_direct(self) -> bool:
        """The loss is a divergence between distributions; no advantage is in it."""
        return self.loss != POLICY_GRADIENT

    @property
    def needs_student_logits(self) -> bool:
        """The actor computes something from its logits beside the log-probs of the sampled tokens."""
        return self.is_direct or self.baseline == "expected_reverse_kl"

    def __post_init__(self) -> None:
        one_of("method.loss", self.loss, (POLICY_GRADIENT, *DIRECT_LOSSES))
        one_of("method.discount_mode", self.discount_mode, DISCOUNT_MODES)
        one_of("method.normalization", self.normalization, NORMALIZATIONS)
        one_of("method.baseline", self.baseline, BASELINES)
        one_of("method.student_logprobs", self.student_logprobs, STUDENT_LOGPROBS)
        one_of("method.control", self.control, CONTROLS)
        within("method.coef", self.coef, 0.0, float("inf"))
        within("method.discount", self.discount, 0.0, 1.0)
        within("method.chunk_tokens", self.chunk_tokens, 1, float("inf"))
        within("method.top_k", self.top_k, WHOLE_VOCABULARY, float("inf"))
        within("method.support_tokens", self.support_tokens, 1, float("inf"))
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"method.clip={self.clip} must be > 0 nats, or null for no bound")
        self._check_mix()
        check_support(self)
        if self.is_direct:
            self._check_direct()
        elif self.needs_student_logits:
            self._check_expected_baseline()
        elif self.top_k:
            raise ValueError(
                f"method.top_k={self.top_k} with loss=policy_gradient: a top-k KL does not depend on the sampled "
                "token, so as an advantage its expected gradient is zero; set method.loss to a direct loss, or "
                "method.baseline=expected_reverse_kl"
            )
        if self.student_logprobs == "current":
            self._check_control("method.student_logprobs=rollout")
            if self.clip is not None:
                raise ValueError(
                    f"method.clip={self.clip} acts on the trainer's reverse KL, and method.student_logprobs=current "
                    "takes it in the loss: leave one out"
                )
        if not 0.0 <= self.off_policy_share < 1.0:
            raise ValueError(f"method.off_policy_share={self.off_policy_share} must be in [0, 1)")
        if self.control == "constant_negative" and self.coef == 0:
            raise ValueError("method.control=constant_negative takes its size from method.coef: set it above 0")

    def _check_mix(self) -> None:
        if not 0.0 <= self.mix < 1.0 and self.loss != "jensen_shannon":
            raise ValueError(f"method.mix={self.mix} must be in [0, 1)")
        if self.loss == "jensen_shannon" and not 0.0 < self.mix < 1.0:
            raise ValueError(
                f"method.mix={self.mix} must be in (0, 1) for jensen_shannon; its limits are forward_kl and reverse_kl"
            )

    def _check_direct(self) -> None:
        """A direct loss reads no advantage: what shapes one would be ignored in silence."""
        if self.top_k == 0:
            raise ValueError(f"method.loss={self.loss} needs the teacher's top tokens: set method.top_k, as in 64")
        plain = MethodConfig()
        keys = ("discount", "clip", "normalization", "baseline", "student_logprobs", "policy_loss", "task_reward")
        shaping = [key for key in keys if getattr(self, key) != getattr(plain, key)]
        if self.guards.reference_kl_coef:
            shaping.append("guards.reference_kl_coef")
        if shaping:
            raise ValueError(
                f"method.{shaping[0]} shapes an advantage and method.loss={self.loss} has none: leave it out"
            )
        self._check_control("method.loss=policy_gradient")

    def _check_expected_baseline(self) -> None:
        if self.top_k == 0:
            raise ValueError(
                "method.baseline=expected_reverse_kl needs the teacher's top tokens: set method.top_k, as in 64"
            )
        self._check_control("method.baseline=none")

    def _check_control(self, fix: str) -> None:
        """The controls act on the advantage in the trainer, not on what the actor computes from its logits."""
        if self.control not in NOT_OF_THE_ADVANTAGE:
            raise ValueError(f"method.control={self.control} acts on the sampled tokens' advantages: take {fix}")


def check_method(config: Any) -> MethodConfig:
    """The method of a whole run's configuration, checked against verl's settings beside it.

    Raises:
        ValueError: naming the key and the fix.
    """
    method = settings_of(config.method, MethodConfig)
    bypass = config.algorithm.rollout_correction.bypass_mode
    if method.student_logprobs == "old" and bypass:
        raise ValueError(
            "method.student_logprobs=old needs the trainer's own log-probs, which "
            "algorithm.rollout_correction.bypass_mode=true does not compute: set it to false"
        )
    reference = method.guards.reference_kl_coef
    if reference and config.trainer.device == "cpu":
        raise ValueError(
            f"method.guards.reference_kl_coef={reference} needs verl's reference model, which FSDP2 keeps in pinned "
            "memory, and a machine with no accelerator has none: set it to 0 there"
        )
    if config.actor_rollout_ref.actor.use_kl_loss and config.trainer.device == "cpu":
        raise ValueError(
            "actor_rollout_ref.actor.use_kl_loss=true needs verl's reference model, which a machine with no "
            "accelerator has no memory for: set it to false there"
        )
    if method.is_direct and config.actor_rollout_ref.actor.use_kl_loss:
        raise ValueError(
            f"actor_rollout_ref.actor.use_kl_loss=true is part of verl's policy loss, and method.loss={method.loss} "
            "has none: set it to false"
        )
    if method.needs_student_logits and config.actor_rollout_ref.model.use_fused_kernels:
        raise ValueError(
            f"actor_rollout_ref.model.use_fused_kernels=true makes no logits, and method.loss={method.loss}, "
            f"method.baseline={method.baseline} read them: set it to false"
        )
    return method
