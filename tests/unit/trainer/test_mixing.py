"""Answers of the teacher in a step: our trainer inside verl's own loop, up to what the actor is handed."""

import functools
import json
from pathlib import Path

import pytest
import torch

from verl_ext.run.models import render_chat
from verl_ext.trainer.mixed_loss import OFF_POLICY_NLL, OFF_POLICY_TOKENS, OWN_TOKENS, mixed_loss
from verl_ext.trainer.taught import TaughtAnswers

N = 2
"""Samples a prompt in these runs; four prompts a step here."""
BATCH = ("data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4")
QUARTER = (*BATCH, "method.off_policy_share=0.25")
WORDS = ("de", "en", "fr", "de en", "fr fr")


@pytest.fixture
def taught(tmp_path: Path) -> str:
    """Five conversations, as `verl-opd data teacher=...` writes them."""
    file = tmp_path / "conversations.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"text {i}"}, {"role": "assistant", "content": word}]}
        for i, word in enumerate(WORDS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"method.off_policy_data={file}"


def of_teacher(update: list[dict]) -> list[dict]:
    return [sample for sample in update if sample["uid"].startswith("offpolicy")]


def own(update: list[dict]) -> list[dict]:
    return [sample for sample in update if not sample["uid"].startswith(("offpolicy", "pad"))]


def content(sample: dict) -> tuple:
    return tuple(sample["prompts"].tolist()), tuple(sample["responses"].tolist())


def test_a_share_of_every_step_is_the_teachers_answers_whole_and_in_turn(make_run, taught):
    run = make_run(*QUARTER, taught, "trainer.total_training_steps=5").fit()
    tokenizer = run.worker.tokenizer
    wanted = {
        (
            tuple(render_chat(tokenizer, [{"role": "user", "content": f"text {i}"}], {})),
            (*run.ids(word), tokenizer.eos_token_id),
        )
        for i, word in enumerate(WORDS)
    }
    seen = []
    for update in run.actor.updates:
        assert (len(of_teacher(update)), len(own(update))) == (N, 3 * N)
        for sample in of_teacher(update):
            assert sample["response_mask"].all()
            assert sample["loss_mask"].all()
            assert sample["off_policy"].tolist() == [1.0] * len(sample["responses"])
            assert not sample["advantages"].any()
        for sample in own(update):
            assert not sample["off_policy"].any()
            assert sample["advantages"].any()
        seen += [content(sample) for sample in of_teacher(update)]
    assert set(seen[:5]) == set(seen[5:]) == wanted  # two passes over the file in five steps, each answer once a pass
    assert len(run.sampler.requests) == 5 * 3 * N
    assert [row["off_policy/rows"] for row in run.metrics] == [N] * 5
    assert [row["off_policy/passes"] for row in run.metrics] == [0.4, 0.8, 1.2, 1.6, 2.0]
    tokens = [sum(len(sample["responses"]) for sample in of_teacher(update)) for update in run.actor.updates]
    assert [row["off_policy/tokens"] for row in run.metrics] == tokens


def test_no_token_of_theirs_enters_a_metric_a_guard_or_a_baseline_of_the_samples(make_run, taught):
    run = make_run(*QUARTER, taught, "method.guards.truncated_mask=true", "method.baseline=batch")
    run.sampler.answers = [[5, 6, 7, 8], [9, 10], [9, 10], [11, 12, 13], [9, 10], [5, 5]]
    (update,) = run.fit().actor.updates
    (row,) = run.metrics
    samples = own(update)
    whole = [sample for sample in samples if len(sample["responses"]) < 4]
    every = torch.cat([sample["rollout_log_probs"] - sample["teacher_logprobs"] for sample in samples])
    assert row["teacher_kl"] == pytest.approx(every.mean().item())
    assert row["response_length/mean"] == pytest.approx(15 / 6)
    assert row["guards/truncated_share"] == pytest.approx(1 / 6)
    assert row["teacher/scored"] == 6
    charged = torch.cat([sample["advantages"] for sample in whole])
    assert row["advantage/mean"] == pytest.approx(charged.mean().item(), abs=1e-6)
    assert row["advantage/variance"] == pytest.approx(charged.var(unbiased=False).item(), rel=1e-4)
    gaps = [sample["rollout_log_probs"] - sample["teacher_logprobs"] for sample in whole]
    total, tokens = torch.cat(gaps).sum(), sum(map(len, gaps))
    for sample, gap in zip(whole, gaps, strict=True):
        others = (total - gap.sum()) / (tokens - len(gap))
        torch.testing.assert_close(sample["advantages"], others - gap)
    for sample in of_teacher(update):
        assert sample["response_mask"].all()  # which the guards have not touched


def test_a_step_whose_samples_are_all_masked_still_trains_on_the_teachers_answers(make_run, taught):
    run = make_run(*QUARTER, taught, "method.guards.truncated_mask=true")
    run.sampler.answers = [[5, 6, 7, 8]]
    (update,) = run.fit().actor.updates
    assert not any(sample["response_mask"].any() for sample in own(update))
    assert all(sample["response_mask"].all() for sample in of_teacher(update))


def test_an_interrupted_run_trains_on_the_same_answers(make_run, taught):
    first = make_run(*QUARTER, taught, "trainer.save_freq=1", "trainer.total_training_steps=3").fit()
    checkpoint = Path(first.config.run_dir) / "checkpoints/global_step_2"
    resume = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}")
    (again,) = make_run(*QUARTER, taught, *resume, "trainer.total_training_steps=3").fit().actor.updates
    assert sorted(map(content, of_teacher(again))) == sorted(map(content, of_teacher(first.actor.updates[2])))


def test_replayed_rows_and_the_teachers_stand_beside_each_other(make_run, taught):
    replay = ("replay.share=0.25", "replay.min_ess=0", "replay.max_uses=100", "replay.max_age=100")
    bounded = "method.policy_loss.kind=truncated_importance_sampling"
    run = make_run(*QUARTER, taught, *replay, bounded, "trainer.total_training_steps=3").fit()
    counts = [(len(of_teacher(u)), len([s for s in u if s["uid"].startswith("replayed")])) for u in run.actor.updates]
    assert counts == [(N, 0), (N, N), (N, N)]
    assert {len(update) for update in run.actor.updates} == {4 * N}
    assert [row["replay/rows"] for row in run.metrics] == [6, 10, 14]  # what was sampled, and no answer of the teacher


@pytest.mark.parametrize(
    "mode", [("pipeline.mode=one_step_off",), ("pipeline.mode=stream", "actor_rollout_ref.actor.ppo_mini_batch_size=2")]
)
def test_steps_that_overlap_send_out_as_many_prompts_fewer(make_run, taught, mode):
    half = (*QUARTER, "method.off_policy_share=0.5", taught)
    run = make_run(*half, *mode, "trainer.total_training_steps=4").fit()
    updates = 2 if "stream" in mode[0] else 1
    assert len(run.actor.updates) == 4 * updates
    for update in run.actor.updates:
        assert len(of_teacher(update)) == len(own(update)) == 2 * N // updates
    assert len(run.sampler.requests) == 4 * 2 * N
    assert [row["off_policy/rows"] for row in run.metrics] == [2 * N] * 4


def test_the_actor_is_given_the_mixed_loss_and_gives_means_over_whose_tokens_they_are(make_run, taught):
    run = make_run(*QUARTER, taught)
    name = "actor/own_sum/actor/rollout_gap_mean"
    run.actor.read |= {OWN_TOKENS: [8.0], OFF_POLICY_TOKENS: [4.0], OFF_POLICY_NLL: [6.0], name: [2.0]}
    (row,) = run.fit().metrics
    assert isinstance(run.actor.loss, functools.partial)
    assert run.actor.loss.func is mixed_loss
    assert (row["actor/rollout_gap_mean"], row["actor/off_policy_nll"]) == (0.25, 1.5)
    assert not [key for key in row if "own_sum" in key]


def test_every_answer_once_a_pass_in_another_order():
    answers = TaughtAnswers([[1]] * 7, [[2]] * 7, [False] * 7, "")
    first, second = answers.places(0, 7, seed=0), answers.places(7, 7, seed=0)
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert answers.places(5, 4, seed=0) == [*first[5:], *second[:2]]
    assert answers.places(0, 7, seed=1) != first
