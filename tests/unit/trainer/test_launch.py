"""The driver around a run: it waits, shows, gives up and says why. Ray and the engines are played."""

import contextlib
import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from ray.exceptions import OutOfMemoryError
from saved_checkpoints import save

from verl_ext.platform.warm_workers import warm_workers
from verl_ext.run import watchdog
from verl_ext.run.metrics import MetricsFile, write_place
from verl_ext.run.stop_request import requested_stop
from verl_ext.run.watchdog import Look, Member
from verl_ext.trainer import following
from verl_ext.trainer import launch as driver
from verl_ext.trainer.failures import note_failure

TEACHER, TRAINING = "teacher is ready", "training has ended"
ROW = {"teacher_kl": 1.0, "critic/rewards/mean": 0.5, "timing_s/step": 1.0, "training/total_steps": 1}


class Cluster:
    """Each look (`ray.wait`) runs one of `looks` and ends what it returns."""

    def __init__(self, *looks: Any) -> None:
        self.looks = list(looks)
        self.given: Any = None
        self.waited_for: list[str] = []
        self.addresses = ["127.0.0.1"]
        self.saved: str | None = None
        """What the trainer says when it was stopped."""
        self.processes: list[Look] = []
        """What is seen of the run's processes, look by look; the last one stays."""
        self.stacks: list[Path] = []

    def look(self, own_ray: bool) -> Look:
        assert own_ray
        return self.processes.pop(0) if len(self.processes) > 1 else self.processes[0]

    def start_training(self, config: Any, before: list[str]) -> str:
        self.given, self.waited_for = config, before
        return TRAINING

    def wait(self, pending: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert (num_returns, timeout) == (1, 0.5)
        done = self.looks.pop(0)()
        return [each for each in pending if each == done], [each for each in pending if each != done]

    def get(self, reference: Any) -> str | None:
        if isinstance(reference, Exception):
            raise reference
        return self.saved if reference == TRAINING else "http://127.0.0.1:9"

    def session(self, ray_init: dict, _: Path, workers: Any) -> contextlib.AbstractContextManager:
        assert ray_init["kept"]
        assert workers is warm_workers  # its address is a Ray of the run's own
        return contextlib.nullcontext()

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeManagerAddress": address, "Alive": True} for address in self.addresses]


@pytest.fixture
def run(monkeypatch, tmp_path: Path, compose_run):
    """`run(cluster, ...)`: launch with a teacher that is started, and a cluster that does what `cluster` says."""

    def go(cluster: Cluster, *overrides: str) -> None:
        config = compose_run("platform=cpu", f"run_dir={tmp_path}", *overrides)
        OmegaConf.save(config, tmp_path / "config.yaml")
        workers = OmegaConf.create({"for": "workers", "ours": "${same:1,1}"})
        trainer = SimpleNamespace(run=SimpleNamespace(remote=cluster.start_training))
        actor = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: trainer))
        monkeypatch.setattr(driver, "here", lambda: None)
        monkeypatch.setattr(driver, "keep_to_loopback", lambda ray_init: ray_init | {"kept": True})
        monkeypatch.setattr(driver, "ray_session", cluster.session)
        monkeypatch.setattr(driver.ray, "nodes", cluster.nodes)
        monkeypatch.setattr(driver, "start_teachers", lambda _: ({TEACHER: ("default", object())}, workers))
        monkeypatch.setattr(driver, "as_actor", lambda _: actor)
        monkeypatch.setattr(driver.ray, "wait", cluster.wait)
        monkeypatch.setattr(driver, "look_at_run", cluster.look)
        monkeypatch.setattr(watchdog, "LOOK_S", 0.01 if cluster.processes else 60.0)
        monkeypatch.setattr(watchdog, "GRACE_S", 0.0)
        monkeypatch.setattr(following, "ANSWER_S", 0.3)
        monkeypatch.setattr(following, "dump_stacks", lambda _, folder: cluster.stacks.append(folder))
        monkeypatch.setattr(driver.ray, "get", cluster.get)
        driver.launch(config, time.perf_counter())
        # A worker knows no resolver of ours.
        assert OmegaConf.to_container(cluster.given, resolve=False) == {"for": "workers", "ours": True}

    return go


def test_it_waits_for_the_training_and_shows_steps_and_teacher(run, tmp_path, capsys):
    step = partial(MetricsFile(tmp_path / "metrics.jsonl").append, 1, ROW)
    cluster = Cluster(lambda: TEACHER, step, lambda: TRAINING)
    run(cluster)
    assert (cluster.looks, cluster.waited_for) == ([], [])
    shown = capsys.readouterr().out
    assert "the teacher default answers log-prob requests at" in shown
    assert "step 1/1  teacher_kl +1.0000" in shown
    assert "1 steps in" in shown
    stages = (tmp_path / "stages.jsonl").read_text()
    assert stages.index("Ray is up") < stages.index("teacher answers")


def test_a_run_that_stands_still_is_given_up_with_the_place_where_it_stands(run, tmp_path):
    place = partial(write_place, tmp_path, "step 3: samples and scores")
    cluster = Cluster(place, *[lambda: time.sleep(0.1)] * 4)  # the trainer does not answer either
    with pytest.raises(SystemExit) as ended:
        run(cluster, "stall_timeout_s=0")
    assert cluster.stacks == [tmp_path / "stacks"]
    (line,) = str(ended.value).splitlines()
    stood = "no step ended for stall_timeout_s=0 seconds; the run is at step 3: samples and scores"
    assert f"{stood}; the trainer did not answer" in line
    assert line.endswith("no checkpoint to resume from: the same command starts over")
    assert "TimeoutError" in Path(line.split("traceback: ")[1].split(", every")[0]).read_text()


CONTROLLER = Member("TransferQueueController", 7, "actor 1")


def test_a_process_that_ended_is_named_and_the_trainer_saves(run, tmp_path, capsys):
    """It answers the request with what it saved, in the words of its own error."""
    there, gone = (
        Look(frozenset({CONTROLLER}), frozenset(), frozenset()),
        Look(frozenset(), frozenset({CONTROLLER}), frozenset()),
    )

    def asked() -> Any:
        reason = requested_stop(tmp_path)
        return TRAINING if reason else time.sleep(0.05)

    def answered(_: Any) -> None:
        raise RuntimeError(f"{requested_stop(tmp_path)}; step 4 is saved")

    cluster = Cluster(*[asked] * 20)
    cluster.processes = [there, gone]
    cluster.get = answered
    with pytest.raises(
        SystemExit, match=r"^error: the run failed: TransferQueue's controller .* step 4 is saved; trace"
    ):
        run(cluster)
    assert "TransferQueue's controller (TransferQueueController, process 7) has ended" in capsys.readouterr().out
    assert cluster.stacks == [tmp_path / "stacks"]


def test_without_the_queue_a_pipeline_saves_nothing_and_waits_for_nothing(run, tmp_path):
    """Its checkpoint holds the queue, which the trainer would ask for minutes."""
    cluster = Cluster(*[lambda: time.sleep(0.05)] * 20)
    cluster.processes = [
        Look(frozenset({CONTROLLER}), frozenset(), frozenset()),
        Look(frozenset(), frozenset({CONTROLLER}), frozenset()),
    ]
    message = r"TransferQueue's controller .*; it holds prompts that a checkpoint has to have, so none was saved; trace"
    with pytest.raises(SystemExit, match=message):
        run(cluster, "pipeline.mode=one_step_off")
    assert requested_stop(tmp_path) is None
    assert cluster.stacks == [tmp_path / "stacks"]


def test_a_row_that_fails_is_named_once(run, tmp_path, capsys):
    def fails() -> None:
        row = {"index": 3, "session_id": 0, "extra_info": {"place": "rows.jsonl:4"}}
        note_failure(str(tmp_path), row, step=1, validate=False, error=ValueError("the template refuses it"))

    run(Cluster(fails, fails, lambda: TRAINING))
    shown = capsys.readouterr().out
    assert shown.count("rows.jsonl:4 failed and is not trained on: ValueError: the template refuses it") == 1


def test_a_node_without_memory_is_named_in_one_line(run):
    def killed() -> None:
        told = "4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1)"
        raise OutOfMemoryError(
            f"{told} was 22.25GB used / 23.54GB limit (0.945172)\n\nRefer to the documentation on how"
        )

    with pytest.raises(SystemExit, match=r"^error: the run failed: out of memory: 22.25GB of 23.54GB .* model; trace"):
        run(Cluster(killed))


def test_a_run_folder_that_was_deleted_is_named(run, tmp_path):
    def deleted() -> None:
        (tmp_path / "config.yaml").unlink()
        raise OSError("No such file or directory: tensorboard/events.out")

    with pytest.raises(SystemExit, match=rf"^error: run_dir={tmp_path} was deleted or moved while the run wrote"):
        run(Cluster(lambda: TEACHER, deleted))


def test_ctrl_c_before_there_is_a_step_to_save_says_how_to_go_on(run, tmp_path, capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    def stopped(*overrides: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run(Cluster(interrupt), *overrides)
        assert ended.value.code == 130
        return capsys.readouterr().err

    assert stopped() == "stopped by SIGINT: no checkpoint to resume from: the same command starts over\n"
    save(tmp_path / "checkpoints", 7)
    assert stopped() == "stopped by SIGINT: the same command resumes after step 7\n"
    assert stopped("trainer.resume_mode=disable").endswith("the same command starts over\n")


def test_a_signal_waits_for_the_trainer_to_save_its_step(run, tmp_path, capsys):
    """A real signal to this process; the trainer, played, ends when it finds that it is asked to."""

    def signalled() -> None:
        write_place(tmp_path, "step 3: update")
        os.kill(os.getpid(), signal.SIGTERM)

    def asked() -> str:
        assert requested_stop(tmp_path) == ""
        return TRAINING

    cluster = Cluster(lambda: write_place(tmp_path, "step 3: update"), signalled, lambda: TEACHER, asked)
    cluster.saved = "step 2 is saved; the same command resumes after it"
    with pytest.raises(SystemExit) as ended:
        run(cluster)
    assert ended.value.code == 128 + 15
    shown = capsys.readouterr()
    assert "SIGTERM: the last finished step is being saved, for at most 30 s (stop_timeout_s)" in shown.out
    assert shown.err == "stopped by SIGTERM: step 2 is saved; the same command resumes after it\n"
    assert requested_stop(tmp_path) is None
    assert json.loads((tmp_path / "stages.jsonl").read_text().splitlines()[-1])["stage"] == "stopped by SIGTERM"


def test_a_trainer_waits_for_the_teacher_on_its_device_while_the_run_is_followed(run, capsys):
    cluster = Cluster(lambda: TEACHER, lambda: TRAINING)
    run(cluster, "platform=cuda", "teacher.share_device=true")
    assert cluster.waited_for == [TEACHER]
    assert "the teacher default answers log-prob requests at" in capsys.readouterr().out


def test_a_cluster_that_other_machines_reach_is_warned_about(run, capsys):
    cluster = Cluster(lambda: TRAINING)
    cluster.addresses.append("10.0.0.7")
    run(cluster)
    assert "warning: the run listens on 10.0.0.7" in capsys.readouterr().out.replace("\n", " ")
