from verl_ext.run.metrics import MetricsFile, read_metrics


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
