"""Samples of earlier steps in a step: our trainer inside verl's own loop, up to what the actor is handed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from local_run import write_rows

from verl_ext.trainer.replay.config import check_replay
from verl_ext.trainer.replaying import FILE

UNBOUNDED = "method.policy_loss.kind=importance_sampling"
BOUNDED = "method.policy_loss.kind=truncated_importance_sampling"
HALF = ("replay.share=0.5", "replay.min_ess=0", "replay.max_uses=100", "replay.max_age=100", BOUNDED)
N = 2
"""Samples a prompt in these runs; two prompts a step."""


def replayed(update: list[dict]) -> list[dict]:
    return [sample for sample in update if sample["uid"].startswith("replayed")]


def fresh(update: list[dict]) -> list[dict]:
    return [sample for sample in update if not sample["uid"].startswith(("replayed", "pad"))]


def content(sample: dict) -> tuple:
    """What a sample was sampled and scored as, exactly."""
    fields = ("prompts", "responses", "rollout_log_probs", "teacher_logprobs", "response_mask", "rm_scores")
    return tuple(tuple(sample[field].tolist()) for field in fields)


def student_logprobs(sample: dict) -> torch.Tensor:
    """What the played actor says of a response."""
    before = len(sample["prompts"]) - 1
    return -0.01 * torch.arange(before, before + len(sample["responses"])).float()


def held(run) -> list[tuple]:
    """Prompt and response of every row that the buffer holds."""
    storage = run.trainer.memory.storage
    rows = storage.get(torch.arange(storage.oldest, storage.next).numpy())
    ids = rows.token_ids_N.split(rows.lengths_B.tolist())
    return [
        (tuple(row[:p].tolist()), tuple(row[p:].tolist())) for row, p in zip(ids, rows.prompt_lengths_B, strict=True)
    ]


def test_every_sample_of_a_step_is_kept_and_comes_back_as_it_was_and_is_not_made_again(make_run):
    """TRL's replay kept the first group of each step alone, and nothing said so (trl#6804)."""
    run = make_run(*HALF, "replay.priority=uniform", "trainer.total_training_steps=5").fit()
    kept: list[tuple] = []
    for update in run.actor.updates:
        assert len(update) == 2 * N
        assert len(fresh(update)) == (2 * N if not kept else N)
        assert {content(sample) for sample in replayed(update)} <= set(kept)
        kept += [content(sample) for sample in fresh(update)]
    assert sorted(held(run)) == sorted(sample[:2] for sample in kept)  # all groups of all steps
    of_step = held(run)[:4]  # not in the order of their arrival, which a repeated run need not have
    assert of_step == sorted(of_step, key=lambda ids: np.array(ids[0] + ids[1], dtype=np.int32).tobytes())
    seen = [content(sample) for update in run.actor.updates for sample in replayed(update)]
    assert len(seen) == 4 * N
    assert len(set(seen)) > N
    assert [row["replay/rows"] for row in run.metrics] == [4, 6, 8, 10, 12]
    assert [row["replay/trained"] for row in run.metrics] == [0, 2, 2, 2, 2]
    assert [row["teacher/scored"] for row in run.metrics] == [4, 2, 2, 2, 2]
    assert len(run.sampler.requests) == 4 + 4 * 2
    assert len(run.teacher.sequences) == 4 + 4 * 2 + 2 + 4  # and one of each prompt alone: its prefix
    assert [row["staleness/max"] for row in run.metrics] == [0, 0, 0, 0, 0]


def test_metrics_of_sampler_and_teacher_are_those_of_fresh_samples(make_run):
    run = make_run(*HALF, "trainer.total_training_steps=3", "method.guards.truncated_mask=true")
    run.sampler.answers = [[5, 6, 7, 8], [9, 10], [9, 10], [9, 10], *[[11, 12, 13]] * 4]
    run.fit()
    assert [row["response_length/mean"] for row in run.metrics] == [2.5, 3, 3]
    assert [row["response_length/truncated_share"] for row in run.metrics] == [0.25, 0, 0]
    assert [row["guards/truncated_share"] for row in run.metrics] == [0.25, 0, 0]
    for row, update in zip(run.metrics, run.actor.updates, strict=True):
        gaps = [s["rollout_log_probs"] - s["teacher_logprobs"] for s in fresh(update)]
        assert row["teacher_kl"] == pytest.approx(torch.cat(gaps).mean().item())
    cut = [s for update in run.actor.updates for s in update if s["responses"].tolist() == [5, 6, 7, 8]]
    assert all(not sample["response_mask"].any() for sample in cut)  # a guard holds for a replayed one too


def test_verls_padding_is_counted_nowhere(make_run, tmp_path):
    """It carries a copy of the first sample's notes."""
    run = make_run(f"trainer.rollout_data_dir={tmp_path}/samples")
    run.sampler.answers = [[5, 6, 7, 8], [9, 10], [9, 10], [9, 10]]
    run.sampler.refused = [1]
    run.fit()
    (metrics,) = run.metrics
    assert len(run.samples) == 4
    assert metrics["teacher/scored"] == 3
    assert metrics["teacher/sequences"] == len(run.teacher.sequences)
    assert metrics["response_length/truncated_share"] == pytest.approx(1 / 3)
    run.trainer._shutdown_dump_executor()
    assert len((tmp_path / "samples" / "1.jsonl").read_text().splitlines()) == 3


def test_a_replayed_sample_is_charged_under_its_steps_student_and_weighed_and_its_ratio_is_to_its_sampler(make_run):
    more = ("replay.exponent=1", "replay.beta_steps=0", "method.coef=2", "trainer.total_training_steps=2")
    run = make_run(*HALF, *more).fit()
    first, second = run.actor.updates
    assert "rollout_is_weights" not in first[0]
    assert len(replayed(second)) == N
    priorities = {content(s): (s["rollout_log_probs"] - s["teacher_logprobs"]).abs().mean().item() for s in first}
    mean = sum(priority + 1e-3 for priority in priorities.values()) / 4
    for sample in replayed(second):
        torch.testing.assert_close(sample["advantages"], 2 * (sample["teacher_logprobs"] - student_logprobs(sample)))
        assert torch.equal(sample["old_log_probs"], sample["rollout_log_probs"])
        wanted = torch.full_like(sample["advantages"], mean / (priorities[content(sample)] + 1e-3))
        torch.testing.assert_close(sample["rollout_is_weights"], wanted)  # of what multiplies the loss
    for sample in fresh(second):
        wanted = 2 * (sample["teacher_logprobs"] - sample["rollout_log_probs"])
        torch.testing.assert_close(sample["advantages"], wanted)
        assert set(sample["rollout_is_weights"].tolist()) == {1.0}
    moved = [(student_logprobs(s) - s["teacher_logprobs"]).mean() for s in replayed(second)]
    assert run.metrics[1]["replay/reverse_kl"] == pytest.approx(torch.stack(moved).mean().item(), rel=1e-5)


def test_with_the_current_students_charge_the_loss_is_left_to_take_it(make_run):
    run = make_run(*HALF, "method.student_logprobs=current", "trainer.total_training_steps=2").fit()
    assert len(replayed(run.actor.updates[1])) == N
    for sample in run.actor.updates[1]:
        torch.testing.assert_close(sample["advantages"], sample["teacher_logprobs"] - sample["rollout_log_probs"])


DIRECT = ("method.loss=forward_kl", UNBOUNDED)  # which has no ratio to bound
EXPECTED = ("method.baseline=expected_reverse_kl", BOUNDED)


@pytest.mark.parametrize("method", [DIRECT, EXPECTED], ids=["direct", "expected"])
def test_the_teachers_top_tokens_come_back_with_a_sample(make_run, method):
    run = make_run(*HALF, *method, "method.top_k=3", "trainer.total_training_steps=2").fit()
    first, second = run.actor.updates
    tops = {content(s): (s["teacher_top_ids"].tolist(), s["teacher_top_logprobs"].tolist()) for s in first}
    assert len(replayed(second)) == N
    for sample in replayed(second):
        top = tops[content(sample)]
        assert (sample["teacher_top_ids"].tolist(), sample["teacher_top_logprobs"].tolist()) == top
        assert len(set(sample["rollout_is_weights"].tolist())) == 1


def test_a_sample_that_the_student_has_left_behind_is_refused_and_its_place_is_sampled(make_run):
    run = make_run(*HALF, "replay.min_ess=1", "trainer.total_training_steps=3").fit()
    assert [len(fresh(update)) for update in run.actor.updates] == [4, 4, 4]
    assert [row["replay/refused_ess"] for row in run.metrics] == [0, 2, 2]
    assert run.metrics[1]["replay/ess_mean"] < 1
    storage = run.trainer.memory.storage
    assert storage.row["uses_B"][: len(storage)].tolist() == [0] * 12
    # Looked at all the same: its priority is that of the student that looked.
    looked = {round(float((student_logprobs(s) - s["teacher_logprobs"]).abs().mean()), 4) for s in run.samples}
    assert len({round(p, 4) for p in storage.row["priorities_B"][: len(storage)].tolist()} & looked) >= 2


def test_what_is_left_of_a_whole_prompt_goes_back(make_run):
    """Of two drawn rows one is refused, and one alone is no prompt's worth."""
    run = make_run(*HALF, "replay.min_ess=0.999999", "replay.priority=uniform", "trainer.total_training_steps=3")
    run.sampler.answers = [[5], [6, 7]]  # the ratios of one token are always alike
    run.fit()
    rows = run.metrics[1:]
    for row in rows:
        assert row["replay/drawn"] == row["replay/refused_ess"] + row["replay/returned"] + row["replay/trained"] == 2
    assert max(row["replay/returned"] for row in rows) == 1
    assert [len(update) for update in run.actor.updates] == [4, 4, 4]


def test_a_used_up_or_old_sample_makes_room_for_a_fresh_one(make_run):
    run = make_run(*HALF, "replay.max_uses=1", "replay.max_age=1", "trainer.total_training_steps=4").fit()
    seen = [content(sample) for update in run.actor.updates for sample in replayed(update)]
    assert len(seen) == len(set(seen)) > 0
    for before, update in zip(run.actor.updates, run.actor.updates[1:], strict=False):
        assert {content(sample) for sample in replayed(update)} <= {content(sample) for sample in fresh(before)}
    assert [row["replay/expired"] for row in run.metrics] == [0, 4, *(len(fresh(u)) for u in run.actor.updates[1:3])]


def test_an_unscored_sample_is_not_kept_and_that_is_counted(make_run):
    run = make_run(*HALF, "teacher.max_unscored_share=1")
    run.sampler.answers = [[5, 6], [7, 8]]
    run.teacher.refuses = 7
    run.fit()
    assert (run.metrics[0]["replay/left_out"], run.metrics[0]["replay/rows"]) == (2, 2)
    assert {response for _, response in held(run)} == {(5, 6)}


def dropped(run) -> float:
    """Groups that were sampled and scored for nothing."""
    return sum(row.get("training/off_policy/evicted_samples", 0) for row in run.metrics)


def test_a_stream_has_its_share_in_every_update_of_a_step(make_run, tmp_path):
    """Two updates a step of two prompts each; with one batch under way, the third step is the first to replay."""
    rows = write_rows(tmp_path / "many.parquet", 24)
    stream = ("pipeline.mode=stream", "data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=2")
    run = make_run(*HALF, *stream, "trainer.total_training_steps=5", rows=rows).fit()
    shares = [(len(fresh(update)), len(replayed(update))) for update in run.actor.updates]
    assert shares == [*[(4, 0)] * 4, *[(2, 2)] * 6]
    assert max(row["staleness/max"] for row in run.metrics) == 1
    assert len(run.sampler.requests) == sum(count for count, _ in shares)  # what is replayed is not sampled
    assert dropped(run) == 0  # nor does it leave sampled prompts waiting until they are too old


def test_with_a_step_under_way_what_is_refused_is_sampled_in_its_step(make_run):
    more = ("pipeline.mode=one_step_off", "replay.min_ess=1", "trainer.total_training_steps=5")
    run = make_run(*HALF, *more).fit()
    assert [row["replay/refused_ess"] for row in run.metrics] == [0, 0, 2, 2, 2]
    assert [len(fresh(update)) for update in run.actor.updates] == [4] * 5
    assert len(run.sampler.requests) == 5 * 4
    assert dropped(run) == 0


def test_a_resumed_run_replays_what_the_uninterrupted_one_does(make_run, tmp_path):
    more = (*HALF, "seeded_rollout=true", "replay.max_uses=2", "trainer.save_freq=2", "trainer.total_training_steps=4")
    rows = write_rows(tmp_path / "rows.parquet", 6)
    whole = make_run(*more, rows=rows).fit()
    path = f"trainer.resume_from_path={whole.config.trainer.default_local_dir}/global_step_2"
    resume = (path, "trainer.resume_mode=resume_path", f"run_dir={tmp_path}/resumed")
    resumed = make_run(*more, *resume, rows=rows).fit()
    for once, again in zip(whole.actor.updates[2:], resumed.actor.updates, strict=True):
        assert [content(sample) for sample in replayed(once)] == [content(sample) for sample in replayed(again)]
        assert len(replayed(again)) == N
        weights = [[sample["rollout_is_weights"].tolist() for sample in replayed(each)] for each in (once, again)]
        assert weights[0] == weights[1]
    for once, again in zip(whole.metrics[2:], resumed.metrics, strict=True):
        names = {name for name in once if name.startswith("replay/")}
        assert {name: once[name] for name in names} == {name: again[name] for name in names}


def test_the_buffer_lies_beside_the_checkpoint_and_leaves_with_it(make_run):
    run = make_run(*HALF, "trainer.save_freq=1", "trainer.total_training_steps=2").fit()
    first, second = (Path(run.config.trainer.default_local_dir) / f"global_step_{step}" for step in (1, 2))
    state = torch.load(second / FILE, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert len(state["lengths_B"]) == 6
    assert len(torch.load(first / FILE, weights_only=True)["lengths_B"]) == 4
    shutil.rmtree(first / "actor")  # as verl does with all but the newest
    again = make_run(*HALF, "trainer.save_freq=1", "trainer.total_training_steps=3").fit()
    assert len(replayed(again.actor.updates[0])) == N
    assert not (first / FILE).exists()
    assert (second / FILE).exists()


def test_a_run_that_is_stopped_in_a_step_is_saved_with_the_buffer_of_the_step_before(make_run):
    run = make_run(*HALF, "trainer.total_training_steps=3", "teacher.max_unscored_share=0.4")
    run.sampler.answers = [[5, 6]] * 4 + [[7, 8]] * 4
    run.teacher.refuses = 7
    with pytest.raises(RuntimeError, match="step 1 is saved"):
        run.fit()
    state = torch.load(Path(run.config.trainer.default_local_dir) / "global_step_1" / FILE, weights_only=True)
    assert state["uses_B"].tolist() == [0, 0, 0, 0]
    kl = [abs(s["rollout_log_probs"] - s["teacher_logprobs"]).mean().item() for s in run.samples]
    assert sorted(state["priorities_B"].tolist()) == pytest.approx(sorted(kl), rel=1e-5)


def test_a_checkpoint_without_a_buffer_begins_an_empty_one_and_says_so(make_run, capsys):
    run = make_run("trainer.save_freq=1", BOUNDED).fit()
    again = make_run(*HALF, "trainer.total_training_steps=2").fit()
    assert f"replay: {run.config.trainer.default_local_dir}/global_step_1 holds no {FILE}" in capsys.readouterr().out
    assert len(replayed(again.actor.updates[0])) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([UNBOUNDED], "kind=importance_sampling: .* this loss does not bound them"),
        (["method.baseline=group"], "with method.baseline=group: it compares the samples of one prompt"),
        (["method.task_reward.coef=1"], "with method.task_reward.coef: it compares"),
        (["algorithm.rollout_correction.bypass_mode=false"], "bypass_mode=false"),
        (["replay.share=0.4"], "replay.share=0.4 of data.train_batch_size=2 prompts is less than one"),
        (["replay.capacity_bytes=1000"], "replay.capacity_bytes=1000 does not hold one sample"),
        (["replay.capacity_tokens=10"], "replay.capacity_tokens=10 does not hold one sample"),
        (["replay.device=cuda"], "replay.device=cuda and trainer.device=cpu"),
        (
            ["pipeline.mode=one_step_off", "replay.max_age=1"],
            "replay.max_age=1: a sample of pipeline.mode=one_step_off",
        ),
        (
            ["pipeline.mode=stream", "actor_rollout_ref.actor.ppo_mini_batch_size=1"],
            "leaves a mini-batch of 1 prompts without a fresh one",
        ),
        (["actor_rollout_ref.rollout.enable_rollout_routing_replay=true"], "enable_rollout_routing_replay=true needs"),
    ],
)
def test_what_replay_cannot_stand_beside_is_refused(run_config, overrides, message):
    from omegaconf import OmegaConf

    from verl_ext.run.settings import settings_of
    from verl_ext.trainer.config import MethodConfig
    from verl_ext.trainer.pipeline_config import PipelineConfig

    config = OmegaConf.merge(run_config, OmegaConf.from_dotlist(["replay.share=0.5", BOUNDED, *overrides]))
    method, pipeline = settings_of(config.method, MethodConfig), settings_of(config.pipeline, PipelineConfig)
    check_replay(OmegaConf.merge(config, {"replay": {"share": 0}}), method, pipeline)  # off, nothing is refused
    with pytest.raises(ValueError, match=message):
        check_replay(config, method, pipeline)
