"""No sample is lost without a word, and no update goes wrong unseen: our trainer inside verl's own loop."""

import math

import pytest
from ray.exceptions import RayTaskError

from verl_ext.trainer.accounting import SampleAccount

STREAM = ("pipeline.mode=stream", "method.policy_loss.kind=truncated_importance_sampling")
MODES = {"sync": ("pipeline.mode=sync",), "one_step_off": ("pipeline.mode=one_step_off",), "stream": STREAM}
COUNTS = ("dispatched", "trained", "masked", "dropped", "failed", "pending")


def counts(run) -> dict[str, list[float]]:
    return {name: [row[f"samples/{name}"] for row in run.metrics] for name in COUNTS}


@pytest.mark.parametrize("mode", MODES)
def test_every_sample_is_somewhere(make_run, mode):
    """Of a run in which a prompt fails, one teacher answers nothing, and, in a stream, a sample comes too late."""
    run = make_run(*MODES[mode], "trainer.total_training_steps=4", "teacher.max_unscored_share=1")
    run.sampler.refused = [2]
    run.sampler.lag = {9: 2} if mode == "stream" else {}
    run.teacher.failing = [5]
    run.fit()
    found, before = counts(run), 0.0
    for sent, trained, masked, dropped, _, after in zip(*found.values(), strict=True):
        assert before + sent == trained + masked + dropped + after
        before = after
    assert sum(found["failed"]) == (1 if mode == "sync" else 2)  # alone, or with the others of its prompt
    assert found["pending"][-1] == 0
    scored_or_not = [sample for sample in run.samples if sample["uid"]]
    assert sum(found["trained"]) == sum(any(sample["response_mask"]) for sample in scored_or_not)


def test_a_sample_that_vanishes_without_an_error_is_counted(make_run):
    """verl's agent loop returns without a word where a loop has no output."""
    run = make_run()
    put, calls = run.worker._agent_loop_postprocess, []

    async def forgets_the_first(output, validate, **kwargs):
        calls.append(kwargs)
        if len(calls) > 1:
            await put(output, validate, **kwargs)

    run.worker._agent_loop_postprocess = forgets_the_first
    run.fit()
    assert counts(run) == {
        **{"dispatched": [4], "trained": [3], "masked": [0], "dropped": [1], "failed": [1], "pending": [0]}
    }


def test_a_row_that_failed_in_another_process_is_named_with_its_cause(make_run):
    """A reward function's error, in verl's reward workers (`reward.num_workers`)."""
    run = make_run()
    score, calls = run.worker._compute_score, []

    async def fails_at_the_first(outputs, kwargs):
        calls.append(kwargs)
        if len(calls) == 1:
            raise RayTaskError("compute_score", "Traceback: ...", ValueError("no score")).as_instanceof_cause()
        await score(outputs, kwargs)

    run.worker._compute_score = fails_at_the_first
    (failure,) = run.fit().failures
    assert failure["cause"] == "ValueError: no score"


def test_rows_that_stand_in_for_failed_ones_are_whole(make_run):
    """verl makes them of a sample, one token long, and a micro-batch may hold nothing else."""
    run = make_run("data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4")
    run.sampler.refused = [2, 3]
    (update,) = run.fit().actor.updates
    assert {len(row["responses"]) for row in update} > {1}
    for row in update:
        for field in ("response_mask", "loss_mask", "rollout_log_probs", "old_log_probs", "advantages", "returns"):
            assert len(row[field]) == len(row["responses"]), field


def test_too_many_failures_end_the_run_with_what_was_finished(make_run):
    run = make_run("trainer.total_training_steps=3", "trainer.save_freq=100", "method.guards.max_failed_share=0.2")
    run.sampler.refused = [5]
    with pytest.raises(
        RuntimeError, match=r"^1 samples of a step failed, .*max_failed_share=0.2; step 1 is saved; .*js"
    ):
        run.fit()
    assert run.actor.saved == [1]


def test_an_account_that_does_not_add_up_is_an_error():
    account = SampleAccount(2)
    account.dispatch(3)
    account.take(2, ["a_0_0", "a_1_0", "b_0_0", "b_1_0"])
    account.use(["a_0_0", "a_1_0", "b_0_0"], [True, True, False])
    with pytest.raises(
        RuntimeError, match="samples of step 7 do not add up: 0 were under way and 6 were sent out; 2 we"
    ):
        account.close(7, 1)


def test_a_gradient_that_is_not_finite_is_counted_and_the_run_goes_on(make_run):
    run = make_run("trainer.total_training_steps=4", "trainer.save_freq=1")
    run.actor.norms = [1.0, math.nan, math.inf]
    run.fit()
    assert [row["updates/skipped"] for row in run.metrics] == [0, 1, 1, 0]
    assert [row["updates/bad_in_a_row"] for row in run.metrics] == [0, 1, 2, 0]
    assert run.actor.saved == [1, 4]  # the newest stays a good one


def test_updates_that_go_on_to_fail_end_the_run_and_leave_the_last_good_checkpoint(make_run):
    run = make_run("trainer.total_training_steps=9", "trainer.save_freq=1", "method.guards.max_bad_updates=2")
    run.actor.norms = [1.0, math.nan, 1.0, *[math.nan] * 9]
    with pytest.raises(RuntimeError, match=r"^2 updates in a row went wrong: .*max_bad_updates"):
        run.fit()
    assert run.actor.saved == [1, 3]
    assert len(run.metrics) == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_step_in_which_no_token_is_trained_changes_nothing(make_run, mode):
    run = make_run(*MODES[mode], "method.guards.truncated_mask=true", "trainer.total_training_steps=2")
    run.sampler.finish = dict.fromkeys(range(6), "length")
    run.fit()
    assert run.actor.updates == []
    assert counts(run)["masked"] == [4, 4]
    assert [row["updates/done"] for row in run.metrics] == [0, 0]
    assert len(run.sync.steps) == 3
