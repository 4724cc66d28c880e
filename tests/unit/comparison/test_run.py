"""A comparison with real processes that stand in for the verbs: order, failure, kill, going on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from verl_ext.comparison import students
from verl_ext.comparison.config import CompareConfig, TaskConfig
from verl_ext.comparison.curve import read_curve
from verl_ext.comparison.record import Record, read_comparison
from verl_ext.comparison.run import compare

WORDS = """
import json, pathlib, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
def note(text):
    with open("calls", "a") as file:
        file.write(text + "\\n")
"""
VERBS = {
    "create_data": """
note("labels" if "teacher" in words else "rows")
if pathlib.Path("no_labels").exists() and "teacher" in words:
    sys.exit("error: the teacher says nothing")
""",
    "evaluate": """
note("headroom")
out = pathlib.Path(words["out"])
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(json.dumps({"base": {"accuracy": 0.2, "rows": 50}, "teacher": {"accuracy": 0.9, "rows": 50}}))
""",
    "sft": """
run = pathlib.Path(words["run_dir"])
note(f"sft {run.name} seed {words['sft.seed']}")
(run / "student").mkdir(parents=True, exist_ok=True)
""",
    "on_policy_distillation": """
run = pathlib.Path(words["run_dir"])
note(f"on_policy {run.name} seed {words['data.seed']} of {words['student.path']}")
(run / "student").mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text(json.dumps({
    "data": {"train_batch_size": 8}, "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 4, "ppo_epochs": 1}}}))
if "method.control" in words:
    print("something else")
    sys.exit("error: this control is broken")
with open(run / "metrics.jsonl", "a") as file:
    for step in (1, 2):
        file.write(json.dumps({"step": step, "teacher/scored": 30, "teacher/unscored": 2,
                               "val-core/x/reward/mean@1": 0.4 * step}) + "\\n")
if pathlib.Path("hold").exists():
    pathlib.Path("held").touch()
    time.sleep(60)
""",
}
ARMS: dict[str, Any] = {
    "on_policy": {"kind": "on_policy", "seeds": [3]},
    "broken": {"kind": "control", "overrides": ["method.control=shuffled_teacher"]},
    "sft": {"kind": "sft", "overrides": ["preset=tinker"], "seeds": [0, 1]},
    "both": {"kind": "sft_then_on_policy", "sft_overrides": ["preset=seed"]},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-ins, in which commands are started."""
    (tmp_path / "standins").mkdir()
    (tmp_path / "standins" / "__init__.py").touch()
    for verb, text in VERBS.items():
        (tmp_path / "standins" / f"{verb}.py").write_text(WORDS + text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(students, "evaluate_students", lambda *_: {})  # vLLM's part; tests/integration has it
    return tmp_path


def config(**changes: Any) -> CompareConfig:
    task = TaskConfig(
        name="made up",
        question="?",
        data="data",
        base="base",
        teacher="base",
        rows=["max_chars=9"],
        labels=["labels.extract=whole"],
        serve=["teacher.mode=external", "teacher.urls=[http://127.0.0.1:1]"],
    )
    return CompareConfig(**{"out": "out", "task": task, "arms": ARMS} | changes)


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


def statuses() -> dict[str, str]:
    return {arm["run"]: arm["status"] for arm in read_comparison(Path("out"))["arms"]}


def test_every_arm_is_run_and_one_that_fails_does_not_lose_the_others(place):
    failed = compare(config(), "standins")
    assert calls(place) == [
        *("rows", "headroom", "labels", "sft sft-seed0 seed 0", "sft sft-seed1 seed 1"),
        *("on_policy on_policy-seed3 seed 3 of base", "on_policy broken-seed0 seed 0 of base"),
        *("sft sft seed 0", "on_policy both-seed0 seed 0 of out/both-seed0/sft/student"),
    ]
    done = dict.fromkeys(("on_policy-seed3", "sft-seed0", "sft-seed1", "both-seed0"), "done")
    assert statuses() == done | {"broken-seed0": "failed"}
    log = Path("out/broken-seed0/command.log")
    assert failed == [f"broken-seed0 failed: this control is broken (status 1; output: {log})"]
    assert len(Record(config()).unevaluated) == 4
    found = read_comparison(Path("out"))
    assert found["headroom"] == {"base": 0.2, "teacher": 0.9, "rows": 50}
    assert not any("teacher.urls" in command for command in found["commands"])  # of a server that is gone
    points = read_curve(Path("out/on_policy-seed3"))
    places = [(point.step, point.samples, point.updates, point.accuracy) for point in points]
    assert places == [(0, 0, 0, 0.2), (1, 32, 2, 0.4), (2, 64, 4, 0.8)]


def test_the_same_command_runs_what_failed_and_nothing_else(place):
    compare(config(), "standins")
    before = len(calls(place))
    compare(config(), "standins")
    assert calls(place)[before:] == ["rows", "on_policy broken-seed0 seed 0 of base"]
    compare(config(arms=ARMS | {"new": {"kind": "on_policy"}}, only=["new"]), "standins")
    assert calls(place)[-1] == "on_policy new-seed0 seed 0 of base"
    assert statuses()["sft-seed1"] == "done"  # kept beside what is asked for


def test_without_labels_the_arms_without_sft_go_on(place):
    (place / "no_labels").touch()
    compare(config(), "standins")
    assert {run for run, status in statuses().items() if status == "done"} == {"on_policy-seed3"}
    errors = {arm["run"]: arm["error"] for arm in read_comparison(Path("out"))["arms"]}
    assert "the teacher says nothing" in errors["sft-seed0"]


def test_without_headroom_nothing_is_trained(place):
    with pytest.raises(ValueError, match=r"no headroom: base 0\.200 .*, less than least_headroom=0\.8"):
        compare(config(least_headroom=0.8), "standins")
    assert calls(place) == ["rows", "headroom"]


@pytest.mark.usefixtures("place")
def test_another_task_and_other_overrides_are_refused():
    compare(config(only=["on_policy"]), "standins")
    changed = ARMS | {"on_policy": {"kind": "on_policy", "seeds": [3], "overrides": ["method.discount=0.9"]}}
    with pytest.raises(ValueError, match="out/on_policy-seed3 was begun as on_policy with"):
        compare(config(arms=changed), "standins")
    other = dataclasses.replace(config().task, name="another")
    with pytest.raises(ValueError, match="out=out holds the comparison of the task made up"):
        compare(config(task=other), "standins")


def test_sft_without_a_word_on_its_labels_is_refused():
    task = dataclasses.replace(config().task, labels=[])
    with pytest.raises(ValueError, match=r"arms\.sft is trained on the teacher's labels, and task\.labels"):
        config(task=task)
    assert config(task=task, only=["on_policy"]).chosen


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_comparison_leaves_no_process_and_goes_on(place, how):
    """`kill -9` of the command, and the same command again; SIGTERM as Ctrl-C."""
    (place / "hold").touch()
    script = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "sys.path.insert(0, sys.argv[1]); import test_run; from verl_ext.comparison.run import compare\n"
        "compare(test_run.config(), 'standins')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(place)])}
    with subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent)], env=environment) as process:
        while not (place / "held").exists():
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
    assert len(children) == 1
    assert psutil.wait_procs(children, 10)[1] == []
    assert statuses()["sft-seed1"] == "done"
    (place / "hold").unlink()
    before = len(calls(place))
    compare(config(), "standins")
    assert calls(place)[before:][:3] == ["rows", "labels", "on_policy on_policy-seed3 seed 3 of base"]
    assert statuses()["on_policy-seed3"] == "done"


def test_the_record_is_json_that_others_read(place):
    compare(config(only=["sft"]), "standins")
    found = json.loads((place / "out" / "comparison.json").read_text())
    assert set(found) == {"schema", "task", "question", "target_share", "headroom", "commands", "arms"}
    assert set(found["arms"][0]) == {"arm", "kind", "seed", "run", "status", "overrides", "error"}
