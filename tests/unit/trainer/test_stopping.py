"""A run that is asked to stop saves its last finished step, and a resumed one does what an uninterrupted one does."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_run import write_rows
from omegaconf import OmegaConf

from verl_ext.run.checkpoints import flaw_of, saved_in
from verl_ext.run.stop import Noted, Signalled
from verl_ext.run.stop_request import forget_stop, request_stop, requested_stop
from verl_ext.trainer.buffer import StopAsked
from verl_ext.trainer.stopping import Stopping

STEPS = "trainer.total_training_steps=4"


def ask_at(run: Any, step: int, *, answered: bool, failure: str = "") -> None:
    """Ask the run to stop when the prompts of a step go out, which are answered or not."""
    generate = run.generate_sequences

    def generate_or_stop(batch: Any) -> None:
        if run.trainer.global_steps == step:
            request_stop(Path(run.config.run_dir), failure)
            if not answered:
                return
        generate(batch)

    run.generate_sequences = generate_or_stop


@pytest.mark.parametrize("answered", [True, False], ids=["before the update", "while it waits"])
def test_a_stopped_run_saves_its_last_finished_step_and_resumes_as_if_it_had_gone_on(make_run, tmp_path, answered):
    rows = write_rows(tmp_path / "rows.parquet", 8)
    whole = make_run(STEPS, rows=rows).fit()
    trained = [sorted(map(str, (sample["input_ids"].tolist() for sample in update))) for update in whole.actor.updates]
    run = make_run(STEPS, f"run_dir={tmp_path}/stopped", rows=rows)
    ask_at(run, 3, answered=answered)
    with pytest.raises(StopAsked, match=r"^step 2 is saved; the same command resumes after it$"):
        run.fit()
    assert (run.actor.saved, len(run.actor.updates), len(run.metrics)) == ([2], 2, 2)
    (saved,) = saved_in(Path(run.config.trainer.default_local_dir))
    assert (saved.step, flaw_of(saved.folder, content=True)) == (2, None)
    forget_stop(Path(run.config.run_dir))

    resumed = make_run(STEPS, f"run_dir={tmp_path}/stopped", rows=rows).fit()
    updates = [*run.actor.updates, *resumed.actor.updates]
    assert [sorted(map(str, (sample["input_ids"].tolist() for sample in update))) for update in updates] == trained
    assert [row["step"] for row in resumed.metrics] == [1, 2, 3, 4]
    assert '"resumed after step 2"' in Path(run.config.run_dir, "stages.jsonl").read_text()


def test_a_failure_that_the_driver_saw_ends_the_wait_for_samples_and_is_what_ended_the_run(make_run):
    run = make_run(STEPS)
    ask_at(run, 3, answered=False, failure="a rank has ended")
    with pytest.raises(RuntimeError, match=r"^a rank has ended .*; step 2 is saved"):
        run.fit()
    assert run.actor.saved == [2]


@pytest.mark.parametrize(("restored", "sent"), [(2, ["a step's"]), (4, []), (3, [1])])
def test_a_pipelined_run_that_was_stopped_while_it_waited_runs_no_further_ahead(make_run, restored, sent):
    """Of two prompts a step, one step ahead: those of the next step, and of the one behind it, may have come back."""
    trainer = make_run("pipeline.mode=one_step_off", STEPS).trainer
    trainer.global_steps, trainer._restored_tq_prompt_count = 3, restored
    found: list[Any] = []
    trainer._add_prompts_to_generate = found.append
    trainer._add_batch_to_generate = lambda: found.append("a step's")
    trainer.on_train_begin()
    trainer.prepare_step()
    assert found == sent


@pytest.mark.parametrize(
    ("failure", "ends"),
    [("", (StopAsked, "^step 2 is saved")), ("a rank has ended", (RuntimeError, "^a rank has ended; step 2"))],
)
def test_a_run_that_is_asked_between_two_steps_saves_the_one_that_ended(make_run, failure, ends):
    run = make_run(STEPS, "trainer.save_freq=1")
    append = run.trainer.metrics_file.append

    def ask(step: int, metrics: dict) -> None:
        append(step, metrics)
        if step == 2:
            request_stop(Path(run.config.run_dir), failure)

    run.trainer.metrics_file.append = ask
    kind, words = ends
    with pytest.raises(kind, match=words):
        run.fit()
    assert run.actor.saved == [1, 2]  # by save_freq, and not a second time


def test_a_run_that_is_asked_before_its_first_step_ends_says_that_nothing_is_saved(make_run):
    run = make_run(STEPS)
    request_stop(Path(run.config.run_dir))
    with pytest.raises(StopAsked, match="no step was finished, so there is no checkpoint"):
        run.fit()
    assert run.actor.saved == []


def test_only_the_newest_checkpoints_are_kept_over_a_resume(make_run):
    keep = ["trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2"]
    make_run(*keep, "trainer.total_training_steps=3").fit()
    run = make_run(*keep, "trainer.total_training_steps=4").fit()
    checkpoints = Path(run.config.trainer.default_local_dir)
    assert [saved.step for saved in saved_in(checkpoints)] == [4, 3]
    for saved in saved_in(checkpoints):
        assert {"config.yaml", "data.pt", "actor"} <= {path.name for path in saved.folder.iterdir()}
    assert json.loads((Path(run.config.run_dir) / "student" / "config.json").read_text()) == {"step": 4}


def test_verl_that_finds_no_checkpoint_where_there_is_one_does_not_train_from_the_start(make_run):
    run = make_run("trainer.save_freq=1").fit()
    (Path(run.config.trainer.default_local_dir) / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(RuntimeError, match="verl resumed after step 0, and the newest checkpoint is of 1"):
        make_run("trainer.save_freq=1")


@pytest.fixture
def stopping(tmp_path):
    """`stopping(place)`: the driver's side of a run that is at a place."""

    def at(place: str, timeout_s: float = 60) -> tuple[Noted, Stopping, list[str]]:
        said: list[str] = []
        console: Any = SimpleNamespace(place=place, stage=said.append)
        noted, config = Noted(), OmegaConf.create({"run_dir": str(tmp_path), "stop_timeout_s": timeout_s})
        return noted, Stopping(noted, config, console), said

    return at


def test_the_driver_asks_once_and_waits_for_what_was_saved(stopping, tmp_path):
    noted, driver, said = stopping("step 3: update")
    driver.look()
    assert requested_stop(tmp_path) is None
    noted.note(15, None)
    driver.look()
    driver.look()
    assert requested_stop(tmp_path) == ""
    (line,) = said
    assert line.startswith("SIGTERM: the last finished step is being saved, for at most 60 s (stop_timeout_s)")
    driver.ended(None)  # it was the last step
    with pytest.raises(Signalled) as stopped:
        driver.ended("step 3 is saved")
    assert (stopped.value.number, stopped.value.saved) == (15, "step 3 is saved")


@pytest.mark.parametrize(("place", "timeout_s"), [("agent loop is up", 60), ("step 3: update", 0)])
def test_the_driver_ends_a_run_that_has_nothing_to_save_or_takes_too_long(stopping, place, timeout_s):
    noted, driver, _ = stopping(place, timeout_s)
    driver.look()
    noted.note(1, None)
    with pytest.raises(Signalled) as stopped:
        driver.look()
    assert (stopped.value.number, stopped.value.saved) == (1, "")
