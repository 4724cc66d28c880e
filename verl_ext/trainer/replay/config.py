"""The settings of the replay buffer, each with its default here and nowhere else."""

from dataclasses import dataclass, field

from verl_ext.run.settings import one_of, within

DEVICES = ("cpu", "cuda")
PRIORITIES = ("proportional", "rank", "uniform", "recency")


@dataclass(frozen=True)
class ReplayConfig:
    """Which part of a step is samples of earlier steps, and which of those (docs/replay.md).

    share: of a step's prompts, in [0, 1), whose samples are replaced by stored ones: rounded down to whole prompts.
        0 keeps no buffer.
    capacity_tokens: prompt and response tokens held at most, >= 1; the oldest samples make room.
    capacity_bytes: bytes held at most, >= 1; the tighter of the two bounds holds.
    device: where the tokens lie, `cpu` or `cuda`.
    priority: `proportional`, P of a sample ~ priority^exponent; `rank`, ~ (1 / its rank by priority)^exponent;
        `recency`, ~ (1 / its rank by age, the newest first)^exponent; `uniform`. The priority is the mean absolute
        reverse KL of the sample's trained tokens under the student that last saw it, nats.
    exponent: in [0, 10]; 0 is uniform.
    beta_start: exponent of the importance weights (1 / (N P))^beta at the start, in [0, 1]; 1 undoes the priority.
    beta_steps: steps until beta is 1, linearly, >= 0.
    max_uses: times that a sample is trained on again at most, >= 1.
    max_age: weight versions, counted from the one that wrote a sample's first token, after which it is not trained on
        any more, >= 1.
    min_ess: a sample whose effective sample size under the current student, (sum w)^2 / (n sum w^2) of its n trained
        tokens' ratios w, is lower is left out of the step, in [0, 1]. 0 leaves out none.
    """

    share: float = 0.0
    capacity_tokens: int = 2**20
    capacity_bytes: int = field(default=2**30, metadata={"largest": float("inf")})
    device: str = "cpu"
    priority: str = "proportional"
    exponent: float = 0.6
    beta_start: float = 0.4
    beta_steps: int = 100
    max_uses: int = 2
    max_age: int = 4
    min_ess: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"replay.share={self.share} must be in [0, 1)")
        within("replay.capacity_tokens", self.capacity_tokens, 1, float("inf"))
        within("replay.capacity_bytes", self.capacity_bytes, 1, float("inf"))
        one_of("replay.device", self.device, DEVICES)
        one_of("replay.priority", self.priority, PRIORITIES)
        within("replay.exponent", self.exponent, 0.0, 10.0)
        within("replay.beta_start", self.beta_start, 0.0, 1.0)
        within("replay.beta_steps", self.beta_steps, 0, float("inf"))
        within("replay.max_uses", self.max_uses, 1, float("inf"))
        within("replay.max_age", self.max_age, 1, float("inf"))
        within("replay.min_ess", self.min_ess, 0.0, 1.0)

    def beta(self, step: int) -> float:
        """Exponent of the importance weights at a step, which counts from 0."""
        passed = min(1.0, step / self.beta_steps) if self.beta_steps else 1.0
        return self.beta_start + (1.0 - self.beta_start) * passed
