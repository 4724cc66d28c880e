"""The settings of a comparison: a task, and the arms that are run on it."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ext.run.hydra import schema_of
from verl_ext.run.settings import above, one_of, settings_of, within

SFT, ON_POLICY, BOTH, CONTROL = KINDS = ("sft", "on_policy", "sft_then_on_policy", "control")


@dataclass(frozen=True)
class ArmConfig:
    """One way to train, once a seed."""

    kind: str = ON_POLICY
    """`sft` (on the teacher's labels), `on_policy`, `sft_then_on_policy`, or `control`: on-policy, with a teacher that
    must not work (`method.control=...`)."""
    overrides: list[str] = field(default_factory=list)
    """Words of `recipe.sft` for an arm of the kind `sft`, of `recipe.on_policy_distillation` for the others; they come
    after those of the task."""
    sft_overrides: list[str] = field(default_factory=list)
    """Words of `recipe.sft` for the first part of `sft_then_on_policy`."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of the rows' order, and of the answers that are sampled (`data.seed`), or of SFT (`sft.seed`); each >= 0."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds={self.seeds} must be different numbers >= 0, at least one")
        if self.sft_overrides and self.kind != BOTH:
            raise ValueError(f"sft_overrides go with kind={BOTH}; kind={self.kind} takes none, leave them out")


@dataclass(frozen=True)
class TaskConfig:
    """What is learned: rows, a base, and what each verb is told about them. Words are `key=value` overrides."""

    name: str = "???"
    """Of the task, for the report."""
    question: str = "???"
    """What the comparison is to answer, in a sentence."""
    data: str = "???"
    """Folder of train.parquet and heldout.parquet."""
    base: str = "???"
    """Folder or hub name of the student before training; with the prompt it is the teacher."""
    teacher: str = "???"
    """Folder or hub name of the teacher."""
    sentences: list[str] = field(default_factory=list)
    """Module and its words that make the file of sentences; empty: it is there."""
    rows: list[str] = field(default_factory=list)
    """Words of `recipe.create_data` that make the rows; empty: they are there."""
    make_base: list[str] = field(default_factory=list)
    """Module and its words that make the base; empty: it is there."""
    labels: list[str] = field(default_factory=list)
    """Words of `recipe.create_data` that make the teacher's labels, beside `rows`."""
    sft: list[str] = field(default_factory=list)
    """Words of `recipe.sft`. Each checkpoint (`trainer.save_freq`) is a point of the curve."""
    on_policy: list[str] = field(default_factory=list)
    """Words of `recipe.on_policy_distillation`. Each validation (`trainer.test_freq`) is a point of the curve."""
    serve: list[str] = field(default_factory=list)
    """Words of `recipe.serve_teacher` (`teacher.*`) for the one server that scores for all arms."""
    evaluate: list[str] = field(default_factory=list)
    """Words of `recipe.evaluate`."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `python -m recipe.compare run`."""

    out: str = "???"
    """Folder of everything; the same command goes on there."""
    only: list[str] = field(default_factory=list)
    """Arms that are run; empty: all."""
    target_share: float = 0.9
    """Share of the teacher's held-out accuracy that counts as learned, in (0, 1]."""
    least_headroom: float = 0.05
    """Held-out accuracy that the teacher must have over the base, in [-1, 1): with less, nothing is trained."""
    arm_timeout_s: float = 14400.0
    """Seconds after which a command of an arm is ended and the arm has failed, > 0."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What is learned (configs/comparison/task)."""
    arms: dict[str, Any] = field(default_factory=dict)
    """Name -> fields of ArmConfig (configs/comparison/arms)."""

    def __post_init__(self) -> None:
        within("target_share", self.target_share, 1e-6, 1)
        within("least_headroom", self.least_headroom, -1, 1 - 1e-6)
        above("arm_timeout_s", self.arm_timeout_s, 0)
        if unknown := [name for name in self.only if name not in self.arms]:
            raise ValueError(f"only={unknown[0]}: no such arm; there are {', '.join(self.arms)}")
        for name in self.arms:
            arm = self.arm(name)
            if arm.kind == CONTROL and not any(word.startswith("method.control=") for word in arm.overrides):
                raise ValueError(f"arms.{name}: a control needs method.control=... in its overrides")
        unlabelled = [name for name, arm in self.chosen.items() if arm.kind in (SFT, BOTH)]
        if unlabelled and not self.task.labels:
            raise ValueError(
                f"arms.{unlabelled[0]} is trained on the teacher's labels, and task.labels says not how they are made; "
                "set it, or only=[...] without arms of SFT"
            )

    def arm(self, name: str) -> ArmConfig:
        """Raises ValueError naming the arm, where its fields are none of an arm."""
        try:
            return settings_of(OmegaConf.merge(schema_of(ArmConfig), self.arms[name]), ArmConfig)
        except (ValueError, OmegaConfBaseException) as error:
            raise ValueError(f"arms.{name}: {str(error).splitlines()[0]}") from None

    @property
    def chosen(self) -> dict[str, ArmConfig]:
        """The arms that are run."""
        return {name: self.arm(name) for name in self.arms if not self.only or name in self.only}
