"""Prompts under way while the student is trained: our trainer inside verl's own loop."""

from pathlib import Path

import pytest
import transfer_queue as tq
import yaml
from local_run import write_rows
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict

from verl_ext.trainer.buffer import PipelineBuffer, SamplingStopped
from verl_ext.trainer.pipeline_config import PipelineConfig, check_pipeline
from verl_ext.trainer.staleness import staleness_metrics

STREAM = ("pipeline.mode=stream", "method.policy_loss.kind=truncated_importance_sampling")

SEPARATE = ("pipeline.mode=one_step_off", "pipeline.placement=separate", "actor_rollout_ref.rollout.nnodes=1")


def staleness(run) -> list[float]:
    return [row["staleness/max"] for row in run.metrics]


def trained_rows(run) -> list[list[int]]:
    """Numbers of the data rows of every update."""
    return [sorted(sample["index"] for sample in update) for update in run.actor.updates]


def test_one_step_off_trains_on_what_was_sampled_a_step_earlier(make_run, tmp_path):
    run = make_run("pipeline.mode=one_step_off", "trainer.total_training_steps=4").fit()
    assert staleness(run) == [0, 1, 1, 1]
    assert [row["staleness/tokens_mean"] for row in run.metrics] == [0, 1, 1, 1]
    synchronous = make_run("trainer.total_training_steps=4", f"run_dir={tmp_path}/sync").fit()
    assert trained_rows(run) == trained_rows(synchronous)  # the same prompts in the same steps
    assert staleness(synchronous) == [0, 0, 0, 0]
    assert len(run.sampler.requests) == len(synchronous.sampler.requests)  # nothing is sampled for after the end


def test_a_stream_stays_within_its_staleness(make_run):
    run = make_run(*STREAM, "pipeline.max_staleness=2", "trainer.total_training_steps=5").fit()
    assert staleness(run) == [0, 1, 2, 2, 2]
    assert run.metrics[4]["staleness/samples_2"] == 1
    assert len(run.sampler.requests) == 5 * 4


def test_a_stream_trains_as_soon_as_a_mini_batch_is_finished(make_run):
    run = make_run(*STREAM, "actor_rollout_ref.actor.ppo_mini_batch_size=1", "trainer.total_training_steps=2").fit()
    assert [len(update) for update in run.actor.updates] == [2, 2, 2, 2]  # of one prompt, twice a step
    assert len(run.metrics) == 2
    assert [row["teacher/scored"] for row in run.metrics] == [4, 4]  # of the step, not of one update


def test_vllm_goes_on_with_new_weights_and_never_sleeps(make_run, tmp_path):
    run = make_run("pipeline.mode=one_step_off", "trainer.total_training_steps=2").fit()
    assert run.sync.calls == ["update", *["abort", "update", "resume"] * 2]
    assert run.sync.steps == [0, 1, 2]
    control = make_run("pipeline.mode=one_step_off", "method.control=no_weight_sync", f"run_dir={tmp_path}/control")
    assert control.fit().sync.calls == ["update"]


def test_a_sample_begun_too_long_ago_is_dropped_counted_and_replaced(make_run):
    run = make_run(*STREAM, "trainer.total_training_steps=3")
    run.sampler.lag = {4: 2}  # the third prompt's first sample; one version is allowed
    run.fit()
    assert sum(row.get("training/off_policy/evicted_samples", 0) for row in run.metrics) == 1
    assert max(staleness(run)) == 1
    assert [len(update) for update in run.actor.updates] == [4, 4, 4]
    assert len(run.sampler.requests) == 3 * 4 + 2


def test_a_failed_prompt_is_replaced_and_counted(make_run):
    run = make_run("pipeline.mode=one_step_off", "trainer.total_training_steps=3")
    run.sampler.refused = [2]
    run.fit()
    assert sum(row.get("training/rollout_failure/evicted_samples", 0) for row in run.metrics) == 1
    assert [len(update) for update in run.actor.updates] == [4, 4, 4]


def test_a_run_whose_every_prompt_fails_ends(make_run):
    run = make_run("pipeline.mode=one_step_off", "trainer.total_training_steps=3")
    run.sampler.refused = list(range(1000))
    with pytest.raises(
        RuntimeError,
        match=r"prompts failed and none was finished \(0 at the student, 0 at the teacher; the last error: the engine",
    ):
        run.fit()


@pytest.mark.parametrize("mode", ["one_step_off", "stream"])
def test_what_no_teacher_could_score_before_a_stop_is_asked_again_after_it(make_run, tmp_path, monkeypatch, mode):
    """The checkpoint holds prompts of later steps with samples that are finished and have no score."""
    # The queue of these tests has no controller to save it: it stays as it is.
    monkeypatch.setattr(tq, "save_checkpoint", lambda folder, **_: Path(folder).mkdir())
    monkeypatch.setattr(tq, "load_checkpoint", lambda _: None)
    settings = (f"pipeline.mode={mode}", STREAM[1], "trainer.total_training_steps=4")
    rows = write_rows(tmp_path / "rows.parquet", 8)
    run = make_run(*settings, rows=rows)
    run.sampler.answers = [[5, 6]] * 4 + [[7, 8]] * 100  # from the second step on
    run.teacher.refuses = 7
    with pytest.raises(RuntimeError, match=r"4 of 4 samples have no teacher score.*step 1 is saved"):
        run.fit()
    resumed = make_run(*settings, rows=rows).fit()
    assert [row["step"] for row in resumed.metrics] == [1, 2, 3, 4]
    assert [row["teacher/unscored"] for row in resumed.metrics] == [0] * 4
    assert len(resumed.sampler.requests) == 3 * 4
    stages = Path(run.config.run_dir, "stages.jsonl").read_text()
    assert "2 saved prompts have samples without a score, and are asked again" in stages


def test_where_every_prompt_fails_what_was_finished_is_saved(make_run):
    run = make_run("trainer.total_training_steps=3", "trainer.save_freq=100")
    run.sampler.refused = list(range(4, 1000))
    with pytest.raises(RuntimeError, match=r"the last error: the engine is out of memory\); step 1 is saved; the same"):
        run.fit()
    assert run.actor.saved == [1]


@pytest.mark.parametrize("mode", ["sync", "one_step_off"])
def test_a_row_whose_template_raises_blocks_nothing(make_run, mode):
    """The teacher's prompt of one row is refused; its samples are replaced, or padded, and train nothing."""
    run = make_run(f"pipeline.mode={mode}", "trainer.total_training_steps=3")
    render = run.worker._request

    def refuse(row, *rest):
        if row["index"] == 0:
            raise ValueError("the chat template refuses it")
        return render(row, *rest)

    run.worker._request = refuse
    run.fit()
    assert len(run.metrics) == 3
    trained = [sample for sample in run.samples if any(sample["response_mask"])]
    assert 0 not in {sample["index"] for sample in trained}
    assert len(trained) == (3 * 4 if mode == "one_step_off" else 2 * 4 + 2)
    of_row_0 = [row for row in run.failures if row["index"] == 0]
    assert {each["cause"] for each in of_row_0} == {"ValueError: the chat template refuses it"}
    assert {each["row"] for each in of_row_0} == {f"{run.config.data.train_files} row 0"}
    assert sum(row["samples/failed"] for row in run.metrics) == len(of_row_0) == 2


def queued(*prompts: tuple[str, str, int]) -> None:
    """Prompts by name, status and step, each with one sample of the weights before that step."""
    names = [name for name, _, _ in prompts]
    tags = [{"is_prompt": True, "status": status, "global_steps": step} for _, status, step in prompts]
    tq.kv_batch_put(keys=names, partition_id="train", tags=tags)
    samples = [{"status": "success", "min_global_steps": step - 1} for _, _, step in prompts]
    tq.kv_batch_put(keys=[f"{name}_0_0" for name in names], partition_id="train", tags=samples)


def test_samples_that_a_checkpointed_step_had_trained_do_not_come_back(make_run):
    """verl saves the queue before it drops them."""
    queued(("waiting", "finished", 2))
    note = NonTensorStack({"teacher_error": ""})
    tq.kv_batch_put(keys=["waiting_0_0"], partition_id="train", fields=TensorDict({"extra_fields": note}, 1))
    trained = {"status": "success", "min_global_steps": 1}
    tq.kv_batch_put(keys=["gone_0_0"], partition_id="train", tags=[trained])
    make_run("pipeline.mode=one_step_off")  # the trainer of a resumed run, with the queue as it was saved
    assert sorted(tq.kv_list("train")["train"]) == ["waiting", "waiting_0_0"]


def buffer_of(**pipeline) -> PipelineBuffer:
    buffer = PipelineBuffer(
        PipelineConfig(mode="stream", wait_timeout_s=0.2, **pipeline),
        trainer_mode="colocate_async",
        trainer_config=OmegaConf.create(),
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create(),
        train_batch_size=2,
    )
    buffer.where = lambda: "1 at the student, 0 at the teacher"
    buffer.lost = lambda: ""
    return buffer


def test_a_step_waits_for_a_prompt_that_would_be_too_old_a_step_later(empty_queue):
    queued(("old", "running", 1), ("b", "finished", 2), ("c", "finished", 2))
    with pytest.raises(SamplingStopped, match=r"wait_timeout_s=0.2 seconds: 2 are .* 1 are .* \(1 at the student"):
        buffer_of(max_staleness=1).sample(2, "train", 2)
    batch, _ = buffer_of(max_staleness=2).sample(2, "train", 2)  # it has another step
    assert sorted(batch.keys) == ["b_0_0", "c_0_0"]
    empty_queue()


def test_without_waiting_a_step_goes_on(empty_queue):
    queued(("old", "running", 1), ("b", "finished", 2), ("c", "finished", 2))
    batch, _ = buffer_of(max_staleness=1, stale="drop").sample(2, "train", 2)
    assert sorted(batch.keys) == ["b_0_0", "c_0_0"]
    empty_queue()


def test_the_oldest_finished_prompts_go_first(empty_queue):
    queued(("new", "finished", 3), ("old", "finished", 2), ("older", "finished", 1), ("under", "pending", 3))
    batch, _ = buffer_of(max_staleness=2).sample(3, "train", 2)
    assert sorted(batch.keys) == ["old_0_0", "older_0_0"]
    empty_queue()


def test_staleness_is_told_by_sample_and_by_token():
    found = staleness_metrics([[[3, 10]], [[1, 2], [3, 4]], [[2, 4]]], current=3)
    assert found == {
        "staleness/samples_0": 1 / 3,
        "staleness/samples_1": 1 / 3,
        "staleness/samples_2": 1 / 3,
        "staleness/tokens_mean": pytest.approx((2 * 2 + 1 * 4) / 20),
        "staleness/max": 2,
        "staleness/resumed_share": 1 / 3,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pipeline.max_staleness=3",), "pipeline.max_staleness=3 .* set that mode"),
        (("pipeline.mode=stream", "pipeline.max_staleness=2"), "truncated_importance_sampling, or pipeline.max_stal"),
        (("pipeline.mode=stream", "actor_rollout_ref.rollout.free_cache_engine=true"), "free_cache_engine=true"),
        ((*STREAM, "data.train_batch_size=3"), "no multiple of actor_rollout_ref.actor.ppo_mini_batch_size=2"),
        (("pipeline.mode=streem",), "pipeline.mode=streem must be one of"),
        ((*SEPARATE, "actor_rollout_ref.model.lora_rank=8"), "lora_rank=8: .* sends no adapters .* set update=full"),
        (SEPARATE, "ray_init.num_gpus=1: pipeline.placement=separate takes 2, .* set it to 2"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(run_config, words, message):
    from verl_ext.trainer.config import check_method

    config = OmegaConf.merge(run_config, {"actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 2}}})
    for key, _, value in (word.partition("=") for word in words):
        OmegaConf.update(config, key, yaml.safe_load(value))
    with pytest.raises(ValueError, match=message):
        check_pipeline(config, check_method(config))
