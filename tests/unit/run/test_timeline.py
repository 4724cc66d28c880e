"""When student, teacher and trainer were busy."""

import pytest

from verl_ext.run.timeline import TimelineFile, lanes, length, read_timeline, union


def test_overlapping_times_count_once():
    spans = union([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (3.0, 4.0)])
    assert spans == [(0.0, 4.0), (5.0, 6.0)]
    assert length(spans) == 5.0


def test_a_step_is_written_with_its_stages_and_where_its_samples_were(tmp_path, monkeypatch):
    clock = iter([10.0, 11.0, 13.0, 14.0, 15.0, 19.0, 20.0, 21.0])
    monkeypatch.setattr("time.time", lambda: next(clock))
    file = TimelineFile(tmp_path / "timeline.jsonl")
    for stage in ("prompts", "samples and scores", "update", "weight sync", "validation"):
        file.stage(stage)
    file.samples([(1.0, 2.0), (1.5, 3.0)], [(2.0, 4.0), (3.0, 3.5)])
    file.append(1)
    file.stage("prompts")
    file.append(2)
    with file.path.open("a") as half:
        half.write('{"step": 3, "st')
    steps = read_timeline(file.path)
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[0]["student"] == [[1.0, 3.0]]
    assert steps[0]["teacher"] == [[2.0, 4.0]]
    assert (steps[1]["student"], steps[1]["stages"]) == ([], [["prompts", 20.0], ["end", 21.0]])
    found = lanes(steps)
    assert found["trainer"] == [
        (10.0, 11.0),
        (13.0, 14.0),
        (20.0, 21.0),
    ]  # less its waits, for samples and held-out answers
    assert found["weight sync"] == [(14.0, 15.0)]
    assert length(found["student"]) == pytest.approx(2.0)
