"""Training as a user runs it: real Ray, vLLM, SGLang and FSDP2 on the CPU, from the command line."""

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from doors import attack, listeners, neighbour, outside, outside_address, refuses, statuses
from safetensors.torch import load_file, save_file
from secret_search import in_environment, shown
from transformers import AutoModelForCausalLM

from verl_ext.ledger import ledger
from verl_ext.run.metric_names import is_known
from verl_ext.run.metrics import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
# fp32 on both sides, so sampler and trainer agree to rounding; one update moves the tiny pair by much more.
SYNCED_NATS = 1e-3
TEACHERS = ("base", "louder")


@dataclass(frozen=True)
class Inputs:
    data: Path
    base: Path
    teacher_python: str


def run_verb(module: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )
    if check and result.returncode:
        pytest.fail(f"{module} exited with {result.returncode}:\n{result.stdout[-4000:]}")
    return result


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, teacher_python: str) -> Inputs:
    """Rows from our own sample, and a base model that was hardly trained: enough to sample from."""
    folder = tmp_path_factory.mktemp("inputs")
    run_verb("recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={folder}/data")
    run_verb("recipe.tiny_pair", f"data_dir={folder}/data", f"out_dir={folder}/base", "vocab_size=400", "steps=5")
    rows = pq.read_table(folder / "data" / "train.parquet")
    names = pa.array([("base", "louder")[i % 2] for i in range(len(rows))])
    pq.write_table(rows.append_column("teacher", names), folder / "data" / "two_teachers.parquet")
    louder = shutil.copytree(folder / "base", folder / "louder")
    weights = load_file(louder / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, louder / "model.safetensors", {"format": "pt"})
    return Inputs(folder / "data", folder / "base", teacher_python)


def arguments(inputs: Inputs, run_dir: Path, *more: str) -> list[str]:
    return [
        "platform=cpu",
        "task=demo",
        f"run_dir={run_dir}",
        f"student.path={inputs.base}",
        f"teacher.python={inputs.teacher_python}",
        f"data.train_files={inputs.data}/train.parquet",
        f"data.val_files={inputs.data}/heldout.parquet",
        "data.train_batch_size=8",
        "actor_rollout_ref.actor.optim.lr=5e-3",
        *more,
    ]


def train(inputs: Inputs, run_dir: Path, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_verb("recipe.on_policy_distillation", *arguments(inputs, run_dir, *more), check=check)


def two_teachers(inputs: Inputs, trained: Path) -> list[str]:
    """Every second row is scored by another model; the scores are kept beside the run in `trained`."""
    return [
        f"data.train_files={inputs.data}/two_teachers.parquet",
        f"+teachers={{base:{{}},louder:{{model_path:{inputs.base.parent}/louder}}}}",
        f"teacher.store_path={trained.parent}/scores",
    ]


@pytest.fixture(scope="module")
def trained(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with two teachers and a store, then the same command for a third."""
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    train(inputs, run_dir, *two_teachers(inputs, run_dir), "trainer.total_training_steps=2")
    first = [read_metrics(run_dir / "metrics.jsonl")]
    train(inputs, run_dir, *two_teachers(inputs, run_dir), "trainer.total_training_steps=3")
    (run_dir / "first.json").write_text(json.dumps(first[0]))
    return run_dir


def test_a_run_leaves_metrics_config_student_and_curves(trained: Path):
    rows = read_metrics(trained / "metrics.jsonl")
    for key in (
        "teacher_kl",
        "critic/rewards/mean",
        "response_length/mean",
        "response_length/truncated_share",
        "actor/entropy",
        "actor/grad_norm",
        "actor/lr",
        "teacher/seconds",
        "teacher/tokens_per_second",
        "timing_s/gen",
        "timing_s/update_actor",
        "timing_s/step",
        "actor/weight_max",
    ):
        assert key in rows[0], key
    assert rows[0]["teacher/unscored"] == 0
    assert 0 < rows[0]["response_length/truncated_share"] < 1
    for row in rows:
        assert 0 <= row["response_length/truncated_share"] <= 1
        assert 0 < row["actor/entropy"] < math.log(400)  # nats a token, of 400 in the vocabulary
    unknown = {name for row in rows for name in row if not is_known(name)} - {"step"}
    assert unknown == set(), "verl_ext/run/metric_names.py has no row for them"
    assert rows[0]["actor/lr"] == pytest.approx(5e-3)
    assert "temperature: 1.0" in (trained / "config.yaml").read_text()
    assert list((trained / "tensorboard").rglob("events.out.tfevents.*"))
    for row in rows:
        assert row["samples/dispatched"] == row["samples/trained"] == 32
        assert (row["updates/done"], row["updates/skipped"]) == (1, 0)
    assert (trained / "logs").is_dir()
    assert not (trained / "logs").is_symlink()  # Ray's own folder is gone with its temporary files


def test_the_same_command_resumes_where_it_stopped(trained: Path):
    rows = read_metrics(trained / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[:2] == json.loads((trained / "first.json").read_text())


def test_the_ledger_agrees_with_the_timers_and_the_counts(trained: Path):
    rows, found = read_metrics(trained / "metrics.jsonl"), ledger.read(trained / ledger.FILE)
    assert [(entry.phase, entry.step) for entry in found.entries] == [("train", 1), ("train", 2), ("train", 3)]
    assert (found.abandoned, found.cut_lines) == ((), 0)
    spent = ledger.totals(found.entries)
    assert spent.seconds == pytest.approx(sum(row["timing_s/step"] for row in rows), rel=0.01)
    assert spent.device_seconds == spent.seconds  # one machine
    for row, entry in zip(rows, found.entries, strict=True):
        assert entry.unix_time == pytest.approx(row["training/unix_time"], abs=5)
        prompts, responses = (row[f"{name}_length/mean"] * entry.samples for name in ("prompt", "response"))
        tokens = entry.tokens
        assert tokens.sampled == pytest.approx(responses)
        assert tokens.prefilled + tokens.prefilled_cached == pytest.approx(prompts)
        # Each prompt was read once for its samples, in one micro-batch.
        assert tokens.trained == pytest.approx(prompts / 4 + responses)
        by_teacher = [row[f"teacher/{name}/tokens"] - row[f"teacher/{name}/cached_tokens"] for name in TEACHERS]
        assert tokens.scored == sum(by_teacher) > 0
        assert entry.peak_bytes is not None
        assert entry.flops is not None
        assert entry.flops.train_backward == 2 * entry.flops.train_forward > 0
        assert min(entry.flops.sample, entry.flops.score) > 0


def test_the_student_changed_and_loads_in_transformers(trained: Path, inputs: Inputs):
    student = AutoModelForCausalLM.from_pretrained(trained / "student")
    base = AutoModelForCausalLM.from_pretrained(inputs.base)
    before = dict(base.named_parameters())
    moved = [(p - before[name]).abs().max().item() for name, p in student.named_parameters()]
    assert max(moved) > 1e-3
    assert all(torch.isfinite(p).all() for p in student.parameters())


def test_each_row_is_scored_by_its_teacher(trained: Path):
    for row in read_metrics(trained / "metrics.jsonl"):
        assert row["teacher/scored"] == row["teacher/store_misses"] == 32
        assert row["teacher/base/sequences"] + row["teacher/louder/sequences"] == row["teacher/sequences"] >= 32
        assert row["teacher/louder/sequences"] > 0
        assert row["teacher/louder/store_misses"] % 4 == 0  # whole groups of one prompt


def test_a_repeated_run_asks_no_teacher_and_stops_with_a_checkpoint_where_the_store_ends(
    trained: Path, inputs: Inputs, tmp_path: Path
):
    """The store answers for the three steps run before; no server is started, so the fourth has no teacher."""
    run_dir = tmp_path / "run"
    more = [*two_teachers(inputs, trained), "teacher.store_mode=replay", "trainer.total_training_steps=4"]
    result = train(inputs, run_dir, *more, "trainer.save_freq=-1", check=False)
    assert result.returncode == 1
    rows = read_metrics(run_dir / "metrics.jsonl")
    assert [(row["step"], row["teacher/from_store"], row["teacher/unscored"]) for row in rows] == [
        (1, 32, 0),
        (2, 32, 0),
        (3, 32, 0),
    ]
    for row, before in zip(rows, read_metrics(trained / "metrics.jsonl"), strict=True):
        assert "teacher/sequences" not in row  # nobody was asked
        assert row["teacher_kl"] == pytest.approx(before["teacher_kl"], abs=1e-4)
    assert not list(run_dir.glob("teacher*.log"))
    # A short answer may be one of those that were scored before.
    assert re.search(r"error: the run failed: .*(2\d|3[0-2]) of 32 samples have no teacher score", result.stdout)
    assert "step 3 is saved; the same command resumes after it" in result.stdout
    assert (run_dir / "checkpoints/latest_checkpointed_iteration.txt").read_text() == "3"
    assert AutoModelForCausalLM.from_pretrained(run_dir / "student").num_parameters() > 0


def test_weight_sync_keeps_sampler_and_trainer_together(trained: Path):
    """They agree to fp32 rounding at every step; the run that is interrupted below shows that without it they drift."""
    assert max(row["actor/rollout_gap_max"] for row in read_metrics(trained / "metrics.jsonl")) < SYNCED_NATS


def test_a_bad_run_is_refused_in_one_line_and_starts_nothing(inputs: Inputs, tmp_path: Path):
    run_dir = tmp_path / "run"
    result = train(inputs, run_dir, "actor_rollout_ref.rollout.temperature=0.7", check=False)
    assert result.returncode == 1
    assert result.stdout.startswith("error: actor_rollout_ref.rollout.temperature=0.7")
    assert len(result.stdout.strip().splitlines()) == 1
    assert not run_dir.exists()


def test_an_unknown_key_is_refused(inputs: Inputs, tmp_path: Path):
    result = train(inputs, tmp_path / "run", "method.cof=2", check=False)
    assert result.returncode == 1
    assert result.stdout == "error: method.cof=2: unknown key method.cof; did you mean method.coef?\n"


def engines_of(folder: Path) -> list[str]:
    """Command lines of living processes of a run below `folder`; engines that began here name themselves."""
    left, here = [], os.getcwd()
    for process in psutil.process_iter(["pid", "cmdline", "status", "cwd"]):
        command = " ".join(process.info["cmdline"] or [])
        names = (str(folder), *(("VLLM::", "sglang::") if process.info["cwd"] == here else ()))
        if process.info["status"] != psutil.STATUS_ZOMBIE and "pytest" not in command:
            left += [command[:200] for name in names if name in command]
    return left


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)
    return condition()


def test_no_process_is_left_behind(trained: Path):
    assert wait_until(lambda: not engines_of(trained.parents[1]), 10), engines_of(trained.parents[1])


def nobody_gets_in(pid: int, proof: Path) -> None:
    """The run of process `pid` listens on loopback alone, whoever of it does; TransferQueue runs no stranger's code."""
    found = listeners(pid)
    for name in (
        "TransferQueueController",
        "SimpleStorageUnit",
        "FinishReasonServer",
        "WorkerDict",
        "sglang",
        "raylet",
    ):
        assert any(name in each for each in found.values()), (name, found)
    assert not outside(found)
    if (address := outside_address()) is not None:
        for _, port in found:
            assert refuses(address, port)
    for port in [port for (_, port), name in found.items() if "TransferQueueController" in name]:
        assert not attack("127.0.0.1", port, proof, 1)
    with neighbour() as knock, socket.create_server(("0.0.0.0", 0)) as control:
        if knock is not None:
            assert knock([*(port for _, port in found), control.getsockname()[1]]) == [control.getsockname()[1]]
    for name, asked in (("FinishReasonServer", "/v1/models"), ("sglang", "/model_info")):
        ports = [port for (_, port), own in found.items() if name in own]
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            assert statuses("127.0.0.1", ports, "GET", asked, **headers) == [401], (name, headers)


def no_secret_shows(keys: dict[str, str], folders: list[Path], pid: int | None = None) -> None:
    """Not in files or process lists; and `pid` given, SGLang's processes do not even have them."""
    assert shown(keys, folders) == []
    if pid is not None:
        tree = psutil.Process(pid).children(recursive=True)
        engines = [each for each in tree if "sglang" in " ".join(each.cmdline())]
        assert engines
        assert in_environment(keys, engines) == []


def test_ctrl_c_says_how_to_go_on_and_leaves_nothing(inputs: Inputs, tmp_path: Path):
    """On a run without weight sync, whose sampler drifts from the second step on.

    Meanwhile nobody gets in, and neither then nor afterwards does a key show anywhere.
    """
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "recipe.on_policy_distillation"]
    endless = ("trainer.total_training_steps=1000", "trainer.save_freq=2", "method.control=no_weight_sync")
    more = arguments(inputs, run_dir, *endless)

    def two_steps_done() -> bool:
        return (run_dir / "student").exists() and len(read_metrics(run_dir / "metrics.jsonl")) >= 2

    keys = {name: secrets.token_hex(32) for name in ("TEACHER_API_KEY", "RAY_AUTH_TOKEN")}
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = os.environ | keys | {"TMPDIR": str(scratch)}
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [*command, *more], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            assert wait_until(two_steps_done, 400), (tmp_path / "out.txt").read_text()[-3000:]
            nobody_gets_in(process.pid, tmp_path / "proof")
            folders = [tmp_path, (run_dir / "logs").resolve().parent, Path("/dev/shm")]
            no_secret_shows(keys, folders, process.pid)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.wait(timeout=90) == 128 + signal.SIGINT
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    said = (tmp_path / "out.txt").read_text()
    assert re.search(r"stopped by SIGINT: step \d+ is saved; the same command resumes after it", said)
    assert wait_until(lambda: not engines_of(tmp_path), 20), engines_of(tmp_path)
    no_secret_shows(keys, folders)
    gaps = [row["actor/rollout_gap_max"] for row in read_metrics(run_dir / "metrics.jsonl")]
    assert gaps[0] < SYNCED_NATS
    assert gaps[1] > 10 * SYNCED_NATS
