"""Which finished prompts a step trains on: verl's buffers over TransferQueue, with waits that end.

verl's own wait for ever where a prompt is never finished (verl#7155), refill a failing prompt without end, and count
age from a prompt's dispatch instead of from the weights that sampled it.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from verl_ext.trainer.accounting import SampleAccount
from verl_ext.trainer.pipeline_config import WAIT, PipelineConfig

# verl looks every 2 s, which is more than a short step.
POLL_INTERVAL_S = 0.02
POLLED_SHARE = 0.2
"""Of the time of a wait, at most, that goes into looking."""


class SamplingStopped(RuntimeError):
    """No more samples come: nothing is finished, or everything fails."""


class StopAsked(Exception):
    """The run is asked to end, where nothing is lost by it."""


class BoundedWait(ReplayBuffer):
    """A wait for samples ends with an error where no more of them is finished for `pipeline.wait_timeout_s`."""

    where: Callable[[], str]
    """What the agent loop is at, in words; asked when a wait ends."""
    lost: Callable[[], str]
    """Who is gone of those who answer, in words; "" where everyone is there."""

    def __init__(self, pipeline: PipelineConfig, **verls: Any) -> None:
        super().__init__(**verls)
        self.poll_interval = POLL_INTERVAL_S
        self.pipeline = pipeline
        self.account = SampleAccount(1)
        self._progress: tuple[int, float] = (0, 0.0)
        self.look: Callable[[str], None] = lambda _: None
        """Called with the partition while its samples are waited for; may raise StopAsked or SamplingStopped."""
        self.validated: list[dict[str, Any]] = []
        """Tags of held-out answers, until the ledger has them."""
        self.dropped: list[dict[str, Any]] = []
        """Tags of samples that no step takes any more, until the ledger has them."""

    def _sync_metadata_from_transfer_queue(self) -> None:
        """verl's look at every sample that is there: soon again, and later where a look takes long."""
        start = time.perf_counter()
        super()._sync_metadata_from_transfer_queue()
        self.poll_interval = max(POLL_INTERVAL_S, (time.perf_counter() - start) / POLLED_SHARE)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict]:
        """Raises SamplingStopped instead of waiting for ever."""
        self._progress = (0, time.monotonic())
        try:
            batch, metrics = super().sample(global_steps, partition_id, batch_size)
        except RuntimeError as error:  # verl's, where every prompt of a synchronous step has failed
            raise SamplingStopped(f"{error} ({self.where()})") from error
        if partition_id == "val":
            self.validated += batch.tags
        return batch, metrics

    def _evict_terminal_groups(
        self,
        global_steps: int,
        partition_id: str,
        eviction_reasons: tuple[set[str], set[str], set[str], Counter],
    ) -> tuple[set[str], int, int, dict]:
        """As verl, which forgets them: what they cost was spent."""
        if prompts := set().union(*eviction_reasons[:3]):  # there are none at most of verl's looks
            tags = self.partitions[partition_id]
            self.dropped += [tag for key, tag in tags.items() if key.split("_")[0] in prompts]
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)

    def _materialize_batch(
        self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict[str, dict]
    ) -> KVBatchMeta:
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        if partition_id != "val":
            self.account.take(len(selected_prompt_uids), batch.keys)
        return batch

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """Of verl's ways to drop prompts, the only one."""
        failed = len(uids & self.failure_keys[partition_id])
        super()._clear_groups(partition_id, uids)
        self.account.drop(failed, failed=True)
        self.account.drop(len(uids) - failed, failed=False)

    def prompts_under_way(self, partition_id: str) -> int:
        """Prompts that are in no batch yet, by TransferQueue's own list."""
        saved = (tq.kv_list(partition_id) or {}).get(partition_id, {})
        return sum(bool(tag.get("is_prompt")) for tag in saved.values())

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if lost := self.lost():
            raise SamplingStopped(lost)
        self.look(partition_id)
        ended = len(self.finished_keys[partition_id] | self.failure_keys[partition_id])
        if ended != self._progress[0]:
            self._progress = (ended, time.monotonic())
        elif time.monotonic() - self._progress[1] > self.pipeline.wait_timeout_s:
            pending, running = len(self.pending_keys[partition_id]), len(self.running_keys[partition_id])
            raise SamplingStopped(
                f"no prompt was finished for pipeline.wait_timeout_s={self.pipeline.wait_timeout_s:g} seconds: "
                f"{ended} are finished, {pending} wait for an agent loop, {running} are being answered"
            )
        return super()._wait_for_next_poll(partition_id, last_debug_time)


class SyncBuffer(BoundedWait):
    """One batch at a time."""


class PipelineBuffer(BoundedWait, ReplayBufferAsync):
    """The oldest finished prompts whose samples are at most `pipeline.ahead` weight versions old."""

    def __init__(self, pipeline: PipelineConfig, **verls: Any) -> None:
        super().__init__(pipeline, **verls)
        self._failed_in_a_row = 0

    def _stale_terminal_keys(self, global_steps: int, partition_id: str) -> set[str]:
        if partition_id == "val":
            return set()
        finished, oldest = self.finished_keys[partition_id], global_steps - 1 - self.pipeline.ahead
        of_finished = ((key.split("_")[0], tag) for key, tag in self.partitions[partition_id].items())
        return {uid for uid, tag in of_finished if uid in finished and tag["min_global_steps"] < oldest}

    def _has_enough_samples(
        self, global_steps: int, partition_id: str, batch_size: int, sampleable_keys: set[str]
    ) -> bool:
        """Not while a prompt is being answered that would be too old a step later, unless those are dropped."""
        if self.pipeline.stale == WAIT and partition_id != "val":
            steps = self.prompt_global_steps[partition_id]
            under_way = self.pending_keys[partition_id] | self.running_keys[partition_id]
            if any(global_steps - steps[uid] >= self.pipeline.ahead for uid in under_way):
                return False
        return len(sampleable_keys) >= batch_size

    def _evict_terminal_groups(
        self,
        global_steps: int,
        partition_id: str,
        eviction_reasons: tuple[set[str], set[str], set[str], Counter],
    ) -> tuple[set[str], int, int, dict]:
        """As verl, which then asks for as many new prompts; not for ever, where every prompt fails."""
        failed = eviction_reasons[2]
        self._failed_in_a_row = 0 if self.finished_keys[partition_id] else self._failed_in_a_row + len(failed)
        assert self.train_batch_size is not None
        if self._failed_in_a_row > self.train_batch_size:
            raise SamplingStopped(f"{self._failed_in_a_row} prompts failed and none was finished")
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)
