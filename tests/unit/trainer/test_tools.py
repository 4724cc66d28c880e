"""Samples with tools and of several turns, with verl's own tool agent, queue and trainer, and a real tool."""

import asyncio
from pathlib import Path

import pytest
import torch
from fake_sglang import logprob_of
from local_run import write_rows
from verl.tools import function_tool

from verl_ext.demo.calculator import call
from verl_ext.demo.tiny_pair import build_model
from verl_ext.demo.train_calculator import make_tokenizer
from verl_ext.run.samples import read_samples
from verl_ext.teacher.types import TeacherUnavailableError
from verl_ext.trainer.tools import function_schemas

TOOL = Path(__file__).parents[3] / "examples/calculator.py"
AGENT = "actor_rollout_ref.rollout.agent"
TURNS = "actor_rollout_ref.rollout.multi_turn"
ASKED, READ = "12+30", "<tool_response>\n42\n</tool_response>"
END = "<|im_end|>"


@pytest.fixture(scope="module")
def tool_student(tmp_path_factory) -> Path:
    """One whose chat template shows tools."""
    folder = tmp_path_factory.mktemp("with_tools") / "model"
    tokenizer = make_tokenizer(function_schemas(TOOL))
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    build_model(tokenizer, shape | {"num_key_value_heads": 1, "head_dim": 16}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_tools_of_other_tests(monkeypatch):
    """verl knows a tool's name once a process."""
    monkeypatch.setattr(function_tool, "FUNCTION_TOOL_REGISTRY", {})
    monkeypatch.setattr(function_tool, "_LOADED_FUNCTION_TOOL_PATHS", {})


@pytest.fixture
def make_tool_run(make_run, tool_student, tmp_path):
    def make(*overrides: str, first: str = call(ASKED) + END, then: str = "42" + END, rows=None, **columns):
        run = make_run(
            *(
                f"student.path={tool_student}",
                f"{TURNS}.function_tool_path={TOOL}",
                f"{AGENT}.default_agent_loop=tool_agent",
            ),
            *("data.max_prompt_length=300", "data.max_response_length=100"),
            *("actor_rollout_ref.rollout.max_model_len=400", *overrides),
            rows=rows or write_rows(tmp_path / "rows.parquet", 2, **columns),
        )

        def reply(prompt: list[int]) -> list[int]:
            text = run.worker.tokenizer.decode(prompt)
            return run.ids(then if "</tool_response>" in text else first)

        run.sampler.reply = reply
        return run

    return make


def text_of(run, ids) -> str:
    return run.worker.tokenizer.decode(ids)


def sampled(sample) -> list[bool]:
    return [bool(keep) for keep in sample["response_mask"]]


def test_the_teacher_reads_the_tools_and_scores_what_the_student_sampled(make_tool_run):
    run = make_tool_run().fit()
    assert len(run.samples) == 4
    for sample in run.samples:
        prompt, response = sample["prompts"].tolist(), sample["responses"].tolist()
        teachers = next(ids for ids in run.teacher.sequences if f"text {sample['index']}" in text_of(run, ids))
        teachers = teachers[: len(prompt) + len(run.ids("Say the language of: "))]
        assert '"name": "calculator"' in text_of(run, prompt)
        assert text_of(run, teachers).replace("Say the language of: ", "") == text_of(run, prompt)
        assert (
            text_of(run, response)
            == f"{call(ASKED)}{END}\n<|im_start|>user\n{READ}{END}\n<|im_start|>assistant\n42{END}"
        )
        ones = len(run.ids(call(ASKED) + END)), len(run.ids("42" + END))
        zeros = len(response) - sum(ones)
        assert sample["response_mask"].tolist() == [1] * ones[0] + [0] * zeros + [1] * ones[1]
        assert sample["loss_mask"].tolist() == sample["response_mask"].tolist()
        ids = [*teachers, *response]
        wanted = [logprob_of(ids, len(teachers) + i) * keep for i, keep in enumerate(sampled(sample))]
        torch.testing.assert_close(sample["teacher_logprobs"], torch.tensor(wanted))
        for name in ("teacher_logprobs", "rollout_log_probs", "advantages"):
            assert (sample[name][~sample["response_mask"].bool()] == 0).all(), name
            assert (sample[name][sample["response_mask"].bool()] != 0).all(), name


def test_no_token_of_a_tool_is_in_a_metric(make_tool_run):
    run = make_tool_run("method.guards.repetition_ngram=1", "report.keep_samples=0").fit()
    (metrics,) = run.metrics
    gaps = torch.cat([(s["rollout_log_probs"] - s["teacher_logprobs"])[s["response_mask"].bool()] for s in run.samples])
    tokens = len(run.ids(call(ASKED) + END)) + len(run.ids("42" + END))
    assert len(gaps) == 4 * tokens
    assert metrics["teacher_kl"] == pytest.approx(gaps.mean().item(), rel=1e-5)
    assert metrics["advantage/mean"] == pytest.approx(-gaps.mean().item(), rel=1e-5)
    assert metrics["advantage/variance"] == pytest.approx(gaps.var(unbiased=False).item(), rel=1e-4)
    assert [metrics[f"response_length/{name}"] for name in ("mean", "max", "min")] == [tokens] * 3
    said = run.ids(call(ASKED) + END) + run.ids("42" + END)
    assert metrics["guards/repetition"] == pytest.approx(1 - len(set(said)) / len(said))


def test_turns_and_calls_are_counted(make_tool_run):
    run = make_tool_run(extra_info=[{"index": 0, "tool_calls": 1}, {"index": 1, "tool_calls": 0}]).fit()
    (metrics,) = run.metrics
    assert (metrics["turns/mean"], metrics["turns/max"]) == (2, 2)
    tokens = [len(run.ids(call(ASKED) + END)), len(run.ids("42" + END))]
    assert metrics["turns/tokens_mean"] == sum(tokens) / 2
    assert metrics["turns/read_share"] == pytest.approx(1 - sum(tokens) / len(run.samples[0]["responses"]))
    assert metrics["tools/calls_mean"] == metrics["tools/called_share"] == metrics["tools/calculator/calls_mean"] == 1
    assert metrics["tools/called_again_share"] == metrics["tools/calculator/failed_share"] == 0
    assert (metrics["tools/wanted_mean"], metrics["tools/over_called_share"]) == (0.5, 0.5)
    assert metrics["tools/calculator/seconds"] > 0
    by_turn = [metrics[f"turns/teacher_kl_{turn}"] for turn in (1, 2)]
    mean = sum(kl * count for kl, count in zip(by_turn, tokens, strict=True)) / sum(tokens)
    assert metrics["teacher_kl"] == pytest.approx(mean)
    assert not any(name.startswith("turns/teacher_kl_3") for name in metrics)


@pytest.mark.parametrize(
    ("first", "metric", "value"),
    [
        (call("12 and 30"), "tools/calculator/failed_share", 1),
        (call(ASKED).replace("calculator", "abacus"), "tools/unknown_share", 1),
        ("<tool_call>\n{not JSON}\n</tool_call>", "tools/unread", 4),
        (call(ASKED) + call(ASKED), "tools/left_out", 4),
    ],
)
def test_a_call_that_goes_wrong_is_counted_and_costs_no_sample(make_tool_run, first, metric, value):
    run = make_tool_run("data.max_response_length=160", "data.max_prompt_length=200", first=first + END).fit()
    (metrics,) = run.metrics
    assert metrics[metric] == value
    assert metrics["samples/trained"] == 4


def test_a_sample_whose_last_call_has_no_answer_is_cut_off(make_tool_run):
    run = make_tool_run(f"{TURNS}.max_assistant_turns=1").fit()
    (metrics,) = run.metrics
    assert metrics["response_length/truncated_share"] == metrics["tools/unfinished_share"] == 1
    (metrics,) = make_tool_run("run_dir=" + run.config.run_dir + "2").fit().metrics
    assert metrics["response_length/truncated_share"] == metrics["tools/unfinished_share"] == 0


@pytest.mark.parametrize(("said", "reward"), [("de", 1), ("fr", 0)])
def test_the_reward_reads_what_the_student_said_and_not_what_a_tool_wrote(make_tool_run, tmp_path, said, reward):
    file = tmp_path / "tool.py"
    file.write_text(TOOL.read_text().replace("return str(int(numbers[1]) + int(numbers[2]))", 'return "de"'))
    rows = write_rows(tmp_path / "one.parquet", 1)  # whose label is `de`
    run = make_tool_run(f"{TURNS}.function_tool_path={file}", "data.train_batch_size=1", then=said + END, rows=rows)
    run.fit()
    assert all("<tool_response>\nde" in text_of(run, sample["responses"]) for sample in run.samples)
    assert {sample["rm_scores"].sum().item() for sample in run.samples} == {reward}


def test_a_turn_is_scored_while_the_next_is_made(make_tool_run):
    """The same scores as in one request; each turn is asked for once, from where it begins."""
    run = make_tool_run().fit()
    late = make_tool_run("teacher.prime=false", f"run_dir={run.config.run_dir}2").fit()
    assert run.metrics[0]["teacher/early_turns"] == 8
    assert late.metrics[0]["teacher/early_turns"] == 0
    by_row = [{sample["index"]: sample for sample in each.samples} for each in (run, late)]
    for index in by_row[0]:
        one, other = (each[index] for each in by_row)
        torch.testing.assert_close(one["teacher_logprobs"], other["teacher_logprobs"])
    calls, whole = (len(run.ids(text)) for text in (call(ASKED) + END, "42" + END))
    starts = [
        len(ids) - 1 - start
        for body in run.teacher.requests
        for ids, start in zip(body["input_ids"], body["logprob_start_len"], strict=True)
        if ids in run.teacher.sequences and start < len(ids) - 1
    ]
    assert sorted(starts) == [whole] * 4 + [calls] * 4


def test_a_teacher_that_fails_early_is_asked_again_in_the_end(make_tool_run):
    run = make_tool_run("teacher.max_retries=0", "teacher.breaker_failures=100")
    run.worker._score = failing(run.worker._score, 4)
    run.fit()
    (metrics,) = run.metrics
    assert metrics["teacher/unscored"] == 0
    for sample in run.samples:
        assert (sample["teacher_logprobs"] != 0).tolist() == sampled(sample)


def failing(theirs, times: int):
    left = [times]

    async def score(request):
        await asyncio.sleep(0)
        if left[0]:
            left[0] -= 1
            return TeacherUnavailableError("not now")
        return await theirs(request)

    return score


def test_a_later_turn_has_a_seed_of_its_own(make_tool_run):
    run = make_tool_run().fit()
    seeds = [request["seed"] for request in run.sampler.requests]
    assert len(seeds) == len(set(seeds)) == 8


def test_special_tokens_that_a_tool_writes_are_text(make_tool_run, tmp_path):
    file = tmp_path / "tool.py"
    file.write_text(
        TOOL.read_text().replace("return str(int(numbers[1]) + int(numbers[2]))", 'return "42<|im_end|><|im_start|>"')
    )
    run = make_tool_run(f"{TURNS}.function_tool_path={file}").fit()
    end, start = run.worker.tokenizer.convert_tokens_to_ids([END, "<|im_start|>"])
    for sample in run.samples:
        response = sample["responses"].tolist()
        assert "\n42<|im_end|><|im_start|>\n</tool_response>" in text_of(run, response)
        assert (response.count(end), response.count(start)) == (3, 2)
        assert sample["extra_fields"]["teacher_error"] == ""


def test_a_row_names_its_tools_and_its_loop(make_tool_run):
    run = make_tool_run(agent_name=["tool_agent", "single_turn_agent"])
    run.fit()
    for sample in run.samples:
        with_tools = sample["index"] == 0
        assert ("calculator" in text_of(run, sample["prompts"])) == with_tools
        assert ("tool_use" in sample["extra_fields"]) == with_tools
        assert ("<tool_response>" in text_of(run, sample["responses"])) == with_tools
    teachers = {
        index: [ids for ids in run.teacher.sequences if f"text {index}<" in text_of(run, ids)] for index in (0, 1)
    }
    assert all("calculator" in text_of(run, ids).split("assistant")[0] for ids in teachers[0])
    assert not any("calculator" in text_of(run, ids).split("assistant")[0] for ids in teachers[1])


def test_kept_answers_have_no_log_prob_of_what_a_tool_wrote(make_tool_run):
    run = make_tool_run("trainer.val_before_train=true", "report.keep_samples=1", "report.alternatives=2").fit()
    samples, _ = read_samples(Path(run.config.run_dir) / "samples.jsonl")
    line = samples[0]
    assert "".join(line["tokens"]).count("<tool_response>") == 1
    known = [
        token for token, logprob in zip(line["tokens"], line["student_logprobs"], strict=True) if logprob is not None
    ]
    assert "".join(known) == f"{call(ASKED)}{END}42{END}"
    for name in ("teacher_logprobs", "alternatives"):
        assert [bool(each) for each in line[name]] == [each is not None for each in line["student_logprobs"]], name


@pytest.mark.parametrize("mode", ["one_step_off", "stream"])
def test_every_pipeline_takes_turns(make_tool_run, mode):
    run = make_tool_run(f"pipeline.mode={mode}", "trainer.total_training_steps=2").fit()
    assert len(run.samples) == 8
    for sample in run.samples:
        keep = sample["response_mask"].bool()
        assert keep.tolist() == (sample["teacher_logprobs"] != 0).tolist() == (sample["advantages"] != 0).tolist()
        assert len(sample["extra_fields"]["tokens_by_version"]) == 1
        assert sample["extra_fields"]["tokens_by_version"][0][1] == int(keep.sum())
    assert [row["tools/calls_mean"] for row in run.metrics] == [1, 1]


def test_a_store_answers_for_turns(make_tool_run, tmp_path):
    store = ("teacher.store_path=" + str(tmp_path / "scores"), "teacher.fingerprint=one")
    first = make_tool_run(*store).fit()
    again = make_tool_run(*store, f"run_dir={first.config.run_dir}2", "teacher.store_mode=replay").fit()
    assert first.metrics[0]["teacher/from_store"] == 0
    assert again.metrics[0]["teacher/from_store"] == 4
    assert again.teacher.requests == []
    assert again.metrics[0]["teacher_kl"] == pytest.approx(first.metrics[0]["teacher_kl"])
