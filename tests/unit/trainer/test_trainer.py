"""What a step makes of its samples: our trainer inside verl's own loop, up to what the actor is handed."""

import json
from pathlib import Path

import pytest
import torch
from local_run import write_rows
from transfer_queue.metadata import KVBatchMeta

from verl_ext.run.console import step_of_student
from verl_ext.run.metrics import read_place
from verl_ext.trainer.buffer import SyncBuffer
from verl_ext.trainer.losses import policy_loss

FOUR = [[5, 6, 7, 8]]
MIXED = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14, 15]]


def gap(sample) -> torch.Tensor:
    """Minus the reverse KL of each token."""
    return sample["teacher_logprobs"] - sample["rollout_log_probs"]


def answered(run, *answer: int) -> list[dict]:
    return [sample for sample in run.samples if sample["responses"].tolist() == list(answer)]


def masks(run) -> list[list[int]]:
    """Of every update's samples; verl counts over `loss_mask` and sums over `response_mask`."""
    for sample in run.samples:
        assert sample["loss_mask"].tolist() == sample["response_mask"].tolist()
    return [sample["response_mask"].tolist() for sample in run.samples]


def test_the_actor_is_handed_each_tokens_reverse_kl_as_its_advantage(make_run):
    run = make_run("method.coef=2.0", "method.discount=0.5").fit()
    (metrics,) = run.metrics
    gaps = [gap(sample) for sample in run.samples]
    assert metrics["teacher_kl"] == pytest.approx(-torch.cat(gaps).mean().item())
    for sample, own in zip(run.samples, gaps, strict=True):
        wanted = own.clone()
        for token in reversed(range(len(own) - 1)):
            wanted[token] += 0.5 * wanted[token + 1]
        torch.testing.assert_close(sample["advantages"], 2.0 * wanted)
        torch.testing.assert_close(sample["returns"], 2.0 * wanted)
        assert torch.equal(sample["old_log_probs"], sample["rollout_log_probs"])  # of the loss' ratio
    advantages = torch.cat([sample["advantages"] for sample in run.samples])
    assert metrics["advantage/mean"] == pytest.approx(advantages.mean().item(), rel=1e-5)
    assert metrics["advantage/variance"] == pytest.approx(advantages.var(unbiased=False).item(), rel=1e-5)


def test_every_step_leaves_one_row_of_metrics(make_run):
    run = make_run("trainer.total_training_steps=3")
    run.sampler.answers = MIXED
    run.fit()
    assert [(row["step"], row["training/total_steps"]) for row in run.metrics] == [(1, 3), (2, 3), (3, 3)]
    for row in run.metrics:
        assert row["response_length/truncated_share"] == 0.25  # one of four is as long as data.max_response_length
        assert row["response_length/mean"] == pytest.approx(11 / 4)
        assert row["teacher/scored"] == 4
        assert row["timing_s/step"] > 0
        assert row["actor/grad_norm"] == 1


@pytest.mark.parametrize("steps", [3, 7])
def test_as_many_steps_as_asked_are_trained_over_as_many_epochs_as_they_take(make_run, steps):
    """Six rows are three steps an epoch. verl would end after `total_epochs`, with status 0 and no checkpoint."""
    run = make_run(f"trainer.total_training_steps={steps}", "trainer.total_epochs=1", "trainer.save_freq=100").fit()
    assert [row["step"] for row in run.metrics] == list(range(1, steps + 1))
    assert run.actor.saved == [steps]
    assert step_of_student(Path(run.config.run_dir)) == steps


def test_without_a_number_of_steps_the_epochs_say_it(make_run):
    run = make_run("trainer.total_training_steps=null", "trainer.total_epochs=2", "trainer.save_freq=100").fit()
    assert (run.metrics[-1]["step"], run.actor.saved) == (6, [6])


def test_each_stage_is_marked_when_it_is_reached(make_run):
    run = make_run().fit()
    lines = Path(run.config.run_dir, "stages.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert stages == ["data is loaded", "actor and vLLM hold the weights", "agent loop is up"]


def test_whoever_waits_can_read_where_the_step_is(make_run):
    run = make_run("trainer.save_freq=1")
    places = []

    def note(owner, name: str) -> None:
        method = getattr(owner, name)

        def noted(*arguments, **more):
            places.append(read_place(Path(run.config.run_dir)))
            return method(*arguments, **more)

        setattr(owner, name, noted)

    note(run, "generate_sequences")
    note(run.trainer.replay_buffer, "sample")
    note(run.actor, "update_actor")
    note(run.actor, "save_checkpoint")
    note(run.sync, "update_weights")
    run.fit()
    stages = ["prompts", "samples and scores", "update", "checkpoint", "weight sync"]
    assert places == [f"step 1: {stage}" for stage in stages]


def test_verl_runs_as_its_synchronous_trainer_and_looks_for_samples_often(make_run):
    trainer = make_run().trainer
    assert type(trainer.replay_buffer) is SyncBuffer
    assert 0 < trainer.replay_buffer.poll_interval < 1  # seconds; 2 in verl


def test_the_sampler_gets_the_weights_at_the_start_and_after_every_step(make_run, tmp_path):
    assert make_run("trainer.total_training_steps=2").fit().sync.steps == [0, 1, 2]
    run = make_run("trainer.total_training_steps=2", "method.control=no_weight_sync", f"run_dir={tmp_path}/control")
    assert run.fit().sync.steps == [0]


def test_a_control_reaches_the_advantage(make_run, tmp_path):
    flipped = make_run("method.control=flipped_sign").fit()
    for sample in flipped.samples:
        torch.testing.assert_close(sample["advantages"], -gap(sample))
    own = make_run("method.control=teacher_is_student", f"run_dir={tmp_path}/own").fit()
    assert {value for sample in own.samples for value in sample["advantages"].tolist()} == {0.0}
    assert own.metrics[0]["teacher_kl"] == 0


def test_a_shuffled_teacher_is_shuffled_anew_every_step(make_run, tmp_path):
    """The same rows, answers and log-probs of the sampler twice; only the shuffle may differ."""
    rows = write_rows(tmp_path / "two.parquet", 2)
    more = ["method.control=shuffled_teacher", "trainer.total_training_steps=4", "data.shuffle=false"]
    run = make_run(*more, "seeded_rollout=false", rows=rows)
    run.sampler.answers = MIXED
    run.fit()
    places = []
    for update in run.actor.updates:
        taught = torch.cat([s["advantages"] + s["rollout_log_probs"] for s in update])
        own = torch.cat([s["teacher_logprobs"] for s in update])
        torch.testing.assert_close(taught.sort().values, own.sort().values, atol=1e-5, rtol=0)
        places.append(taught.sort().indices.tolist())
    assert len({str(place) for place in places}) > 1


@pytest.mark.parametrize(
    ("finish", "share", "masks"),
    [
        ({4: "stop"}, 0.0, [[1] * 4, [1, 1], [1, 1, 1], [1, 1]]),  # its end is the last token allowed
        ({4: "stop", 3: "length"}, 0.25, [[1] * 4, [1, 1], [0, 0, 0], [1, 1]]),  # rollout.max_model_len cuts earlier
    ],
)
def test_an_answer_is_cut_off_where_the_engine_says_so_whatever_its_length(make_run, finish, share, masks):
    run = make_run("method.guards.truncated_mask=true")
    run.sampler.answers, run.sampler.finish = MIXED, finish
    run.fit()
    (metrics,) = run.metrics
    assert metrics["response_length/truncated_share"] == metrics["guards/truncated_share"] == share
    assert sorted(sample["response_mask"].tolist() for sample in run.samples) == sorted(masks)


def test_truncated_samples_are_masked_in_what_the_actor_reads(make_run):
    run = make_run("method.guards.truncated_mask=true")
    run.sampler.answers = MIXED
    run.fit()
    assert sorted(masks(run)) == [[0] * 4, [1] * 2, [1] * 2, [1] * 3]
    (cut,) = answered(run, 5, 6, 7, 8)
    assert cut["advantages"].tolist() == [0] * 4
    (metrics,) = run.metrics
    assert metrics["guards/truncated_share"] == 0.25
    kept = torch.cat([gap(sample) for sample in run.samples if sample is not cut])
    assert metrics["advantage/mean"] == pytest.approx(kept.mean().item())


def test_a_step_with_nothing_to_train_goes_by(make_run):
    run = make_run("method.guards.truncated_mask=true", "trainer.total_training_steps=2")
    run.sampler.answers = FOUR
    run.fit()
    assert masks(run) == []  # Adam would move the weights all the same
    assert [row["updates/done"] for row in run.metrics] == [0, 0]
    assert [row["guards/truncated_share"] for row in run.metrics] == [1, 1]
    assert not [row for row in run.metrics if "advantage/mean" in row]


def test_the_trained_prefix_grows_from_its_start_in_the_first_step_to_everything(make_run):
    """A quarter, then five eighths, then all of four tokens: ceil(1), ceil(2.5), 4."""
    steps = ["method.guards.prefix_steps=2", "method.guards.prefix_start=0.25", "trainer.total_training_steps=3"]
    run = make_run(*steps)
    run.sampler.answers = FOUR
    run.fit()
    lengths = [[int(sample["response_mask"].sum()) for sample in update] for update in run.actor.updates]
    assert lengths == [[1] * 4, [3] * 4, [4] * 4]
    assert masks(run)[0] == [1, 0, 0, 0]
    for sample in run.samples:
        wanted = gap(sample) * sample["response_mask"]
        torch.testing.assert_close(sample["advantages"], wanted)


def test_too_many_unscored_samples_stop_the_run_with_what_the_first_one_said(make_run):
    run = make_run("teacher.max_unscored_share=0.25")
    run.sampler.answers = [[5, 6], [7, 8]]
    run.teacher.refuses = 7
    message = r"2 of 4 samples have no teacher score, more than teacher.max_unscored_share=0.25; no step was finished, "
    with pytest.raises(RuntimeError, match=message + r"so there is no checkpoint; the first says: .*too long"):
        run.fit()
    assert run.actor.updates == run.actor.saved == []


def test_a_stopped_run_is_saved_as_its_last_step_left_it_and_resumes_with_the_rows_it_did_not_finish(
    make_run, tmp_path
):
    rows = write_rows(tmp_path / "rows.parquet", 6)
    run = make_run("trainer.total_training_steps=3", rows=rows)
    run.sampler.answers = [[5, 6]] * 4 + [[7, 8]] * 4  # the second step is refused
    run.teacher.refuses = 7
    with pytest.raises(RuntimeError, match=r"step 1 is saved; the same command resumes after it; the first says"):
        run.fit()
    assert run.actor.saved == [1]
    assert run.trainer.global_steps == 2
    student = Path(run.config.run_dir, "student", "config.json")
    assert json.loads(student.read_text()) == {"step": 1}
    first, refused = run.sampler.requests[:4], run.sampler.requests[4:]

    resumed = make_run("trainer.total_training_steps=3", rows=rows).fit()
    assert [path.endswith("global_step_1/actor") for path in resumed.actor.loaded] == [True]
    assert [row["step"] for row in resumed.metrics] == [1, 2, 3]
    again = resumed.sampler.requests[:4]
    # The same prompts, and with them the same seeds.
    assert sorted(map(str, again)) == sorted(map(str, refused)) != sorted(map(str, first))


def test_a_step_that_is_saved_already_is_not_saved_again(make_run):
    run = make_run("trainer.total_training_steps=3", "trainer.save_freq=1")
    run.sampler.answers = [[5, 6]] * 4 + [[7, 8]] * 4
    run.teacher.refuses = 7
    with pytest.raises(RuntimeError, match=r"step 1 is saved"):
        run.fit()
    assert run.actor.saved == [1]


def test_padded_rows_of_like_length_stand_together_within_a_mini_batch(make_run):
    """Two prompts of two samples a mini-batch: four rows."""
    trainer = make_run("data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=2").trainer
    trainer.global_steps = 1

    def balanced(lengths: list[int]) -> list[int]:
        keys, tags = [f"{i}_0_0" for i in range(len(lengths))], [{"seq_len": length} for length in lengths]
        batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
        metrics = {}
        batch = trainer._balance_batch(batch, metrics)
        assert metrics["global_seqlen/mean"] == sum(lengths)
        assert [lengths[int(key[0])] for key in batch.keys] == [tag["seq_len"] for tag in batch.tags]  # rows as a whole
        return [tag["seq_len"] for tag in batch.tags]

    lengths = [5, 1, 7, 3, 8, 2, 6, 4]
    assert balanced(lengths) == [1, 3, 5, 7, 2, 4, 6, 8]
    trainer.config.actor_rollout_ref.model.use_remove_padding = True  # packed rows are not padded
    assert balanced(lengths) == lengths


def test_a_sample_that_the_sampler_failed_is_padded_by_verl_and_trains_nothing(make_run):
    run = make_run()
    run.sampler.answers = MIXED
    run.sampler.refused = [1]
    run.fit()
    padding = [sample for sample in run.samples if sample["responses"].tolist() not in MIXED]
    assert len(run.samples) == 4
    assert len(padding) == 1
    assert padding[0]["response_mask"].sum() == 0
    assert padding[0]["advantages"].abs().sum() == 0
    for sample in run.samples:
        if sample is not padding[0]:
            torch.testing.assert_close(sample["advantages"], gap(sample))


def test_the_task_reward_is_centred_among_the_answers_to_one_prompt(make_run, tmp_path):
    run = make_run("method.coef=0", "method.task_reward.coef=2", rows=write_rows(tmp_path / "two.parquet", 2))
    right, wrong = run.ids("de"), run.ids("en")
    run.sampler.answers = [right, wrong]
    run.fit()
    for sample in run.samples:
        assert sample["advantages"].tolist() == [1.0 if sample["rm_scores"].sum() else -1.0]


def test_a_group_baseline_is_taken_among_the_answers_to_one_prompt(make_run):
    run = make_run("method.baseline=group").fit()
    for sample in run.samples:
        (other,) = [s for s in run.samples if s["uid"] == sample["uid"] and s["session_id"] != sample["session_id"]]
        torch.testing.assert_close(sample["advantages"], gap(sample) - gap(other).mean())


def test_the_trainers_own_logprobs_may_take_the_samplers_place(make_run):
    own = ["method.student_logprobs=old", "algorithm.rollout_correction.bypass_mode=false"]
    run = make_run(*own).fit()
    for sample in run.samples:
        prompt = len(sample["prompts"])
        old = -0.01 * torch.arange(prompt - 1, prompt - 1 + len(sample["responses"])).float()
        torch.testing.assert_close(sample["old_log_probs"], old)
        torch.testing.assert_close(sample["advantages"], sample["teacher_logprobs"] - old)


def test_the_reference_pulls_the_student_back(make_run):
    """On a machine with an accelerator, as `method.guards.reference_kl_coef` needs one."""
    more = ["method.coef=0", "method.guards.reference_kl_coef=0.5", "trainer.device=cuda"]
    run = make_run(*more).fit()
    (metrics,) = run.metrics
    pulls = []
    for sample in run.samples:
        prompt = len(sample["prompts"])
        reference = -0.01 * torch.arange(prompt - 1, prompt - 1 + len(sample["responses"])).float()
        pulls.append(sample["rollout_log_probs"] - reference)
        torch.testing.assert_close(sample["advantages"], -0.5 * pulls[-1])
    assert metrics["guards/reference_kl"] == pytest.approx(torch.cat(pulls).mean().item())


@pytest.mark.parametrize(
    ("method", "only"),
    [
        (["method.loss=forward_kl"], True),
        (["method.loss=reverse_kl", "method.tail_samples=true"], False),
        (["method.baseline=expected_reverse_kl"], False),
    ],
)
def test_a_method_that_reads_the_students_logits_gives_the_actor_its_loss_and_asks_for_them(make_run, method, only):
    run = make_run(*method, "method.top_k=3").fit()
    assert run.actor.loss.keywords["method"] == run.trainer.method
    assert run.actor.loss.keywords["config"].loss_agg_mode == "token-sum"
    (request,) = run.actor.requests
    assert (request["distillation_use_topk"], request["distillation_only"]) == (True, only)
    assert request["temperature"] == 1.0  # what verl says is still there


def test_other_methods_take_verls_loss_and_ask_for_no_logits(make_run):
    run = make_run().fit()
    assert run.actor.loss.func is policy_loss
    assert not run.actor.requests[0]["distillation_use_topk"]
