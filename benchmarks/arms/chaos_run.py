"""A training run to which faults are done, and what is seen of it from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.arms.chaos_faults import Fault, Victim, do, environment
from benchmarks.arms.runs import DEMO
from verl_ext.run.metrics import read_metrics

START_S = 900.0
END_S = 150.0  # for a run to end, or to make its next step
CLEAN_S = 20.0  # for what is left to be gone
STEPS_BETWEEN = 2
TWO_SAVED = 5
"""Steps of a start after which there is a checkpoint before the newest."""
TOLD = ("has ended", "is stopped", "error:", "failed", "updates skipped", "interrupted")
ENDLESS = 100_000
NETWORK_OF_ITS_OWN = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')
"""So that it can be cut off; asks for root."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    mode: str
    fault: str
    outcome: str
    """`ends`, `goes on`, `hangs`, or `does not go on`, where the same command made no step any more."""
    knew_s: float | None
    """Seconds until the console said something, or the command ended; None where it went on without a word."""
    recover_s: float | None
    """Seconds until the next step ended."""
    lost: int
    """Samples that were sent out and neither trained on nor counted, and steps that are missing."""
    left_over: list[str]
    words: str
    """The last line of a run that has ended."""


class ChaosRun:
    """A run that is started again, in the same folder, whenever it has ended."""

    def __init__(
        self, mode: str, folder: Path, overrides: tuple[str, ...], demo: Path = DEMO, *, faults_clock: bool = False
    ) -> None:
        """`demo`: a folder with `data/` and `models/base`, as `make demo` leaves it."""
        self.mode, self.folder, self.overrides, self.demo = mode, folder.absolute(), overrides, demo
        self.signs = self.folder / "signs"
        self.signs.mkdir(parents=True)
        self.environment = environment(self.signs, faults_clock)
        self.run_dir, self.log, self.store = self.folder / "run", self.folder / "run.log", self.folder / "scores"
        self.process: subprocess.Popen[bytes] | None = None
        self.family: dict[int, tuple[float, str]] = {}
        self.segments: set[str] = set()
        self.temporary: Path | None = None

    def suffer(self, fault: Fault, delay_s: float) -> Outcome:
        """Let the run make some steps, do the fault, and see what comes of it, up to the next step."""
        self._start()
        self._wait_for_steps(TWO_SAVED if fault.act == "checkpoint" else STEPS_BETWEEN)
        time.sleep(delay_s)
        self._look()
        undo = do(fault, self._victim(fault))
        begun, told, steps, knew = time.monotonic(), self._said(), self._steps(), None
        deadline = time.monotonic() + END_S
        while self._runs() and time.monotonic() < deadline:
            if knew is None and any(word in self._said()[len(told) :] for word in TOLD):
                knew = time.monotonic() - begun
            if undo is not None and time.monotonic() - begun > fault.undone_after_s:
                undo()
                undo, steps = None, self._steps()
            if fault.expected != "ends" and undo is None and self._steps() >= steps + STEPS_BETWEEN:
                return self._outcome(fault, "goes on", knew, time.monotonic() - begun, [], "")
            time.sleep(0.1)
        if undo is not None:
            undo()
        if self._runs():
            self.close()
            return self._outcome(fault, "hangs", knew, None, self._left_over(), self._last_words())
        ended = time.monotonic() - begun
        left_over, words = self._left_over(), self._last_words()
        self.process, again = None, time.monotonic()
        self._start()
        self._wait_for_steps(1)
        recovered = time.monotonic() - again
        return self._outcome(fault, "ends", ended if knew is None else knew, recovered, left_over, words)

    def close(self) -> None:
        """End the run as Ctrl-C does."""
        if self.process is not None and self._runs():
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            if self._runs():
                self.process.kill()
                self.process.wait()
        self.process = None

    def _start(self) -> None:
        if self.process is not None and self._runs():
            return
        data = self.demo / "data"
        command = [
            *NETWORK_OF_ITS_OWN,
            *(sys.executable, "-m", "recipe.on_policy_distillation", "platform=cpu", "task=demo"),
            *(f"run_dir={self.run_dir}", f"student.path={self.demo}/models/base", "data.train_batch_size=8"),
            *(f"data.train_files={data}/train.parquet", f"data.val_files={data}/heldout.parquet"),
            *(f"trainer.total_training_steps={ENDLESS}", "trainer.save_freq=2", f"teacher.store_path={self.store}"),
            *self.overrides,
        ]
        self._before = self._steps()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self.environment)

    def _victim(self, fault: Fault) -> Victim:
        assert self.process is not None
        driver = self.process.pid

        def start_again() -> None:
            self.process = None
            self._start()
            with contextlib.suppress(RuntimeError):  # it may end before
                self._wait_for_steps(1)

        return Victim(
            driver=driver,
            process=driver if fault.process == "driver" else self._pid_of(fault.process),
            family=tuple(self.family),
            run_dir=self.run_dir,
            store=self.store,
            signs=self.signs,
            start_again=start_again,
        )

    def _pid_of(self, beginning: str) -> int:
        for pid, (_, command) in self.family.items():
            programs = [Path(word).name for word in command.split(" ")[:2]]  # `python warm.py`
            if command.startswith(beginning) or beginning in programs:
                return pid
        raise RuntimeError(f"the run has no process {beginning}: {sorted(c for _, c in self.family.values())}")

    def _look(self) -> None:
        """Whom and what the run has now."""
        assert self.process is not None
        self.family, self.segments = {}, set()
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.family[each.pid] = (each.create_time(), " ".join(each.cmdline()))
                for mapped in each.memory_maps():
                    if mapped.path.startswith("/dev/shm/") and "deleted" not in mapped.path:
                        self.segments.add(mapped.path)
                if folder := each.environ().get("TMPDIR"):
                    self.temporary = next(
                        (p for p in map(Path, (folder, Path(folder).parent)) if "opd-" in p.name), None
                    )

    def _left_over(self) -> list[str]:
        """Processes, shared memory and temporary files of a run that has ended."""
        deadline = time.monotonic() + CLEAN_S
        while (found := self._left_now()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _left_now(self) -> list[str]:
        found = []
        for pid, (started, command) in self.family.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(command[:60])
        found += [name for name in sorted(self.segments) if Path(name).exists()]
        return found + ([str(self.temporary)] if self.temporary is not None and self.temporary.exists() else [])

    def _outcome(
        self, fault: Fault, outcome: str, knew: float | None, recover: float | None, left: list[str], words: str
    ) -> Outcome:
        return Outcome(self.mode, fault.name, outcome, knew, recover, self._lost(), left, words)

    def _lost(self) -> int:
        """Of all steps so far: those that are missing, and samples dropped without an error to name.

        A step that was saved, and killed before its row was written, was trained: the run went on after it.
        """
        rows, resumed = read_metrics(self.run_dir / "metrics.jsonl"), self.run_dir / "resumed.jsonl"
        told = {int(row["step"]) for row in rows}
        if resumed.exists():
            told |= {json.loads(line)["after_step"] for line in resumed.read_text().splitlines()}
        missing = len(set(range(1, int(rows[-1]["step"]) + 1)) - told)
        return missing + sum(int(row["samples/dropped"] - row["samples/failed"]) for row in rows)

    def _steps(self) -> int:
        """Lines of the run's metrics: a step that is made again is one more."""
        metrics = self.run_dir / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def _wait_for_steps(self, count: int) -> None:
        deadline = time.monotonic() + START_S
        since = max(self._before, 0)
        while self._steps() < since + count:
            if not self._runs() or time.monotonic() > deadline:
                raise RuntimeError(f"{self.log}: the run made no step: {self._last_words()}")
            time.sleep(0.1)
        self._before = self._steps()

    def _runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _last_words(self) -> str:
        lines = [line for line in self._said().splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""
