"""`verl-opd plan throughput RUN`, of runs as their own writers leave them."""

import re
import sys
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from recipe.__main__ import completions, main
from recipe.on_policy_distillation import VERB
from verl_ext.plan.step_times import engines_of, look
from verl_ext.run.files import save_resolved_config
from verl_ext.run.metrics import MetricsFile, mark_stage
from verl_ext.run.timeline import TimelineFile
from verl_ext.run.verb import words_of_files
from verl_ext.trainer.config import check_method
from verl_ext.trainer.pipeline_config import check_pipeline

GPU = ("platform=cuda", "hardware=h200_1x", "teacher=fp8", "actor_rollout_ref.rollout.n=4", "data.train_batch_size=8")
GROUPS = "defaults:\n- platform: cuda\n- hardware: h200_1x\n- teacher: fp8\n"


class Clock:
    """`time.time` of the process that writes the run."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.time", made)
    return made


class Writer:
    """A run's folder, step by step, as `AdaptedTrainer` writes it."""

    def __init__(self, folder: Path, clock: Clock, compose_run, *words: str, timeline: bool = True) -> None:
        self.folder, self.clock, self.compose_run, self.words = folder, clock, compose_run, words
        folder.mkdir()
        config = compose_run(*words, f"run_dir={folder}")
        save_resolved_config(OmegaConf.to_yaml(config, resolve=True), str(folder), GROUPS)
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.timeline = TimelineFile(folder / "timeline.jsonl") if timeline else None

    def start(self) -> None:
        self.clock.now += 100
        mark_stage(self.folder, "settings are checked")
        self.clock.now += 40

    def step(self, number: int, scale: float = 1.0, ahead: bool = False, **more: float) -> None:
        """10 s: 6 of answers, the student 5 of them and the teacher 2, 3 of training, 1 of sync.

        `ahead`: the answers were under way for the 4 s before, and the trainer waits 1 s.
        """
        begun, waits = self.clock.now, 1.0 if ahead else 6.0
        if self.timeline:
            first = begun + waits - 5 if ahead else begun
            last = begun + waits
            self.timeline.stage("samples and scores")
            self.clock.now = last
            self.timeline.samples([(first, last - scale)], [(last - 2 * scale, last)])
            self.timeline.stage("update")
            self.clock.now += 3 * scale
            self.timeline.stage("weight sync")
            self.clock.now += 1
            self.timeline.append(number)
        seconds = {"gen": waits * scale, "update_actor": 2.5 * scale, "adv": 0.5 * scale, "update_weights": 1.0, **more}
        row = {f"timing_s/{name}": value for name, value in seconds.items()}
        whole = sum(seconds.values()) - seconds.get("testing", 0.0)
        self.metrics.append(number, row | {"timing_s/step": whole, "teacher/seconds": 2.0, "teacher/busy_seconds": 5.0})


def typed(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["verl-opd", "plan", "throughput", *words])
    monkeypatch.setenv("COLUMNS", "80")
    main()
    return capsys.readouterr().out


def row_of(text: str, mode: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(f"{mode} "))


def test_a_run_that_took_turns(tmp_path, clock, compose_run, monkeypatch, capsys):
    run = Writer(tmp_path / "mine", clock, compose_run, *GPU)
    run.start()
    for number in range(1, 5):
        run.step(number, **({"save_checkpoint": 2.0, "testing": 4.0} if number == 4 else {}))
    text = typed(monkeypatch, capsys, str(run.folder), f"picture={tmp_path}/who.svg")
    assert "pipeline.mode=sync, 32 samples a step; medians of steps 2 to 4; 1 at the ends left out\n" in text
    assert row_of(text, "now") == ["now", "1", "1", "10", "3.2", "50", "20", "30", "student"]
    assert [step.whole for step in look(run.folder, ahead=0).steps] == [10, 10, 10]  # checkpoint and validation apart
    # max(6, 3) + 1, and with an endless queue max(5, 2, 3) + 1; two students are faster than the trainer.
    assert row_of(text, "one_step_off") == ["one_step_off", "1", "1", "7", "4.571", "1.43", "71", "29", "43", "student"]
    streams = [line.split() for line in text.splitlines() if line.startswith("stream ")]
    assert [line[1:5] for line in streams] == [["1", "1", "6", "5.333"], ["2", "1", "4", "8"]]
    assert "bound by the student: 60% of the step waits for samples and scores; the teacher: 2.5 of 4 requests" in text
    assert re.search(r"checkpoint \(1 of 3 steps\) +│ +\+2 ", text)
    assert re.search(r"validation \(1 of 3 steps\) +│ +\+4 ", text)
    assert "<svg" in (tmp_path / "who.svg").read_text()
    command = next(line for line in text.splitlines() if line.startswith("next: "))
    words = command.removeprefix("next: verl-opd train ").split()
    assert words[1:] == ["pipeline.mode=one_step_off", f"run_dir={run.folder}-one_step_off"]
    overrides = [*words_of_files(VERB, words[:1], words[1:]), *words[1:]]
    with VERB.composing():
        config = compose(VERB.name, overrides)
    assert check_pipeline(config, check_method(config)).ahead == 1


def test_a_run_one_step_off(tmp_path, clock, compose_run, monkeypatch, capsys):
    run = Writer(tmp_path / "off", clock, compose_run, *GPU, "pipeline.mode=one_step_off")
    run.start()
    for number in range(1, 6):
        run.step(number, ahead=True)
    text = typed(monkeypatch, capsys, f"run={run.folder}/")
    assert "pipeline.mode=one_step_off, 32 samples a step; medians of steps 2 to 4; 2 at the ends left out\n" in text
    # Of a step's 5 s the student is busy in all but the last 1 s of its answers, the teacher in 2 s.
    assert row_of(text, "now") == ["now", "1", "1", "5", "6.4", "80", "40", "60", "student"]
    assert "one_step_off  " not in text.split("now")[1]  # it is what runs
    assert "next: more devices for the student, until there are 2 students, 1 teachers" in text


def test_a_resumed_run_counts_from_its_last_start(tmp_path, clock, compose_run, monkeypatch, capsys):
    run = Writer(tmp_path / "resumed", clock, compose_run, *GPU)
    run.start()
    for number in range(1, 8):
        run.step(number, scale=3.0)
    run.start()
    for number in range(6, 9):  # 6 and 7 once more
        run.step(number)
    run.start()  # and this one ended before its first step
    text = typed(monkeypatch, capsys, str(run.folder))
    assert "medians of steps 7 to 8; 1 at the ends left out; 7 of earlier starts left out\n" in text
    assert row_of(text, "now")[3] == "10"


def test_one_step_alone_counts_and_is_said_to_warm_up(tmp_path, clock, compose_run, monkeypatch, capsys):
    run = Writer(tmp_path / "one", clock, compose_run, *GPU)
    run.start()
    run.step(1)
    text = typed(monkeypatch, capsys, str(run.folder))
    assert "; step 1; one step, which warmed up" in text
    assert row_of(text, "now")[3] == "10"


def test_a_run_without_a_timeline(tmp_path, clock, compose_run, monkeypatch, capsys):
    run = Writer(tmp_path / "old", clock, compose_run, *GPU, timeline=False)
    for _ in range(2):
        run.start()
    for number in range(1, 4):
        run.step(number)
    text = typed(monkeypatch, capsys, str(run.folder))
    assert (
        "no timeline.jsonl: the student counts as busy for as long as the trainer waits; the run was started 2" in text
    )
    assert row_of(text, "now") == ["now", "1", "1", "10", "3.2", "60", "20", "30", "student"]
    with pytest.raises(ValueError, match=f"{run.folder}: no timeline.jsonl in it.*pipeline.mode=sync"):
        look(run.folder, ahead=1)


def test_a_folder_that_is_no_run_with_steps(tmp_path, clock, compose_run, monkeypatch, capsys):
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            typed(monkeypatch, capsys, *words)
        return str(stopped.value)

    assert (
        refused(f"{tmp_path}/none")
        == f"error: {tmp_path}/none: no config.yaml in it; give the folder of a run (run_dir)"
    )
    run = Writer(tmp_path / "new", clock, compose_run, *GPU)
    assert "no metrics.jsonl in it; give the folder of a run (run_dir) that finished a step" in refused(str(run.folder))
    run.metrics.append(1, {"train/loss": 1.0})
    assert "metrics.jsonl: no timing_s/gen; give the folder of an on-policy run" in refused(str(run.folder))
    run.metrics.path.write_text('{"step": 1, "timi')
    assert "metrics.jsonl: no finished step" in refused(str(run.folder))
    (run.folder / "config.yaml").write_text("optim: {lr: 1}\n")
    assert "config.yaml is not of an on-policy run" in refused(str(run.folder))
    assert refused() == "error: run is not set: give run=..."
    assert "did you mean picture?" in refused(str(run.folder), "pict=x.svg")


def test_engines_are_those_of_the_configuration(compose_run):
    eight = ("hardware=h100_8x", "actor_rollout_ref.rollout.tensor_model_parallel_size=2", "trainer.n_gpus_per_node=6")
    found = engines_of(compose_run(*eight, "teacher.dp=2", "teacher.max_concurrency=7"), "sync", 0)
    assert (found.students, found.teachers, found.slots) == (3, 2, 7)
    words = ("teacher.mode=external", "teacher.urls=[http://a,http://b]", "teacher.max_concurrency=3")
    found = engines_of(compose_run(*words), "sync", 0)
    assert (found.teachers, found.slots) == (2, 6)
    words = ("+teachers.a.dp=3", "+teachers.b.max_concurrency=5")
    found = engines_of(compose_run(*words), "sync", 0)
    assert (found.teachers, found.slots) == (4, 9)


def test_its_words_complete():
    assert completions("verl-opd plan throughput pic") == ["picture="]
    assert completions("verl-opd plan memory trainer.nn") == ["trainer.nnodes="]
