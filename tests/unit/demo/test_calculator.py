"""The task of sums: what its rows ask, what its base learns, and the table that is made of two runs."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_ext.data.rows import check_rows
from verl_ext.demo.calculator import HELDOUT_ROWS, PROMPT, SINGLE_TURN, TOOL_AGENT, call, sums, value, write_rows
from verl_ext.demo.tiny_pair import TURN_END
from verl_ext.demo.tools import show_table
from verl_ext.demo.train_calculator import IGNORED, context, encoded, make_tokenizer, with_prompt, without_prompt
from verl_ext.run.samples import SAMPLES, SCHEMA
from verl_ext.trainer.tools import function_schemas

TOOL = Path(__file__).parents[3] / "examples/calculator.py"


@pytest.fixture(scope="module")
def tools():
    return function_schemas(TOOL)


@pytest.fixture(scope="module")
def tokenizer(tools):
    return make_tokenizer(tools)


def test_rows_ask_each_held_out_sum_in_three_ways_and_no_sum_twice(tmp_path):
    assert write_rows(tmp_path) == {"train": len(sums()) - HELDOUT_ROWS, "heldout": 3 * HELDOUT_ROWS}
    train, held = (check_rows("data", f"{tmp_path}/{name}.parquet") for name in ("train", "heldout"))
    asked = {row["prompt"][0]["content"] for row in train}
    kinds = {"sums": TOOL_AGENT, "sums_prompted": TOOL_AGENT, "sums_without_tool": SINGLE_TURN}
    assert {row["data_source"]: row["agent_name"] for row in held} == kinds
    for row in held:
        told = row["teacher_messages"][0]["content"]
        text = told.removeprefix(PROMPT.replace("{text}", ""))
        assert text not in asked
        assert row["prompt"][0]["content"] == (told if row["data_source"] == "sums_prompted" else text)
        assert row["reward_model"]["ground_truth"] == value(text)


def test_the_base_learns_what_it_says_and_nothing_of_what_the_tool_says(tokenizer):
    rng = random.Random(0)
    for text in sums()[:20]:
        ids, targets = encoded(tokenizer, with_prompt(text, rng))
        learned = tokenizer.decode([target for target in targets if target != IGNORED])
        assert "tool_response" in tokenizer.decode(ids)
        assert "tool_response" not in learned
        assert learned.endswith(TURN_END)
        ids, targets = encoded(tokenizer, without_prompt(text, rng))
        assert "tool_response" not in tokenizer.decode([target for target in targets if target != IGNORED])


def test_it_is_trained_on_the_tokens_that_the_tool_agent_makes(tokenizer, tools):
    """A conversation rendered at once: what stands between the turns in training stands there in a run."""
    ids, _ = encoded(tokenizer, with_prompt("12+34", random.Random(5)))
    function = {"name": "calculator", "arguments": {"expression": "12+34"}}
    messages = [
        {"role": "user", "content": "12+34"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "46"},
        {"role": "assistant", "content": "46"},
    ]
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert tokenizer.decode([*context(tokenizer, tools, "12+34"), *ids]) + "\n" == whole
    assert call("12+34") in whole


def lines(right: dict[str, bool], step: int, kinds: list[str]) -> list[dict]:
    found = []
    for row, kind in enumerate(kinds):
        tokens, logprobs = ["<tool_call>", "<tool_call>"], [-1.0, None]  # the tool wrote the second one
        found.append(
            {"schema": SCHEMA, "step": step, "row": row, "score": float(right[kind]), "tokens": tokens}
            | {"student_logprobs": logprobs}
        )
    return found


@pytest.mark.parametrize("learned", [True, False])
def test_the_table_fails_where_the_student_does(tmp_path, capsys, learned):
    write_rows(tmp_path / "data")
    kinds = pq.read_table(tmp_path / "data" / "heldout.parquet")["data_source"].to_pylist()
    begun = {"sums": False, "sums_prompted": True, "sums_without_tool": False}
    for name, ended in (("run", begun | {"sums": learned}), ("control", begun)):
        (tmp_path / name).mkdir()
        rows = lines(begun, 0, kinds) + lines(ended, 9, kinds)
        (tmp_path / name / SAMPLES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if learned:
        show_table(tmp_path, 0.9)
    else:
        with pytest.raises(SystemExit, match=r"below 0\.9"):
            show_table(tmp_path, 0.9)
    said = capsys.readouterr().out
    assert f"student / teacher: {learned:.3f}" in said
    assert "1.00" in said  # calls a sample, the tool's own text left out
