"""What a person reads while a run trains, from the files that the trainer's process writes."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from verl_ext.run.console import RunConsole, SftConsole
from verl_ext.run.metrics import MetricsFile, write_place


class Clock:
    """In place of `time.perf_counter`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def row(teacher_kl: float, **more: float) -> dict[str, float]:
    return {
        "teacher_kl": teacher_kl,
        "critic/rewards/mean": 0.25,
        "timing_s/step": 2.0,
        "training/total_steps": 3,
        "response_length/mean": 7.0,
        **more,
    }


def test_a_log_file_is_never_silent_for_long(tmp_path: Path, clock: Clock, capsys):
    with RunConsole(tmp_path, clock.now) as console:
        write_place(tmp_path, "loading weights")
        console.update()
        for _ in range(25):
            clock.now += 1
            console.update()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"[  {at} s] {text}"
        for at, text in ((" 0.0", "loading weights"), ("11.0", "... loading weights"), ("22.0", "... loading weights"))
    ]


def test_how_long_the_rest_takes_is_the_median_of_the_last_steps(tmp_path: Path, clock: Clock, capsys):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    with RunConsole(tmp_path, clock.now) as console:
        for step, seconds in enumerate((90.0, 2.0, 50.0, 3.0), 1):
            metrics.append(step, row(1.0, **{"timing_s/step": seconds, "training/total_steps": 30}))
        console.update()
    left = [
        line.rpartition("  ")[2] for line in capsys.readouterr().out.splitlines() if "step " in line and "/30" in line
    ]
    assert left == ["90.0 s", "~0:00:56 left", "~0:22:30 left", "~0:01:18 left"]


def save_student(run_dir: Path, step: int) -> None:
    """As `LinkStudent` leaves it."""
    folder = run_dir / "checkpoints" / f"global_step_{step}" / "actor" / "huggingface"
    folder.mkdir(parents=True)
    (run_dir / "student").symlink_to(folder.relative_to(run_dir))


def test_every_step_is_a_line_in_a_log_file_and_is_printed_once(tmp_path: Path, clock: Clock, capsys):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    with RunConsole(tmp_path, clock.now) as console:
        clock.now += 1.5
        console.stage("Ray is up")
        console.update()  # nothing yet
        clock.now += 10
        metrics.append(1, row(2.0))
        console.update()
        console.update()
        clock.now += 2
        metrics.append(2, row(-0.5))
        metrics.append(3, row(0.125, **{"timing_s/step": 1.25}))
        console.update()
    assert capsys.readouterr().out.splitlines() == [
        "[   1.5 s] Ray is up",
        "[  11.5 s] the first step is done",
        "[  11.5 s] step 1/3  teacher_kl +2.0000  reward 0.250  2.0 s",
        "[  13.5 s] step 2/3  teacher_kl -0.5000  reward 0.250  2.0 s  ~0:00:02 left",
        "[  13.5 s] step 3/3  teacher_kl +0.1250  reward 0.250  1.2 s",
    ]


def test_the_stall_clock_starts_at_launch_and_anew_with_every_step(tmp_path: Path, clock: Clock):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    console = RunConsole(tmp_path, clock.now)
    clock.now += 30
    console.update()
    assert console.seconds_since_progress() == 30
    metrics.append(1, row(1.0))
    console.update()
    assert console.seconds_since_progress() == 0
    clock.now += 7
    console.update()
    assert console.seconds_since_progress() == 7


def test_a_resumed_run_counts_from_where_it_was_and_steps_that_it_repeats_are_progress(
    tmp_path: Path, clock: Clock, capsys
):
    """Its last checkpoint was of step 1; the interrupted run had gone on to step 2."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append(1, row(9.0))
    metrics.append(2, row(8.0))
    console = RunConsole(tmp_path, clock.now)
    console.update()
    assert capsys.readouterr().out == ""
    clock.now += 60
    metrics.append(2, row(1.0))
    console.update()
    assert console.seconds_since_progress() == 0
    metrics.append(3, row(0.5))
    console.update()
    console.finish("evaluate it")
    printed = capsys.readouterr().out
    assert "[  60.0 s] step 2/3  teacher_kl +1.0000" in printed
    assert "8.0000" not in printed
    assert f"run {tmp_path.name}: 2 steps in 60 s" in printed
    assert json.loads((tmp_path / "run.json").read_text()) == {"steps": 2, "seconds": {"startup": 58.0, "train": 2.0}}


def test_before_the_first_step_the_place_of_the_run_is_said(tmp_path: Path, clock: Clock, capsys):
    write_place(tmp_path, "step 7: update")  # of an earlier run
    console = RunConsole(tmp_path, clock.now)
    console.update()
    for place in ("data is loaded", "data is loaded", "agent loop is up"):
        write_place(tmp_path, place)
        console.update()
    assert capsys.readouterr().out.splitlines() == ["[   0.0 s] data is loaded", "[   0.0 s] agent loop is up"]
    MetricsFile(tmp_path / "metrics.jsonl").append(1, row(1.0))
    write_place(tmp_path, "step 2: prompts")
    console.update()
    assert "step 2: prompts" not in capsys.readouterr().out


def test_the_end_shows_what_changed_and_what_to_type_next(tmp_path: Path, clock: Clock, capsys):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    console = RunConsole(tmp_path, clock.now)
    clock.now += 12
    metrics.append(1, row(2.0, **{"actor/grad_norm": 5.0, "teacher/seconds": 1.5}))
    console.update()
    metrics.append(2, row(0.5, **{"actor/grad_norm": 4.0, "critic/rewards/mean": 0.75}))
    save_student(tmp_path, step=2)
    console.update()
    clock.now += 8
    console.finish("evaluate it")
    printed = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in printed.splitlines() if "│" in line]
    assert ["teacher_kl (nats/token)", "2", "0.5"] in cells
    assert ["reward", "0.25", "0.75"] in cells
    assert ["gradient norm", "5", "4"] in cells
    assert ["response length (tokens)", "7", "7"] in cells
    assert ["seconds a step", "2", "2"] in cells
    assert len(cells) == 5  # what only one of both has is left out
    assert f"student: {tmp_path}/student (Hugging Face format, with a model card); next:" in printed
    assert "\n  evaluate it\n" in printed
    assert f"  vllm serve {tmp_path}/student" in printed
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == {"startup": 10.0, "train": 10.0}


def test_the_table_has_a_row_for_each_stage_of_a_step(tmp_path: Path, clock: Clock, capsys):
    stages = {
        "  sampling and scoring": "timing_s/gen",
        "  of it with the teacher busy": "teacher/seconds",
        "  update": "timing_s/update_actor",
        "  weight sync": "timing_s/update_weights",
    }
    console = RunConsole(tmp_path, clock.now)
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        metrics.append(step, row(1.0, **{key: 10.0 * step + place for place, key in enumerate(stages.values())}))
    console.update()
    console.finish("evaluate it")
    lines = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│   ")]
    found = [(label.rstrip(), first.strip(), last.strip()) for label, first, last in lines]
    assert found == [(label.strip(), f"{10 + place}", f"{20 + place}") for place, label in enumerate(stages)]


def test_what_is_to_be_typed_is_one_line_however_narrow_the_window(tmp_path: Path, clock: Clock, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    console = RunConsole(tmp_path, clock.now)
    MetricsFile(tmp_path / "metrics.jsonl").append(1, row(1.0))
    save_student(tmp_path, step=1)
    console.update()
    console.finish("evaluate it")
    lines = capfd.readouterr().out.splitlines()
    assert "  evaluate it" in lines
    assert f"  vllm serve {tmp_path}/student" in lines


def test_the_end_of_a_lora_run_names_the_adapter(tmp_path: Path, clock: Clock, capsys):
    console = RunConsole(tmp_path, clock.now)
    MetricsFile(tmp_path / "metrics.jsonl").append(1, row(1.0))
    (tmp_path / "adapter").mkdir()
    save_student(tmp_path, step=1)
    console.update()
    console.finish("evaluate it")
    assert f", adapter: {tmp_path}/adapter (PEFT); next:" in capsys.readouterr().out


def test_the_end_names_no_student_that_is_not_there(tmp_path: Path, clock: Clock, capsys):
    """`trainer.save_freq=-1` saves none; a run that ended early has that of its last checkpoint."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    console = RunConsole(tmp_path, clock.now)
    metrics.append(1, row(1.0))
    metrics.append(2, row(1.0))
    console.update()
    console.finish("evaluate it")
    printed = capsys.readouterr().out
    assert "the run ended after step 2 of 3" in printed
    assert "no student: no checkpoint was saved (trainer.save_freq)" in printed
    assert "student=" not in printed
    save_student(tmp_path, step=1)
    console.finish("evaluate it")
    assert f"student of step 1, not of the last one: {tmp_path}/student" in capsys.readouterr().out


def test_a_run_that_was_complete_says_so_and_leaves_its_record(tmp_path: Path, clock: Clock, capsys):
    MetricsFile(tmp_path / "metrics.jsonl").append(1, row(1.0))
    (tmp_path / "run.json").write_text("{}")
    console = RunConsole(tmp_path, clock.now)
    console.update()
    console.finish("evaluate it")
    assert "nothing left to train: the run was complete; delete the run directory" in capsys.readouterr().out
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_terminal_shows_a_bar_and_no_line_a_step(tmp_path: Path, clock: Clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    with RunConsole(tmp_path, clock.now) as console:
        assert console.progress.console is console.console  # else lines and bar would overwrite each other
        metrics.append(1, row(2.0))
        console.update()
        metrics.append(2, row(0.5))
        console.update()
    printed = capsys.readouterr().out
    assert "2/3" in printed
    assert "0/100" not in printed  # before the first step nobody knows how many there are
    assert "teacher_kl +0.5000" in printed
    assert "step 2/3" not in printed


def sft_lines(capfd) -> list[str]:
    return [line.split("] ", 1)[-1] for line in capfd.readouterr().out.splitlines()]


def test_an_sft_run_prints_about_twenty_steps_the_first_and_the_last_among_them(capfd):
    console = SftConsole()
    values = {"train/loss": 0.5, "train/lr": 1e-4, "train/grad_norm": 2.0, "perf/tokens_per_s": 12345.6}
    for step in range(1, 102):
        console.step(step, 101, values)
    lines = sft_lines(capfd)
    assert lines[0] == "step 1/101  loss 0.5000  lr 0.0001  grad 2  12,346 tokens/s"
    assert [int(line.split("/")[0].removeprefix("step ")) for line in lines] == [1, *range(5, 101, 5), 101]
    for step in (1, 2, 3):
        console.step(step, 3, values)
    assert len(sft_lines(capfd)) == 3  # a short run: every step


def test_an_sft_run_says_what_it_trains_and_where_it_begins(capfd):
    module = torch.nn.Linear(30, 40)
    module.bias.requires_grad = False
    trainer = SimpleNamespace(engine=SimpleNamespace(module=module), total_training_steps=9, resume_global_step=0)
    console = SftConsole()
    console.ready(trainer)
    trainer.resume_global_step = 4
    console.ready(trainer)
    assert sft_lines(capfd) == ["training 1,200 parameters, 9 steps", "training 1,200 parameters, 9 steps from step 4"]


def test_the_end_of_an_sft_run_names_what_it_left(capfd):
    console = SftConsole()
    run = {"run_dir": "RUN", "model": {"lora_rank": 0}, "student": {"path": "BASE"}, "data": {"train_files": "a.jsonl"}}
    config = OmegaConf.create(run)
    console.finish(config, trained=True)
    assert sft_lines(capfd) == [
        "student: RUN/student (Hugging Face format, with a model card); next:",
        "  python -m recipe.evaluate data=HELDOUT.parquet base=BASE student=RUN/student",
        "  python -m recipe.report RUN",
    ]
    config.model.lora_rank = 8
    console.finish(config, trained=False)
    nothing, student, *_ = sft_lines(capfd)
    assert nothing.startswith("nothing left to train: the run was complete")
    assert student.endswith("card), adapter: RUN/adapter (PEFT); next:")
