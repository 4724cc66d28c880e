"""Curves: what counts as a point, a sample and an update; arms and tasks as they are declared."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from verl_ext.comparison.config import ArmConfig, CompareConfig
from verl_ext.comparison.curve import Point, on_policy_points, read_curve, samples_to, sft_point, write_curve
from verl_ext.comparison.process import last_line
from verl_ext.comparison.students import tensors_of


def write_run(folder: Path, rows: list[dict]) -> Path:
    config = {
        "data": {"train_batch_size": 8},
        "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 4, "ppo_epochs": 2}},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')
    return folder


def test_points_of_an_on_policy_run(tmp_path):
    """Unvalidated steps count their samples; a row that a resumed run wrote again counts once; 4 updates a step."""
    step = {"teacher/scored": 30.0, "teacher/unscored": 2.0}
    key = "val-core/math/reward/mean@1"
    rows = [{"step": 0, key: 0.1}, {"step": 1} | step, {"step": 2, key: 0.3} | step, {"step": 2, key: 0.4} | step]
    assert on_policy_points(write_run(tmp_path, rows), 50) == [Point(2, 64, 8, 0.4, 50)]
    assert on_policy_points(tmp_path / "none", 50) == []


def test_points_go_to_a_file_and_come_back(tmp_path):
    (tmp_path / "config.yaml").write_text('{"data": {"train_batch_size": 128}}')
    points = [Point(0, 0, 0, 0.1, 50), sft_point(tmp_path, 4, 0.7, 50)]
    write_curve(tmp_path, points)
    assert points[1] == Point(4, 512, 4, 0.7, 50)
    with (tmp_path / "accuracy.jsonl").open("a") as file:
        file.write('{"schema": 1, "st')  # as a killed writer of another version leaves it
    assert read_curve(tmp_path) == points
    assert json.loads((tmp_path / "accuracy.jsonl").read_text().splitlines()[0])["schema"] == 1
    assert (samples_to(points, 0.7), samples_to(points, 0.71)) == (512, None)
    assert Point(2, 64, 4, 0.9, 50).after(points[1]) == Point(6, 576, 8, 0.9, 50)


def test_students_with_the_same_tensors_share_an_engine(tmp_path):
    """A tied head is no tensor of its own; the values do not matter."""
    for name, tensors in {
        "base": {"a": torch.zeros(2, 3)},
        "tuned": {"a": torch.ones(2, 3)},
        "untied": {"a": torch.zeros(2, 3), "lm_head": torch.zeros(2, 3)},
        "wider": {"a": torch.zeros(2, 4)},
    }.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    base, tuned, untied, wider = (tensors_of(tmp_path / each) for each in ("base", "tuned", "untied", "wider"))
    assert base == tuned
    assert len({base, untied, wider}) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no safetensors"):
        tensors_of(tmp_path / "empty")


def test_the_last_error_of_a_log_is_told(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: of an earlier call\n")
    begun = log.stat().st_size
    with log.open("a") as file:
        file.write("\nerror: this one\nTeardown\n\n")
    assert last_line(log, begun) == "this one"
    assert last_line(log, log.stat().st_size) == "no output"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "dpo"}, r"arms\.mine: kind=dpo must be one of"),
        ({"seeds": [1, 1]}, r"arms\.mine: seeds=\[1, 1\] must be different"),
        ({"sft_overrides": ["preset=seed"]}, r"arms\.mine: sft_overrides go with kind=sft_then_on_policy"),
        ({"kind": "control"}, r"arms\.mine: a control needs method\.control"),
        ({"kidn": "sft"}, r"arms\.mine: .*kidn"),
    ],
)
def test_an_arm_that_is_none_is_named(fields, says):
    with pytest.raises(ValueError, match=says):
        CompareConfig(out="out", arms={"mine": fields})


def test_only_names_arms_that_are_there():
    with pytest.raises(ValueError, match="only=of_policy: no such arm; there are on_policy"):
        CompareConfig(out="out", arms={"on_policy": {}}, only=["of_policy"])
    assert CompareConfig(out="out", arms={"a": {}, "b": {}}, only=["b"]).chosen == {"b": ArmConfig()}
