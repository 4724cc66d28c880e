"""An agent loop that gives several outputs for a row: each is scored behind what came before it."""

import json
from pathlib import Path

import pytest
import torch
from fake_sglang import logprob_of
from local_run import write_rows
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from verl_ext.trainer.queue_writer import COLUMNS

TOOL = Path(__file__).parents[3] / "examples/calculator.py"
AGENT = "actor_rollout_ref.rollout.agent"
TURNS = "actor_rollout_ref.rollout.multi_turn"
ASKED, READ = "12+30", "<tool_response>\n42\n</tool_response>"
END = "<|im_end|>"


class EachTurn(AgentLoopBase):
    """One output a turn, each with all before it as its prompt; `strange` changes the prompt of the second."""

    def __init__(self, *args, strange: bool = False, empty: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.strange, self.empty = strange, empty

    async def run(self, sampling_params, **kwargs):
        prompt = await self.ct_build_initial_tokens(kwargs["raw_prompt"])
        outputs = []
        for turn in (1, 2):
            answer = await self.server_manager.generate(
                request_id="1", prompt_ids=prompt, sampling_params=sampling_params
            )
            shown = prompt[1:] if self.strange and turn == 2 else prompt
            outputs.append(
                AgentLoopOutput(
                    prompt_ids=shown,
                    response_ids=answer.token_ids,
                    response_mask=[1] * len(answer.token_ids),
                    response_logprobs=answer.log_probs,
                    num_turns=2 * turn,
                    metrics=AgentLoopMetrics(),
                    extra_fields=dict(answer.extra_fields),
                )
            )
            prompt = [*prompt, *answer.token_ids, *self.tokenizer.encode("more", add_special_tokens=False)]
        return [] if self.empty else outputs


def loops(tmp_path: Path, **settings: bool) -> str:
    entry = {"name": "each_turn", "_target_": f"{__name__}.EachTurn", **settings}
    (tmp_path / "loops.yaml").write_text(json.dumps([entry]))
    return f"{AGENT}.agent_loop_config_path={tmp_path}/loops.yaml"


@pytest.fixture
def make_list_run(make_run, tmp_path):
    def make(*overrides: str, **settings: bool):
        named = (loops(tmp_path, **settings), f"{AGENT}.default_agent_loop=each_turn")
        run = make_run(*named, *overrides, rows=write_rows(tmp_path / "two.parquet", 2))
        run.sampler.reply = lambda prompt: [5, 6, 7] if 7 not in prompt[-8:] else [9, 8]
        return run

    return make


@pytest.mark.parametrize("top_k", [0, 2])
def test_every_output_of_a_list_is_scored_behind_what_came_before_it(make_list_run, top_k):
    direct = ("method.loss=forward_kl", "method.top_k=2") if top_k else ()
    run = make_list_run("actor_rollout_ref.actor.ppo_mini_batch_size=2", *direct).fit()
    samples = [sample for sample in run.samples if sample["extra_fields"]["teacher_error"] == ""]
    assert len(run.samples) == len(samples) == 8
    more = run.ids("more")
    for sample in samples:
        response = sample["responses"].tolist()
        teachers = run.ids(
            f"<|im_start|>user\nSay the language of: text {sample['index']}<|im_end|>\n<|im_start|>assistant\n"
        )
        before = [] if response == [5, 6, 7] else [5, 6, 7, *more]
        ids = [*teachers, *before, *response]
        wanted = [logprob_of(ids, place) for place in range(len(ids) - len(response), len(ids))]
        torch.testing.assert_close(sample["teacher_logprobs"], torch.tensor(wanted))
        if top_k:
            assert sample["teacher_top_ids"].tolist() == [[0, 1]] * len(response)
        assert COLUMNS not in sample["extra_fields"]
    (metrics,) = run.metrics
    assert metrics["teacher/scored"] == 8
    assert metrics["samples/trained"] == 4


def test_a_prompt_that_is_not_the_rows_leaves_its_output_unscored(make_list_run):
    run = make_list_run("teacher.max_unscored_share=1", strange=True).fit()
    errors = {sample["responses"].tolist()[0]: sample["extra_fields"]["teacher_error"] for sample in run.samples}
    assert errors[5] == ""
    assert "another conversation" in errors[9]
    assert run.metrics[0]["teacher/unscored"] == 4


def test_a_loop_that_gives_nothing_fails_its_row(make_list_run):
    run = make_list_run(empty=True)
    with pytest.raises(Exception, match="failed"):
        run.fit()
    assert {line["cause"] for line in run.failures} == {
        "ValueError: agent_loop: its run() gave no output; make it give one AgentLoopOutput or more"
    }
