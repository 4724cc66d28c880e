"""What waits is written together, and every caller hears of its own rows."""

import asyncio
from unittest import mock

import pytest
import torch
import transfer_queue as tq

from verl_ext.trainer.queue_writer import QueueWriter

UIDS = ("a", "b", "c")


def row(number: int, **more) -> dict:
    """A sample of `number` + 1 tokens."""
    return {"ids": torch.arange(number + 1), "uid": UIDS[number], "messages": [{"role": "user"}], **more}


async def put(writer: QueueWriter, number: int, **more) -> None:
    """As verl's agent loop puts a sample, and then its prompt's status."""
    uid, tag = UIDS[number], {"status": "success", "seq_len": number + 1}
    await writer.async_kv_batch_put(keys=[f"{uid}_0_0"], fields=[row(number, **more)], tags=[tag], partition_id="train")
    await writer.async_kv_put(key=uid, partition_id="train", tag={"status": "finished"})


@pytest.fixture
def calls(empty_queue):
    """Keys of each call that reaches the real TransferQueue."""
    seen = []
    theirs = tq.async_kv_batch_put

    async def counted(keys, **more):
        seen.append(list(keys))
        return await theirs(keys=keys, **more)

    with mock.patch.object(tq, "async_kv_batch_put", counted):
        yield seen
    empty_queue()


async def test_samples_that_are_put_together_take_one_call_and_their_statuses_another(calls):
    writer = QueueWriter(left_out=())
    await asyncio.gather(*(put(writer, number) for number in range(3)))
    assert calls == [["a_0_0", "b_0_0", "c_0_0"], ["a", "b", "c"]]
    assert (await tq.async_kv_list("train"))["train"]["b_0_0"] == {"status": "success", "seq_len": 2}
    data = await tq.async_kv_batch_get(keys=["a_0_0", "c_0_0"], partition_id="train")
    assert [ids.tolist() for ids in data["ids"].unbind()] == [[0], [0, 1, 2]]
    assert data.pop("uid").tolist() == ["a", "c"]


async def test_what_comes_while_a_call_is_under_way_is_in_the_next(calls):
    writer = QueueWriter(left_out=())
    first = asyncio.create_task(put(writer, 0))
    while not calls:
        await asyncio.sleep(0)
    await asyncio.gather(first, put(writer, 1), put(writer, 2))
    assert calls[:2] == [["a_0_0"], ["b_0_0", "c_0_0"]]


async def test_samples_with_other_fields_are_put_apart(calls):
    writer = QueueWriter(left_out=())
    await asyncio.gather(put(writer, 0), put(writer, 1, reward=torch.ones(2)), put(writer, 2))
    assert calls[:2] == [["a_0_0", "c_0_0"], ["b_0_0"]]


async def test_columns_that_nobody_reads_stay_behind(calls):
    del calls
    await put(QueueWriter(left_out=("messages",)), 0)
    data = await tq.async_kv_batch_get(keys=["a_0_0"], partition_id="train")
    assert set(data.keys()) == {"ids", "uid"}


async def test_a_call_that_fails_is_heard_by_its_callers_and_the_next_ones_go_on(calls):
    writer = QueueWriter(left_out=())
    outcomes = await asyncio.gather(
        put(writer, 0),
        writer.async_kv_batch_put(keys=["b_0_0"], fields=[{"odd": 1}], tags=[], partition_id="train"),
        return_exceptions=True,
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], ValueError)
    await put(writer, 2)
    assert calls[-1] == ["c"]
