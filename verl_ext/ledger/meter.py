"""Counts what is spent until it is written: time, tokens and FLOPs of an engine that samples, energy of the GPUs."""

import contextlib
import importlib.util
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_ext.ledger import ledger
from verl_ext.ledger.entries import Entry, Flops, Tokens
from verl_ext.ledger.flops import Work, answer, forward
from verl_ext.run.model_shape import ModelShape, shape_from
from verl_ext.run.visible import print

MILLIJOULES = 1000


def shape_or_none(name: str, config: Mapping[str, Any]) -> ModelShape | None:
    """The shape behind a Hugging Face configuration; None, with one printed line, where it is not known."""
    try:
        return shape_from(config)
    except ValueError as error:
        print(f"ledger: FLOPs of {name} are not counted ({error})", flush=True)
    except KeyError as error:
        print(f"ledger: FLOPs of {name} are not counted (its config.json has no {error})", flush=True)
    return None


def energy_joules(gpus: int) -> float | None:
    """What the GPUs of this machine have drawn since their driver was loaded.

    None without NVML (`pynvml`), where a GPU does not say, and where the machine has others than the run's `gpus`, of
    which nobody knows whose work they do.
    """
    if not gpus or importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml  # pyright: ignore[reportMissingImports]  comes with CUDA's packages

    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() != gpus:
            return None
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(gpus)]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / MILLIJOULES
    except pynvml.NVMLError:
        return None


class Stopwatch:
    """Seconds and joules between `start` and `stop`, added up."""

    def __init__(self, gpus: int) -> None:
        """`gpus`: those of the run; 0 on a CPU."""
        self.gpus = gpus
        self.seconds = 0.0
        self.joules: float | None = 0.0
        self._started: tuple[float, float | None] | None = None

    def start(self) -> None:
        self._started = (time.perf_counter(), energy_joules(self.gpus))

    def stop(self) -> None:
        """Nothing where it does not run."""
        if self._started is None:
            return
        (seconds, joules), self._started = self._started, None
        now = energy_joules(self.gpus)
        self.seconds += time.perf_counter() - seconds
        if self.joules is None or joules is None or now is None:
            self.joules = None
        else:
            self.joules += now - joules

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Also where the block ends in an error: it was spent all the same."""
        self.start()
        try:
            yield
        finally:
            self.stop()


class Meter:
    """Of an engine that samples, or of servers."""

    def __init__(self, shape: ModelShape | None, *, gpus: int, devices: int) -> None:
        """`shape` of the model, None where it is not known; `devices` as in `Entry`."""
        self.watch = Stopwatch(gpus)
        self.samples = 0
        self.tokens = Tokens()
        self.peak_bytes: int | None = None
        self._shape, self._devices, self._work = shape, devices, Work()

    def answered(self, prompt: int, cached: int, sampled: int) -> None:
        """One answer: tokens of its prompt, those of them that were in the prefix cache, tokens drawn."""
        self.samples += 1
        self.tokens += Tokens(sampled=sampled, prefilled=prompt - cached, prefilled_cached=cached)
        self._work += answer(prompt, sampled, cached)

    def entry(self, phase: str) -> Entry:
        seconds = self.watch.seconds
        return Entry(
            phase=phase,
            step=None,
            unix_time=time.time(),
            seconds=seconds,
            device_seconds=seconds * self._devices,
            devices=self._devices,
            samples=self.samples,
            tokens=self.tokens,
            flops=None if self._shape is None else Flops(sample=forward(self._shape, self._work)),
            peak_bytes=self.peak_bytes,
            energy_joules=self.watch.joules,
        )


@contextlib.contextmanager
def written(meter: Meter, phase: str, folder: Path) -> Iterator[None]:
    """When the block ends, also in an error or an interruption, what was spent in it is in `folder`'s ledger."""
    try:
        yield
    finally:
        if meter.samples or meter.watch.seconds:
            ledger.append(folder / ledger.FILE, meter.entry(phase))
