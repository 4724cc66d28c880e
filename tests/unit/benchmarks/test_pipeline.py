"""The pipeline benchmark's arithmetic and picture, on a made-up timeline."""

import pytest

from benchmarks import pipeline


def step(number: int, start: float, *, waited: float, update: float = 1.0) -> dict:
    stages = [["prompts", start], ["samples and scores", start], ["update", start + waited]]
    end = start + waited + update
    return {"step": number, "stages": [*stages, ["end", end]], "student": [[start, start + waited]], "teacher": []}


def test_waiting_and_idle_shares_are_of_the_steps_after_the_warm_up():
    steps = [step(1, 0.0, waited=9.0), step(2, 10.0, waited=9.0), step(3, 20.0, waited=1.0), step(4, 22.0, waited=1.0)]
    found = pipeline.measured(steps)
    assert found["seconds_a_step"] == 2.0
    assert found["samples_per_s"] == 64
    assert found["trainer_waits"] == found["trainer_idle"] == 0.5
    assert (found["student_idle"], found["teacher_idle"]) == (0.5, 1.0)


def test_overlap_is_compared_with_the_same_runs_synchronous_mode():
    rows = [
        {"mode": "sync", "seconds_a_step": 2.0, "trainer_waits": 0.5},
        {"mode": "one_step_off", "seconds_a_step": 1.5, "trainer_waits": 0.02},
    ]
    assert pipeline.bars(rows) == [("one_step_off_over_sync", 0.75, 1.0), ("one_step_off_trainer_waits", 0.02, 0.1)]
    assert pipeline.bars(rows[1:]) == []
    medians = pipeline.summary("sync", [{"seconds_a_step": value} for value in (1.0, 9.0, 2.0)])
    assert medians == {"mode": "sync", "seconds_a_step": 2.0}


def test_every_mode_has_a_panel(tmp_path):
    steps = [step(number, 2.0 * number, waited=1.0) for number in range(5)]
    pipeline.draw({"sync": steps, "stream": steps}, tmp_path / "pipeline.svg")
    assert (tmp_path / "pipeline.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize("words", [["--modes", "off"], ["--steps", "2"]])
def test_what_cannot_be_measured_is_refused(monkeypatch, words):
    monkeypatch.setattr("sys.argv", ["pipeline", *words])
    with pytest.raises(SystemExit):
        pipeline.parse()
