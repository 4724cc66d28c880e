"""The task of rewriting: its rule by hand, what its base learns, and that a mistake reaches the box."""

import json
import random

import torch

from verl_ext.data.rows import check_rows
from verl_ext.demo import rewriting
from verl_ext.demo.rewriting import STEPS, Problem, problems, write_sentences
from verl_ext.demo.train_rewriting import answers, changed_states, contexts, guesses, make_tokenizer, places
from verl_ext.evaluation.match import math_match


def test_the_moves_by_hand():
    row = Problem((2, 7, 5), "LRTVLRTV")
    assert row.sentence == "275 aL bR cT dV eL fR gT hV"
    # swap first two, swap last two, first to the end, turned round, and again
    assert row.states == [(7, 2, 5), (7, 5, 2), (5, 2, 7), (7, 2, 5), (2, 7, 5), (2, 5, 7), (5, 7, 2), (2, 7, 5)]
    assert row.answer(row.states).startswith("aL=725 bR=752 cT=527 dV=725 ")
    assert row.answer(row.states).endswith("hV=275 \\boxed{275}")


def test_a_mistake_is_carried_to_the_box_where_the_rule_looks():
    row = Problem((2, 7, 5), "LRTVLRTV")
    truth = rewriting.written(row.states[-1])
    wrong, state = [], (2, 7, 5)  # the first move is left out
    for step, move in enumerate(row.moves):
        state = state if step == 0 else rewriting.moved(state, move)
        wrong.append(state)
    assert math_match(row.answer(row.states), truth) == 1.0
    assert math_match(row.answer(wrong), truth) == 0.0


def test_sentences_become_rows(tmp_path):
    from recipe import PROMPTS
    from verl_ext.data.create import RowsConfig, create_rows

    write_sentences(tmp_path / "moves.jsonl", 40, seed=0)
    rows = RowsConfig(
        out_dir=f"{tmp_path}/data",
        source="file",
        sentences=f"{tmp_path}/moves.jsonl",
        prompt=f"{tmp_path}/prompt.txt",
        data_source="math",
    )
    create_rows(rows, PROMPTS)
    lines = [json.loads(line) for line in (tmp_path / "moves.jsonl").read_text().splitlines()]
    truths = {line["text"]: line["label"] for line in lines}
    assert len(truths) == 40
    for row in check_rows("data", f"{tmp_path}/data/heldout.parquet"):
        sentence = row["prompt"][0]["content"]
        assert row["reward_model"]["ground_truth"] == truths[sentence]
        assert row["teacher_messages"][0]["content"] == rewriting.PROMPT.replace("{text}", sentence)


def test_an_answer_has_48_tokens_and_its_digits_where_they_are_looked_for():
    tokenizer = make_tokenizer()
    rows = problems(8, 1)
    ids = answers(tokenizer, rows, [each.states for each in rows])
    assert ids.shape == (8, 48)
    for row, answer in zip(rows, ids, strict=True):
        for step in range(len(STEPS)):
            text = tokenizer.decode(answer[list(places(step))])
            assert text == rewriting.written(row.states[step])
    for prompted in (True, False):
        assert len({len(each) for each in contexts(tokenizer, rows, prompted)}) == 1


def test_what_is_learned_without_the_prompt():
    """The digits stay half of the time, each other order has a tenth; the last digit follows from the two before."""
    rng = random.Random(0)
    row = Problem((1, 2, 3), "L" * len(STEPS))
    drawn = [guesses(row, rng) for _ in range(2000)]
    first = torch.tensor([chances[0] for _, chances in drawn])
    assert torch.allclose(first, torch.tensor([0, 0.6, 0.2, 0.2, *[0] * 6]))  # 1 stays: two of the six orders
    stayed = sum(states[0] == (1, 2, 3) for states, _ in drawn) / len(drawn)
    assert abs(stayed - 0.5) < 0.05
    for states, chances in drawn[:50]:
        for step, state in enumerate(states):
            assert chances[3 * step + 2][state[2]] == 1.0
            assert sorted(state) == [1, 2, 3]


def test_what_was_changed_is_gone_on_from_and_not_learned():
    rng = random.Random(0)
    seen = set()
    for row in problems(200, 2):
        states, learned = changed_states(row, rng)
        before = row.start
        for state, move, kept in zip(states, row.moves, learned, strict=True):
            assert not kept or state == rewriting.moved(before, move)
            seen.add(kept)
            before = state
    assert seen == {True, False}
