"""What bounds a training step, what overlap could give at most, and how many replicas would keep the trainer busy.

A step has three workers: the student samples, the teacher scores what is sampled (answer by answer, so that both work
at once), the trainer updates. In `pipeline.mode=sync` the trainer waits for the other two and they for it; overlapped,
the slowest of the three sets the pace, and all stop for the weight sync. Twice the replicas take half the time: at
best, since the longest answer is one replica's. Seconds throughout.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

STUDENT, TEACHER, TRAINER = "student", "teacher", "training"
FULL = 0.8
"""Share of the teacher's request slots, and of the sampling time, from which on sampling waits for the teacher."""
IDLE = 0.1
"""Share of an overlapped step that the trainer may wait before it is the others that bound the step."""
MOST = 64
"""Replicas of the student, at most, that are looked at."""


@dataclass(frozen=True)
class StepTimes:
    """One step of a run."""

    step: int
    whole: float
    """From its start until vLLM has the new weights, less `saving`."""
    waiting: float
    """The trainer waits for samples and scores."""
    training: float
    """The trainer works on them: log-probs, advantages, update."""
    sync: float
    """The weights go to vLLM."""
    student: float
    """At least one sample is at the student, within the step."""
    teacher: float
    """At least one is at the teacher."""
    answering: float
    """At least one is at either."""
    in_flight: float
    """Requests at the teacher while one is, mean."""
    saving: float = 0.0
    """Writing a checkpoint; 0 in a step without one."""
    testing: float = 0.0
    """Validation, which follows the step; 0 in a step without one."""


@dataclass(frozen=True)
class Engines:
    """What the run's stages run on."""

    mode: str
    """`pipeline.mode`."""
    ahead: int
    """Batches under way beside the one that is trained; 0: nothing overlaps training."""
    samples: int
    """Of a step."""
    students: int
    """vLLM replicas, >= 1."""
    teachers: int
    """SGLang replicas, >= 1."""
    slots: int
    """Requests that may be at the teachers at once, >= 1."""


@dataclass(frozen=True)
class Stages:
    """Medians of the steps that are looked at."""

    whole: float
    waiting: float
    training: float
    sync: float
    student: float
    teacher: float
    answering: float
    in_flight: float
    saving: float
    """Of a step that saves."""
    testing: float
    """Of a step that is followed by validation."""
    saves: int
    tests: int
    steps: int

    @property
    def rest(self) -> float:
        """The trainer's process between the stages."""
        return max(0.0, self.whole - self.waiting - self.training - self.sync)

    @property
    def trainer(self) -> float:
        """What the trainer's side takes of a step, however fast the others are."""
        return self.training + self.rest

    @property
    def extra(self) -> float:
        """What checkpoints and validation add to a step, on average."""
        return (self.saving * self.saves + self.testing * self.tests) / self.steps


@dataclass(frozen=True)
class Outlook:
    """A step with so many replicas."""

    name: str
    students: int
    teachers: int
    seconds: float
    busy: dict[str, float]
    """Share of the step in which student, teacher and trainer work."""
    bound: str
    """Whose work sets the pace."""


def stages_of(steps: Sequence[StepTimes]) -> Stages:
    """Medians; `saving` and `testing` over the steps that have them. At least one step."""

    def median(name: str, some: Sequence[StepTimes] = steps) -> float:
        return statistics.median(getattr(step, name) for step in some) if some else 0.0

    saves, tests = [step for step in steps if step.saving], [step for step in steps if step.testing]
    names = ("whole", "waiting", "training", "sync", "student", "teacher", "answering", "in_flight")
    return Stages(
        **{name: median(name) for name in names},
        saving=median("saving", saves),
        testing=median("testing", tests),
        saves=len(saves),
        tests=len(tests),
        steps=len(steps),
    )


def teacher_limits(stages: Stages, engines: Engines) -> bool:
    """Sampling waits for the teacher: samples are there for longer, or nearly all the time with all its slots taken."""
    full = stages.teacher >= FULL * stages.answering and stages.in_flight >= FULL * engines.slots
    return full or stages.teacher > stages.student


def answering_bound(stages: Stages, engines: Engines) -> str:
    """Who of the two that make and score answers is waited for."""
    return TEACHER if teacher_limits(stages, engines) else STUDENT


def bound_now(stages: Stages, engines: Engines) -> str:
    """Whose work the step waits for, as it is."""
    limit = IDLE * stages.whole if engines.ahead else stages.trainer
    return answering_bound(stages, engines) if stages.waiting > limit else TRAINER


def _outlook(name: str, stages: Stages, students: int, teachers: int, work: dict[str, float], pace: float) -> Outlook:
    seconds = pace + stages.sync
    busy = {worker: min(1.0, each / seconds) if seconds else 0.0 for worker, each in work.items()}
    return Outlook(name, students, teachers, seconds, busy, max(work, key=lambda worker: work[worker]))


def now(stages: Stages, engines: Engines) -> Outlook:
    """The step as it was measured."""
    work = {STUDENT: stages.student, TEACHER: stages.teacher, TRAINER: stages.trainer}
    busy = {worker: min(1.0, each / stages.whole) for worker, each in work.items()}
    bound = bound_now(stages, engines)
    return Outlook("now", engines.students, engines.teachers, stages.whole, busy, bound)


def one_step_off(stages: Stages, engines: Engines) -> Outlook:
    """The same engines, a whole batch ahead: its last answer must be scored before the next step begins."""
    work = {STUDENT: stages.student, TEACHER: stages.teacher, TRAINER: stages.trainer}
    pace = max(stages.answering, stages.trainer)
    found = _outlook("one_step_off", stages, engines.students, engines.teachers, work, pace)
    bound = TRAINER if stages.trainer >= stages.answering else answering_bound(stages, engines)
    return Outlook(found.name, found.students, found.teachers, found.seconds, found.busy, bound)


def stream(stages: Stages, engines: Engines, students: int, teachers: int) -> Outlook:
    """So many replicas, a queue that never runs dry: the slowest of the three sets the pace."""
    work = {
        STUDENT: stages.student * engines.students / students,
        TEACHER: stages.teacher * engines.teachers / teachers,
        TRAINER: stages.trainer,
    }
    return _outlook("stream", stages, students, teachers, work, max(work.values()))


def balanced(stages: Stages, engines: Engines) -> list[Outlook]:
    """1, 2, 4, ... student replicas, with as many teachers as keep up, until the trainer is never idle."""
    found, students = [], 1
    while True:
        pace = max(stages.student * engines.students / students, stages.trainer)
        needed = stages.teacher * engines.teachers / pace if pace else 0.0
        found.append(stream(stages, engines, students, max(1, math.ceil(needed - 1e-9))))
        if pace <= stages.trainer or students >= MOST:
            return found
        students *= 2
