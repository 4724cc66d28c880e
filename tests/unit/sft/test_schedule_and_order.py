import pytest
import torch

from verl_ext.sft.order import ResumingLoader, TinkerBatches, epoch_order
from verl_ext.sft.schedule import linear_multiplier


def test_linear_decay_starts_at_the_peak_and_would_reach_zero_after_the_last_step():
    assert [linear_multiplier(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_warmup_rises_from_zero_and_the_decay_takes_the_rest():
    assert [linear_multiplier(step, 6, 2) for step in range(6)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="lr_warmup_steps"):
        linear_multiplier(0, 4, 4)


def test_each_epoch_has_every_row_once_in_an_order_of_its_own():
    first, second = epoch_order(10, seed=0, epoch=0), epoch_order(10, seed=0, epoch=1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(10, seed=0, epoch=0).tolist()
    assert first.tolist() != epoch_order(10, seed=1, epoch=0).tolist()


def test_the_ranks_shares_make_up_the_global_batch_and_the_rest_is_dropped():
    order = epoch_order(10, seed=0, epoch=3).tolist()
    shares = [TinkerBatches(10, 4, 0, rank, 2) for rank in range(2)]
    for share in shares:
        share.set_epoch(3)
    batches = list(zip(*shares, strict=True))
    assert [sorted([*a, *b]) for a, b in batches] == [sorted(order[:4]), sorted(order[4:8])]


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"data\.train_batch_size=4 must be a multiple of the 3 ranks"):
        TinkerBatches(10, 4, 0, 0, 3)


def loader() -> ResumingLoader:
    return ResumingLoader(torch.arange(10), TinkerBatches(10, 3, 0, 0, 1), collate_fn=torch.stack)


@pytest.mark.parametrize("stop", range(7))
def test_a_resumed_loader_goes_on_with_the_very_next_batch(stop):
    """At the end of an epoch too, where torchdata's loader would skip the next one."""

    def run(batches: ResumingLoader, first: int, last: int) -> list[list[int]]:
        seen = []
        for epoch in range(first // 3, 3):
            batches.batches.set_epoch(epoch)
            for batch in batches:
                seen.append(batch.tolist())
                if first + len(seen) == last:
                    return seen
        return seen

    whole = run(loader(), 0, 9)
    start = loader()
    before = run(start, 0, stop) if stop else []
    resumed = loader()
    resumed.load_state_dict(start.state_dict())
    assert before + run(resumed, stop, 9) == whole
    assert len(whole) == 9
