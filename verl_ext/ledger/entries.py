"""One line of a ledger: what a phase, or a step of it, spent (docs/ledger.md)."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SCHEMA = 1
TRAIN, SFT, LABELS, EVALUATE, SCORE, GENERATE = "train", "sft", "labels", "evaluate", "score", "generate"
PHASES = (TRAIN, SFT, LABELS, EVALUATE, SCORE, GENERATE)


@dataclass(frozen=True)
class Tokens:
    """Tokens by what was done with them, >= 0. Sampled and prefilled are the student's, or a labelling teacher's."""

    sampled: int = 0
    """Drawn from a model."""
    prefilled: int = 0
    """Of prompts, read by the model that samples."""
    prefilled_cached: int = 0
    """Of prompts, found in its prefix cache instead."""
    scored: int = 0
    """Read by a teacher that scores, its cache left out: prompts and responses."""
    trained: int = 0
    """Through the forward and backward pass of an update, a prompt that is read once for its samples once."""

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def total(self) -> int:
        """All that a model read or drew; not what a cache spared."""
        return self.sampled + self.prefilled + self.scored + self.trained


@dataclass(frozen=True)
class Flops:
    """FLOPs by what they were for, by the formula of `flops.py`, each >= 0."""

    sample: float = 0.0
    """Prompts read and tokens drawn."""
    score: float = 0.0
    """The teacher's."""
    train_forward: float = 0.0
    """Forward passes of the trainer, those without a backward pass among them."""
    train_backward: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def total(self) -> float:
        return self.sample + self.score + self.train_forward + self.train_backward


@dataclass(frozen=True)
class Entry:
    """What a phase, or one step of it, spent."""

    phase: str
    """One of PHASES."""
    step: int | None
    """Of a training, >= 0; of a validation, the step that it followed. None where there are no steps."""
    unix_time: float
    """When it ended."""
    seconds: float
    """How long it took, >= 0; an engine's start is not in it."""
    device_seconds: float
    """`seconds` times `devices`."""
    devices: int
    """GPUs of the run, or machines where it runs on CPUs; servers that the run did not start are not known: 0."""
    samples: int
    """Answers that were sampled, scored or judged, or rows that were trained on, >= 0."""
    tokens: Tokens = field(default_factory=Tokens)
    flops: Flops | None = field(default_factory=Flops)
    """None where the model is none that the formula knows."""
    peak_bytes: int | None = None
    """Most memory of the trainer's device, or of the engine's process; None where nobody measured."""
    energy_joules: float | None = None
    """Of all GPUs of the run, by NVML; None where it does not say."""

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase={self.phase!r} must be one of {', '.join(PHASES)}")
        if not (self.step is None or (isinstance(self.step, int) and self.step >= 0)):
            raise ValueError(f"step={self.step!r} must be null or a number >= 0")
        numbers = [self.seconds, self.device_seconds, self.devices, self.samples, *vars(self.tokens).values()]
        numbers += [] if self.flops is None else vars(self.flops).values()
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"{self.phase}, step {self.step}: every number must be finite and >= 0, found {numbers}")

    def as_line(self) -> str:
        """As the ledger's file has it."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}) + "\n"


def entry_of(line: Mapping[str, Any]) -> Entry:
    """The entry of a parsed line. A field that is not known here is left out.

    Raises:
        ValueError: if it is of a newer schema, lacks a field or has a wrong value.
    """
    schema = line.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ValueError(f"schema={schema}: this version reads 1 to {SCHEMA}; take the verl-opd that wrote it")
    missing = [each.name for each in fields(Entry) if each.name not in line]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    values = {each.name: line[each.name] for each in fields(Entry)}
    try:
        values["tokens"] = Tokens(**line["tokens"])
        values["flops"] = None if line["flops"] is None else Flops(**line["flops"])
        return Entry(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error
