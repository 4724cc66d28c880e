"""The formula by hand, and beside `torch.utils.flop_counter`."""

import pytest

from benchmarks.arms.counted_flops import compare
from benchmarks.flops import MODELS, SAME
from verl_ext.ledger.flops import (
    Adapters,
    Work,
    adapters_of,
    answer,
    backward,
    forward,
    matrices,
    pairs,
    scored,
    sequence,
    shared_prompt,
)
from verl_ext.run.model_shape import ATTENTION, PROJECTIONS, ModelShape, shape_from

# 1 layer: q 4x4, k 4x2, v 4x2, o 4x4 = 48; gate, up, down 3 x 4x6 = 72.
DENSE = ModelShape(hidden=4, layers=1, heads=2, kv_heads=1, head_size=2, intermediate=6, vocab=10, tied=True)
MATRICES, HEAD = 120, 40
LAYERS = 4


def test_matrices_are_the_layers_weights_without_norms_and_biases():
    assert matrices(DENSE) == MATRICES
    biased = ModelShape(
        hidden=4, layers=1, heads=2, kv_heads=1, head_size=2, intermediate=6, vocab=10, tied=True, normed=False,
        biased=True,
    )  # fmt: skip
    assert matrices(biased) == MATRICES


def test_of_experts_the_active_ones_and_the_router_count():
    shape = ModelShape(
        hidden=4, layers=2, heads=2, kv_heads=1, head_size=2, intermediate=6, vocab=10, tied=True, experts=8,
        active_experts=2,
    )  # fmt: skip
    assert matrices(shape) == 2 * (48 + 2 * 72 + 8 * 4)


def test_each_token_meets_itself_and_all_before():
    assert pairs(0, 3) == 1 + 2 + 3
    assert pairs(2, 3) == 3
    assert sequence(3) == Work(tokens=3, pairs=6, rows=3)


def test_a_prompt_that_is_read_once_is_counted_once():
    # Prompt 3; answers of 2 and 1 see it and themselves: 6, 4 + 5 and 4 pairs.
    assert shared_prompt(3, [2, 1]) == Work(tokens=6, pairs=6 + 9 + 4, rows=1 + 3)
    assert shared_prompt(3, [2]).tokens + shared_prompt(3, [1]).tokens == 9


def test_an_answers_last_token_is_drawn_and_not_read():
    assert answer(3, 2) == Work(tokens=4, pairs=10, rows=2)
    assert answer(3, 2, cached=2) == Work(tokens=2, pairs=3 + 4, rows=2)
    assert answer(3, 0) == Work(tokens=3, pairs=6, rows=0)


def test_scoring_reads_responses_and_the_ends_of_prompts():
    two = [(3, 2), (3, 2)]  # one prompt, two answers: 4 + 5 pairs each
    assert scored(7, two, prompts=1) == Work(tokens=7, pairs=2 * 9 + 6, rows=4)
    assert scored(5, two, prompts=1) == Work(tokens=5, pairs=2 * 9 + 3, rows=4)  # but the prompt's last token cached
    assert scored(10, two, prompts=1) == Work(tokens=10, pairs=2 * 9 + 2 * 6, rows=4)  # read a second time
    assert scored(2, two, prompts=1) == Work(tokens=2, pairs=9, rows=2)  # half of the responses cached too
    assert scored(0, [], prompts=0) == Work()


def test_forward_and_backward_by_hand():
    work = Work(tokens=5, pairs=7, rows=2)
    once, attention = 2 * 5 * MATRICES + 2 * 2 * HEAD, 4 * 4 * 7
    assert forward(DENSE, work) == once + attention
    assert backward(DENSE, work) == 2 * (once + attention)
    lora = Adapters(layers=11, head=3)
    adapted = 2 * 5 * 11 + 2 * 2 * 3
    assert forward(DENSE, work, lora) == once + attention + adapted
    assert backward(DENSE, work, lora) == once + 2 * (attention + adapted)


def test_adapters_of_the_layers_and_of_the_head():
    assert adapters_of(DENSE, 0, "all-linear") is None
    assert adapters_of(DENSE, 2, ["q_proj", "lm_head"]) == Adapters(layers=2 * (4 + 4), head=2 * (4 + 10))
    everything = adapters_of(DENSE, 2, "all-linear")
    assert everything == adapters_of(DENSE, 2, PROJECTIONS)
    assert everything is not None
    assert everything.head == 0


@pytest.mark.parametrize(("rank", "head"), [(0, ()), (16, ()), (16, ("lm_head",))])
@pytest.mark.parametrize(
    ("name", "tokens", "whole"),
    [("tiny pair", 32, True), ("tiny pair", 3, False), ("experts", 8, True), ("SmolLM2-135M", 8, True)],
)
def test_the_formula_is_what_torch_counts(name, tokens, whole, rank, head):
    config, device = MODELS[name]
    config = config | {"num_hidden_layers": min(LAYERS, config["num_hidden_layers"])}  # all are alike
    targets = (*(ATTENTION if shape_from(config).experts else PROJECTIONS), *head) if rank else ()
    for found in compare(config, tokens, rank, targets, whole=whole, device=device):
        assert abs(found.error) < SAME, found
