"""Who is gone, and what does not wait for them; the real processes are killed in tests/integration/test_pipeline.py."""

import threading
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from verl_ext.trainer.presence import Presence

GONE = "vLLM server 0 is gone: its engine ended"
SAID = rf"{GONE} \(0 at the student.*\); step . is saved; the same command resumes after it"


class Told(Presence):
    """Of nobody; says what it is told to."""

    def __init__(self) -> None:
        super().__init__({})
        self.gone = ""

    def lost(self, within_s: float = 0.0) -> str:
        del within_s
        return self.gone


def failing() -> None:
    raise RayTaskError("sync", "no such tensor", ValueError("no such tensor"))


def test_work_is_done_and_its_errors_are_raised():
    done = []
    assert Told().call(lambda: done.append(1)) == ""
    assert done == [1]
    with pytest.raises(RayTaskError, match="no such tensor"):
        Told().call(failing)


def test_work_with_those_who_are_gone_is_left_and_its_error_is_theirs(monkeypatch):
    monkeypatch.setattr("verl_ext.trainer.presence.NOTICED_S", 0.0)
    presence, begun = Told(), threading.Event()

    def hangs() -> None:
        begun.set()
        presence.gone = GONE
        threading.Event().wait(60)

    assert presence.call(hangs) == GONE
    assert begun.is_set()
    assert presence.call(failing) == GONE


def test_a_run_whose_sampler_is_gone_keeps_what_it_finished_and_syncs_nothing_more(make_run):
    """It goes while the second step is trained: that step is finished, and the third has nobody to wait for."""
    run = make_run("trainer.total_training_steps=4", "trainer.save_freq=100")
    presence, generate, update = Told(), run.generate_sequences, run.actor.update_actor
    run.trainer._presence = presence

    def update_and_lose(batch):
        if len(run.actor.updates) == 1:
            presence.gone = GONE
        return update(batch)

    run.actor.update_actor = update_and_lose
    run.generate_sequences = lambda batch: None if presence.gone else generate(batch)
    with pytest.raises(RuntimeError, match=SAID):
        run.fit()
    assert (len(run.actor.updates), run.actor.saved, len(run.metrics)) == (2, [2], 2)
    assert run.sync.steps == [0, 1]


def test_a_step_whose_validation_has_no_sampler_is_finished(make_run):
    run = make_run("trainer.total_training_steps=3", "trainer.save_freq=100", "trainer.test_freq=1")
    presence, generate = Told(), run.generate_sequences
    run.trainer._presence = presence

    def lose_at_validation(batch):
        if "validate" in batch:
            presence.gone = GONE
        elif not presence.gone:
            generate(batch)

    run.generate_sequences = lose_at_validation
    with pytest.raises(RuntimeError, match=SAID):
        run.fit()
    assert (run.actor.saved, [row["step"] for row in run.metrics]) == ([1], [1])
    stages = (Path(run.config.run_dir) / "stages.jsonl").read_text()
    assert f"{GONE}: step 1 is not validated" in stages
