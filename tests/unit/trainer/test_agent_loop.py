"""What a sample is when it reaches the queue: our worker under verl's, with verl's own loop, queue and trainer."""

import math

import pytest
import torch
from fake_sglang import logprob_of
from local_run import TEACHER_PROMPT, write_rows
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_ext.data.rows import MATH
from verl_ext.trainer.agent_loop import DistillationAgentLoopManager, DistillationAgentLoopWorker
from verl_ext.trainer.runner import plain_class
from verl_ext.trainer.support import ASKED, IDS

ANSWERS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


def chat(run, text: str, mark: str = "") -> list[int]:
    return run.ids(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{mark}")


def teachers_logprobs(prompt: list[int], response: list[int]) -> torch.Tensor:
    ids = [*prompt, *response]
    return torch.tensor([logprob_of(ids, position) for position in range(len(prompt), len(ids))])


def test_a_sample_is_scored_under_the_teachers_prompt_and_sampled_under_the_students(make_run):
    run = make_run().fit()
    assert len(run.samples) == 4
    for sample in run.samples:
        response = sample["responses"].tolist()
        assert sample["prompts"].tolist() == chat(run, f"text {sample['index']}")
        assert sample["input_ids"].tolist() == sample["prompts"].tolist() + response
        teachers = chat(run, f"{TEACHER_PROMPT}text {sample['index']}")
        torch.testing.assert_close(sample["teacher_logprobs"], teachers_logprobs(teachers, response))
        assert sample["response_mask"].tolist() == sample["loss_mask"].tolist() == [1] * len(response)
        notes = sample["extra_fields"]
        assert notes["teacher_tokens"] == len(teachers) + len(response)
        assert notes["teacher_error"] == ""
        assert not notes["teacher_from_store"]
        assert notes["teacher_start"] < notes["teacher_end"]


def test_the_teacher_reads_each_prompt_before_its_answers(make_run):
    run = make_run().fit()
    indices = sorted({sample["index"] for sample in run.samples})
    prompts = [chat(run, f"{TEACHER_PROMPT}text {index}") for index in indices]
    assert [run.teacher.sequences.count(prompt) for prompt in prompts] == [1, 1]
    assert len(run.teacher.sequences) == 2 + 4


def test_arguments_of_the_chat_template_reach_both_sides(make_run):
    run = make_run("+data.apply_chat_template_kwargs.mark='!!'").fit()
    for sample in run.samples:
        assert sample["prompts"].tolist() == chat(run, f"text {sample['index']}", "!!")
    texts = {tuple(chat(run, f"{TEACHER_PROMPT}text {sample['index']}", "!!")) for sample in run.samples}
    assert {tuple(ids[: len(next(iter(texts)))]) for ids in run.teacher.sequences} == texts


def test_special_tokens_of_a_sentence_are_text_to_student_and_teacher(make_run, tmp_path):
    said = [[{"role": "user", "content": f"{who} <|im_end|>"}] for who in ("student", "teacher")]
    rows = write_rows(tmp_path / "rows.parquet", 2, prompt=[said[0]] * 2, teacher_messages=[said[1]] * 2)
    run = make_run(rows=rows).fit()
    end = run.worker.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for sample in run.samples:
        prompt = sample["prompts"].tolist()
        assert (
            run.worker.tokenizer.decode(prompt)
            == "<|im_start|>user\nstudent <|im_end|><|im_end|>\n<|im_start|>assistant\n"
        )
        assert prompt.count(end) == 1
    assert {ids[: ids.index(end)].count(end) for ids in run.teacher.sequences} == {0}
    assert all("teacher <|im_end|><|im_end|>" in run.worker.tokenizer.decode(ids) for ids in run.teacher.sequences)


def test_several_files_and_prompts_as_people_have_them_are_trained_on(make_run, tmp_path):
    one = write_rows(tmp_path / "one.parquet", 1, prompt=["text 0"], reward_model=[{"ground_truth": 7}])
    two = write_rows(
        tmp_path / "two.parquet", 1, prompt=[[{"role": "user", "content": [{"type": "text", "text": "text 0"}]}]]
    )
    run = make_run(f"data.train_files=[{one},{two}]")
    run.sampler.answers = [run.ids("7<|im_end|>")]
    run.fit()
    assert {tuple(sample["prompts"].tolist()) for sample in run.samples} == {tuple(chat(run, "text 0"))}
    assert {sample["reward_model"]["ground_truth"] for sample in run.samples} == {"7", "de"}
    assert sorted({sample["index"] for sample in run.samples}) == [0, 1]


def seeds(run) -> list[int]:
    return [request.get("seed") for request in run.sampler.requests]


def test_every_sample_of_every_step_has_a_seed_of_its_own_and_a_repeated_run_the_same_ones(make_run, tmp_path):
    rows = write_rows(tmp_path / "two.parquet", 2)  # the second step samples the same prompts again
    first = make_run("trainer.total_training_steps=2", rows=rows).fit()
    assert len(seeds(first)) == len(set(seeds(first))) == 8
    again = make_run("trainer.total_training_steps=2", f"run_dir={tmp_path}/again", rows=rows).fit()
    assert sorted(seeds(again)) == sorted(seeds(first))
    other = make_run("trainer.total_training_steps=2", f"run_dir={tmp_path}/other", "data.seed=1", rows=rows).fit()
    assert not set(seeds(other)) & set(seeds(first))


def test_no_seed_is_sent_unless_asked_for(make_run):
    assert seeds(make_run("seeded_rollout=false").fit()) == [None] * 4


def test_validation_is_neither_seeded_nor_scored(make_run):
    run = make_run("trainer.val_before_train=true", "trainer.val_only=true", "report.keep_samples=0").fit()
    assert seeds(run) == [None] * 6
    assert run.teacher.requests == []


def test_a_sample_that_no_teacher_scored_is_masked_out_of_the_loss(make_run):
    run = make_run("teacher.max_unscored_share=0.25")
    run.sampler.answers = ANSWERS
    run.teacher.refuses = 12
    run.fit()
    (lost,) = [sample for sample in run.samples if sample["responses"].tolist() == [11, 12, 13]]
    assert "too long" in lost["extra_fields"]["teacher_error"]
    for name in ("response_mask", "loss_mask", "teacher_logprobs", "advantages"):
        assert lost[name].tolist() == [0, 0, 0], name
    kept = [sample for sample in run.samples if sample is not lost]
    for sample in kept:
        assert sample["extra_fields"]["teacher_error"] == ""
        assert sample["response_mask"].tolist() == [1] * len(sample["responses"])
        torch.testing.assert_close(sample["advantages"], sample["teacher_logprobs"] - sample["rollout_log_probs"])
    (metrics,) = run.metrics
    assert (metrics["teacher/scored"], metrics["teacher/unscored"]) == (3, 1)
    advantages = torch.cat([sample["advantages"] for sample in kept])
    assert metrics["teacher_kl"] == pytest.approx(-advantages.mean().item())
    assert metrics["advantage/variance"] == pytest.approx(advantages.var(unbiased=False).item())


def test_a_token_that_the_teacher_does_not_know_leaves_its_sample_unscored(make_run):
    """An error of ours, which must not stop the group: verl would wait for it."""
    run = make_run("teacher.max_unscored_share=1")
    unknown = run.sampler.vocabulary
    run.sampler.answers = [[5, 6], [5, unknown]]
    run.fit()
    errors = {tuple(sample["responses"].tolist()): sample["extra_fields"]["teacher_error"] for sample in run.samples}
    assert errors[5, 6] == ""
    assert f"token {unknown}" in errors[5, unknown]


@pytest.mark.parametrize("top_k", [3, -1])
def test_the_teachers_most_likely_tokens_come_with_each_token(make_run, top_k):
    run = make_run("method.loss=forward_kl", f"method.top_k={top_k}", "teacher.max_unscored_share=0.25")
    run.sampler.answers = ANSWERS
    run.teacher.refuses = 12
    run.fit()
    columns = top_k if top_k > 0 else run.sampler.vocabulary
    row = torch.arange(columns)
    for sample in run.samples:
        ids, logprobs = sample["teacher_top_ids"], sample["teacher_top_logprobs"]
        scored = sample["responses"].tolist() != [11, 12, 13]
        assert ids.tolist() == [(row * scored).tolist()] * len(sample["responses"])
        assert logprobs.tolist() == [((-1.0 - row) * scored).tolist()] * len(sample["responses"])


def test_no_top_tokens_are_asked_for_without_need(make_run):
    run = make_run().fit()
    assert "teacher_top_ids" not in run.samples[0]
    assert not any("top_logprobs_num" in body for body in run.teacher.requests)


def rewards(run) -> dict[tuple[str, str], float]:
    """Reward by what was answered to which label; it stands at the last token."""
    found = {}
    for sample in run.samples:
        assert sample["rm_scores"][:-1].abs().sum() == 0
        text = run.worker.tokenizer.decode(sample["responses"])
        found[sample["reward_model"]["ground_truth"], text] = sample["rm_scores"][-1].item()
    return found


def test_the_reward_is_the_match_of_the_answer_without_special_tokens(make_run, tmp_path):
    run = make_run(rows=write_rows(tmp_path / "two.parquet", 2))
    run.sampler.answers = [run.ids("de<|im_end|>"), run.ids("en<|im_end|>")]
    run.fit()
    found = rewards(run)
    assert len(found) == 4
    assert {label + "<|im_end|>" == answer for (label, answer), reward in found.items() if reward} == {True}
    assert sorted(found.values()) == [0, 0, 1, 1]


@pytest.mark.parametrize(("policy", "rewarded"), [("strict", 1), ("exact", 0)])
def test_how_the_reward_reads_a_label_is_a_setting(make_run, tmp_path, policy, rewarded):
    run = make_run(f"method.labels.policy={policy}", rows=write_rows(tmp_path / "two.parquet", 2))
    run.sampler.answers = [run.ids("**De.**<|im_end|>"), run.ids("fr or de<|im_end|>")]
    assert sum(rewards(run.fit()).values()) == rewarded


def test_rows_of_mathematics_are_rewarded_by_the_value_in_the_box(make_run, tmp_path):
    two = write_rows(tmp_path / "two.parquet", 2, data_source=[MATH, MATH])
    run = make_run("data.max_response_length=32", rows=two)
    run.sampler.answers = [run.ids("so \\boxed{de}<|im_end|>"), run.ids("de<|im_end|>")]
    run.fit()
    assert {answer[:2] for (_, answer), reward in rewards(run).items() if reward} == {"so"}


class RewardWorker:
    """Stands for the Ray actor of verl's reward loop."""

    def __init__(self) -> None:
        self.compute_score = self

    async def remote(self, data) -> dict:
        assert len(data) == 1
        return {"reward_score": 0.75, "reward_extra_info": {"judge": "a"}}


def test_verls_reward_workers_are_asked_where_there_are_some(make_run):
    run = make_run(reward_workers=[RewardWorker()]).fit()
    assert set(rewards(run).values()) == {0.75}
    assert {sample["extra_fields"]["reward_extra_info"]["judge"] for sample in run.samples} == {"a"}


def test_each_row_is_scored_by_the_teacher_that_it_names(make_run, tmp_path):
    rows = write_rows(tmp_path / "two.parquet", 2, teacher=["math", "words"])
    run = make_run(rows=rows, teachers=("math", "words"))
    run.teachers[1].model = 1.0
    run.fit()
    for sample in run.samples:
        response = sample["responses"].tolist()
        wanted = teachers_logprobs(chat(run, f"{TEACHER_PROMPT}text {sample['index']}"), response)
        torch.testing.assert_close(sample["teacher_logprobs"], wanted - sample["index"])
    (metrics,) = run.metrics
    assert metrics["teacher/math/sequences"] == metrics["teacher/words/sequences"] == 3  # a prompt and two answers


def test_another_loop_than_the_single_turn_one_goes_verls_way_and_is_scored_too(make_run, tmp_path):
    target = f"{SingleTurnAgentLoop.__module__}.{SingleTurnAgentLoop.__qualname__}"
    (tmp_path / "loops.yaml").write_text(f"- name: other\n  _target_: {target}\n")
    run = make_run(
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={tmp_path}/loops.yaml",
        "actor_rollout_ref.rollout.agent.default_agent_loop=other",
    ).fit()
    plain = make_run(f"run_dir={tmp_path}/plain").fit()
    assert sorted(seeds(run)) == sorted(seeds(plain))

    def key(sample) -> list[int]:
        return sample["input_ids"].tolist()

    for one, other in zip(sorted(run.samples, key=key), sorted(plain.samples, key=key), strict=True):
        for name in ("input_ids", "teacher_logprobs", "rollout_log_probs", "response_mask", "rm_scores"):
            assert torch.equal(one[name], other[name]), name


def test_verls_manager_starts_our_workers(run_config):
    manager = DistillationAgentLoopManager(run_config, llm_client=None)
    assert plain_class(manager.agent_loop_workers_class) is DistillationAgentLoopWorker


SUPPORT = ("method.loss=reverse_kl", "method.top_k=3", "method.support=student", "method.tail_samples=true")


def test_the_teacher_is_asked_for_the_students_tokens_and_what_the_bound_leaves_out_is_counted(make_run):
    run = make_run(*SUPPORT, "method.support_tokens=4")
    run.sampler.answers = [[5, 6, 7], [8, 9, 10]]
    run.fit()
    assert [request.get(ASKED) for request in run.sampler.requests] == [3] * 4
    assert not any("top_logprobs_num" in body for body in run.teacher.requests)
    for sample in run.samples:
        # The sampler names 10 11 12, 10 12 13, 10 13 14: of five, 4 stay, and of two that are as likely the smaller id.
        assert sample["teacher_top_ids"].tolist() == [[10, 11, 12], [10, 12, 13], [10, 13, -1]]
        teachers = chat(run, f"{TEACHER_PROMPT}text {sample['index']}")
        ids = [*teachers, *sample["responses"].tolist()]
        for position, (tokens, logprobs) in enumerate(
            zip(sample["teacher_top_ids"].tolist(), sample["teacher_top_logprobs"].tolist(), strict=True)
        ):
            at = len(teachers) + position
            wanted = [-math.inf if token < 0 else logprob_of([*ids[:at], token], at) for token in tokens]
            assert logprobs == pytest.approx(wanted)
        assert IDS not in sample["extra_fields"]  # which nobody reads after it
    (metrics,) = run.metrics
    assert (metrics["teacher/support_tokens"], metrics["teacher/support_left_out"]) == (4 * 4, 4 * 1)


def test_a_loop_that_loses_the_students_tokens_fails_its_samples_in_words(make_run):
    run = make_run(*SUPPORT)
    generate = run.sampler.generate

    async def without(**request):
        output = await generate(**request)
        if request["prompt_ids"] == run.sampler.requests[0]["prompt_ids"]:
            output.extra_fields.pop(IDS)
        return output

    run.sampler.generate = without
    run.fit()
    assert len(run.failures) > 0
    assert all("take single_turn_agent, or method.support=teacher" in failure["cause"] for failure in run.failures)
