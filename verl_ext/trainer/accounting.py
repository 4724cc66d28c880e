"""Every sample that was sent out is trained on, masked, dropped or still under way: counted, and proved in every step.

Samples are answers, `rollout.n` of a prompt. verl's synthetic padding rows and replayed ones are none.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class SampleAccount:
    """Of one training process. The counts are those of the present step; `pending` is what was left by the one before.

    dispatched: sent to the agent loop.
    trained: in an update, with at least one token that is trained.
    masked: in an update's batch, without one: no teacher scored it, or a guard left it out.
    dropped: in no batch: too old, failed, or in a group of which a sample failed.
    failed: those of the dropped that an error cost.
    """

    samples_a_prompt: int
    pending: int = 0
    dispatched: int = 0
    trained: int = 0
    masked: int = 0
    dropped: int = 0
    failed: int = 0
    taken: int = field(default=0, repr=False)
    """In batches, by the buffer that made them."""

    def begin(self, prompts: int) -> None:
        """At the start: `prompts` are under way already, as a checkpoint holds them."""
        self.pending = prompts * self.samples_a_prompt

    def dispatch(self, prompts: int) -> None:
        self.dispatched += prompts * self.samples_a_prompt

    def drop(self, prompts: int, *, failed: bool) -> None:
        """Prompts whose samples are in no batch."""
        self.dropped += prompts * self.samples_a_prompt
        self.failed += failed * prompts * self.samples_a_prompt

    def take(self, prompts: int, keys: Iterable[str]) -> None:
        """A batch of `prompts`, of which these samples are there; the others failed."""
        there = len({sample_of(key) for key in keys})
        self.taken += there
        self.dropped += prompts * self.samples_a_prompt - there
        self.failed += prompts * self.samples_a_prompt - there

    def use(self, keys: Iterable[str], trained: Iterable[bool]) -> None:
        """What an update does with the rows of its batch; a sample of several rows is trained where one of them is."""
        found: dict[str, bool] = {}
        for key, is_trained in zip(keys, trained, strict=True):
            found[sample_of(key)] = found.get(sample_of(key), False) or is_trained
        self.trained += sum(found.values())
        self.masked += len(found) - sum(found.values())

    @property
    def failed_share(self) -> float:
        """Of the samples that ended in this step so far."""
        ended = self.taken + self.dropped
        return self.failed / ended if ended else 0.0

    def close(self, step: int, prompts: int) -> dict[str, float]:
        """Prove the step, and begin the next one.

        Args:
            prompts: those that are under way now, by TransferQueue.

        Returns:
            Metrics `samples/*`, in samples.

        Raises:
            RuntimeError: if a sample is missing, or counted twice.
        """
        before, after = self.pending, prompts * self.samples_a_prompt
        used = self.trained + self.masked
        if before + self.dispatched != used + self.dropped + after or used != self.taken:
            raise RuntimeError(
                f"the samples of step {step} do not add up: {before} were under way and {self.dispatched} were sent "
                f"out; {self.trained} were trained on, {self.masked} masked, {self.dropped} dropped and {after} are "
                f"under way, of {self.taken} that were taken; this is a fault of verl-opd's: please report it"
            )
        metrics = {"pending": after} | {
            name: getattr(self, name) for name in ("dispatched", "trained", "masked", "dropped", "failed")
        }
        self.pending = after
        self.dispatched = self.trained = self.masked = self.dropped = self.failed = self.taken = 0
        return {f"samples/{name}": float(count) for name, count in metrics.items()}


def sample_of(key: str) -> str:
    """A row's sample: `{prompt}_{sample}` of `{prompt}_{sample}_{row}`."""
    return key.rsplit("_", 1)[0]
