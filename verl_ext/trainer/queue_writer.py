"""What the agent loop puts into TransferQueue at the same time goes there in one call.

verl puts each sample alone, and each prompt's status twice: four messages a call between three processes, 12 ms a
sample on a slow core. Here, what waits while a call is under way is in the next one; each caller goes on when its own
rows are stored, as with verl's.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

Row = dict[str, Any]
ROLLOUT, OLD = "rollout_log_probs", "old_log_probs"
"""The second is what verl's loss reads: a copy of the first, where verl's trainer does not make its own."""
COLUMNS = "columns"
"""Among a sample's `extra_fields`, columns of its own; verl takes the data row's for all of its outputs."""


@dataclass(frozen=True)
class _Put:
    """What one caller waits for."""

    keys: list[str]
    partition_id: str
    rows: list[Row] | None
    """One a key, all with the same fields; None: tags alone."""
    tags: list[dict[str, Any]]
    done: asyncio.Future[None]


class QueueWriter:
    """The functions of `transfer_queue` that verl's agent loop calls; `install` puts it in their place."""

    def __init__(self, left_out: tuple[str, ...]) -> None:
        """`left_out`: columns of the data that nobody reads after a sample is scored."""
        self._left_out = left_out
        self._waiting: list[_Put] = []
        self._writing: asyncio.Task[None] | None = None

    def install(self) -> None:
        """In this process; verl builds a TensorDict a sample, where this builds one a call."""
        module: Any = agent_loop_tq
        module.tq = self
        module.list_of_dict_to_tensordict = list

    def init(self) -> None:
        tq.init()

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        await self._put([key], partition_id, None, [tag])

    async def async_kv_batch_put(
        self, keys: list[str], fields: list[Row], tags: list[dict[str, Any]], partition_id: str
    ) -> None:
        rows = [{name: value for name, value in row.items() if name not in self._left_out} for row in fields]
        for row in rows:
            row.update(row.get("extra_fields", {}).pop(COLUMNS, {}))
            if ROLLOUT in row:
                row[OLD] = row[ROLLOUT]
        await self._put(keys, partition_id, rows, tags)

    async def _put(self, keys: list[str], partition_id: str, rows: list[Row] | None, tags: list[dict]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Put(keys, partition_id, rows, tags, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await done

    async def _write(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            alike: dict[tuple[Any, ...], list[_Put]] = {}
            for put in waiting:
                fields = None if put.rows is None else tuple(sorted(put.rows[0]))
                alike.setdefault((put.partition_id, fields), []).append(put)
            for (partition_id, _), puts in alike.items():
                await self._write_alike(partition_id, puts)

    async def _write_alike(self, partition_id: str, puts: list[_Put]) -> None:
        rows = [row for put in puts for row in put.rows or ()]
        try:
            await tq.async_kv_batch_put(
                keys=[key for put in puts for key in put.keys],
                partition_id=partition_id,
                fields=list_of_dict_to_tensordict(rows) if rows else None,
                tags=[tag for put in puts for tag in put.tags],
            )
        except Exception as error:  # whatever it is, it belongs to those who wait for it
            failure = error
        else:
            failure = None
        for put in puts:
            if put.done.done():
                continue  # its caller was cancelled
            if failure is None:
                put.done.set_result(None)
            else:
                put.done.set_exception(failure)
