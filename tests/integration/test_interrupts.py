"""A verb that is stopped while vLLM starts: one line, and none of its processes is left, however it is stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from verl_ext.data.rows import LABELS
from verl_ext.data.sentences import file_sentences
from verl_ext.demo.tiny_pair import build_model, train_tokenizer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
ENGINES = ("multiprocessing.spawn", "VLLM::")
"""vLLM's engine core is spawned; its worker is forked from it, on a CPU, and has its title."""
ENDED_S = 30  # some seconds where nothing else runs; minutes, or never, where something waits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a random one, and `data`, rows."""
    folder = tmp_path_factory.mktemp("interrupts")
    tokenizer = train_tokenizer([s.text for s in file_sentences(ROOT / "data" / "sample.jsonl")], LABELS, 400)
    build_model(tokenizer, SHAPE).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = ["source=file", "sentences=data/sample.jsonl", f"out_dir={folder}/data"]
    subprocess.run([sys.executable, "-m", "recipe.create_data", *words], cwd=ROOT, check=True, capture_output=True)
    return folder


def words_of(verb: str, folder: Path, teacher_python: str) -> list[str]:
    model, rows = f"{folder}/model", f"{folder}/data/heldout.parquet"
    return {
        "evaluate": [f"data={rows}", f"student={model}", "dtype=float32", f"out={folder}/eval.json"],
        "generate": [f"data={rows}", f"model={model}", "engine.dtype=float32", f"out={folder}/answers.parquet"],
        "doctor": [
            *("platform=cpu", "task=demo", f"student.path={model}", f"teacher.python={teacher_python}"),
            *(f"data.train_files={folder}/data/train.parquet", f"data.val_files={rows}"),
            *("data.train_batch_size=8", f"doctor.out={folder}/doctor.json"),
        ],
    }[verb]


@dataclass
class Started:
    process: subprocess.Popen
    printed: Path
    family: set[psutil.Process]
    engine: set[psutil.Process]
    """Those of the family that were the engine's when they began; they give themselves other names later."""

    def look(self) -> int:
        """The engine's processes that were seen so far."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.family |= set(children)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(name in " ".join(child.cmdline()) for name in ENGINES):
                    self.engine.add(child)
        return len(self.engine)

    def left(self) -> list[psutil.Process]:
        """Those that live."""
        return [each for each in self.family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    def wait_for_the_last(self) -> None:
        deadline = time.monotonic() + ENDED_S
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.left() == []


@contextlib.contextmanager
def with_engine(folder: Path, verb: str, processes: int, teacher_python: str) -> Iterator[Started]:
    """A verb whose engine has just begun `processes` of its processes: vLLM's core, then its worker."""
    printed = folder / f"{verb}.txt"
    with printed.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"recipe.{verb}", *words_of(verb, folder, teacher_python)],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Started(process, printed, set(), set())
    try:
        deadline = time.monotonic() + 120
        while started.look() < processes:
            assert process.poll() is None, printed.read_text()
            assert time.monotonic() < deadline, printed.read_text()
            time.sleep(0.05)
        time.sleep(1)  # it has its main module, and is importing vLLM
        started.look()
        yield started
    finally:
        for each in [*started.left(), *([process] if process.poll() is None else [])]:
            each.kill()
        process.wait()


@pytest.mark.parametrize(
    ("verb", "processes", "number", "whole_group"),
    [
        ("evaluate", 1, signal.SIGINT, True),  # Ctrl-C in a terminal
        ("generate", 2, signal.SIGINT, True),
        ("doctor", 1, signal.SIGTERM, False),
    ],
)
def test_a_verb_that_is_interrupted_says_one_line_and_leaves_no_process(
    folder: Path, teacher_python: str, verb: str, processes: int, number: int, whole_group: bool
):
    with with_engine(folder, verb, processes, teacher_python) as started:
        (os.killpg if whole_group else os.kill)(started.process.pid, number)
        assert started.process.wait(ENDED_S) == 128 + number
        started.wait_for_the_last()
    *before, line = started.printed.read_text().splitlines()
    assert line.startswith("interrupted")
    assert not before or processes == 2, before  # a worker that has begun may have said something of its own
    assert not any("Traceback" in each or "Error" in each for each in before)


def test_nothing_of_an_engine_outlives_a_verb_that_was_killed(folder: Path, teacher_python: str):
    """vLLM's core waits five minutes for one that is gone before it can answer."""
    with with_engine(folder, "evaluate", 1, teacher_python) as started:
        started.process.kill()
        started.wait_for_the_last()
