import json

from verl_ext.run.metrics import MetricsFile, MetricsTail, reach_stage, read_metrics, read_place, write_place


def test_rows_come_back_in_step_order_and_a_repeated_step_is_replaced(tmp_path):
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    file.append(1, {"teacher_kl": 2.0, "note": "left out"})
    file.append(2, {"teacher_kl": 1.5})
    file.append(2, {"teacher_kl": 1.0})  # a resumed run does step 2 again
    assert read_metrics(file.path) == [{"step": 1, "teacher_kl": 2.0}, {"step": 2, "teacher_kl": 1.0}]


def test_a_row_cut_off_by_a_crash_is_dropped(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {"teacher_kl": 2.0})
    with file.path.open("a") as stream:
        stream.write('{"step": 2, "teach')
    assert [row["step"] for row in read_metrics(file.path)] == [1]


def test_the_row_after_a_cut_off_one_is_whole(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {"teacher_kl": 2.0})
    with file.path.open("a") as stream:
        stream.write('{"step": 2, "teach')
    MetricsFile(file.path).append(2, {"teacher_kl": 1.0})
    assert read_metrics(file.path) == [{"step": 1, "teacher_kl": 2.0}, {"step": 2, "teacher_kl": 1.0}]


def test_a_tail_reads_each_new_row_once_and_half_a_row_when_it_is_whole(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {})
    tail = MetricsTail(file.path)
    assert tail.new_rows() == []  # of an earlier run
    file.append(2, {"teacher_kl": 1.0})
    with file.path.open("a") as stream:
        stream.write('{"step": 3,')
        stream.flush()
        assert tail.new_rows() == [{"step": 2, "teacher_kl": 1.0}]
        assert tail.new_rows() == []
        stream.write(' "teacher_kl": 0.5}\n')
    assert tail.new_rows() == [{"step": 3, "teacher_kl": 0.5}]


def test_a_look_at_a_long_file_reads_the_new_rows_only(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(1000):
        file.append(step, {"teacher_kl": 1.0})
    tail = MetricsTail(file.path)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    file.append(1000, {"teacher_kl": 0.5})
    assert [row["step"] for row in tail.new_rows()] == [1000]
    assert tail.new_rows() == []
    assert len(parsed) == 1


def test_a_tail_waits_for_a_file_that_is_not_there_yet(tmp_path):
    tail = MetricsTail(tmp_path / "metrics.jsonl")
    assert tail.new_rows() == []
    MetricsFile(tail.path).append(1, {})
    assert tail.new_rows() == [{"step": 1}]


def test_where_the_run_is_is_the_last_place_that_was_written(tmp_path):
    assert read_place(tmp_path) == ""
    reach_stage(tmp_path, "data is loaded")
    assert read_place(tmp_path) == "data is loaded"
    write_place(tmp_path, "step 1: update")
    assert read_place(tmp_path) == "step 1: update"
    assert json.loads((tmp_path / "stages.jsonl").read_text())["stage"] == "data is loaded"
