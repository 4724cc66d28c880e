"""A comparison from its task to its table: preparation, headroom, labels, arms one after the other, evaluation.

Every part is a verb in a process of its own and keeps what it finished, so that the same command goes on. An arm that
fails is marked and the next one begins. One teacher server scores for all arms. Ray and vLLM start anew with each arm:
verl's workers and its TransferQueue are named once a Ray, and an arm must find none of another's.
"""

import json
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from omegaconf import OmegaConf
from rich.table import Table

from verl_ext.comparison import plan
from verl_ext.comparison.config import SFT, CompareConfig, TaskConfig
from verl_ext.comparison.curve import Point, on_policy_points, read_curve, samples_to, write_curve
from verl_ext.comparison.process import CommandFailed, as_command, run_command
from verl_ext.comparison.record import DONE, FAILED, RUNNING, TRAINED, WAITING, Arm, Headroom, Record, failures
from verl_ext.comparison.teacher import shared_teacher
from verl_ext.run.command import as_typed
from verl_ext.run.hydra import schema_of
from verl_ext.run.settings import settings_of
from verl_ext.run.terminal import Terminal
from verl_ext.run.visible import print
from verl_ext.teacher.config import TeacherConfig

QUIET_S = 60.0
"""Seconds after which a line says how far an arm is."""


@dataclass
class Session:
    """One call of the command."""

    config: CompareConfig
    record: Record
    package: str
    """Where the verbs are."""
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """What arms of each kind took in this call."""

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.0f} s] {text}", flush=True)

    def run(self, command: plan.Command) -> None:
        """A command that every arm needs."""
        typed = as_command(command.words)
        self.record.add_command(typed)
        self.say(as_typed(typed))
        try:
            run_command(command.words, command.folder / "command.log", self.package, self.config.arm_timeout_s)
        except CommandFailed as error:
            raise ValueError(f"{command.words[0]}: {error}") from None


def measure_headroom(session: Session) -> Headroom:
    """What the teacher has over the base on held-out rows; measured once.

    Raises:
        ValueError: if it is less than `least_headroom`.
    """
    config, record = session.config, session.record
    for command in plan.preparation(config):
        session.run(command)
    if record.headroom is None:
        command = plan.headroom(config)
        session.run(command)
        found = json.loads((command.folder / "eval.json").read_text())
        accuracies = (found[arm]["accuracy"] for arm in ("base", "teacher"))
        record.headroom = Headroom(*accuracies, rows=found["base"]["rows"])
        record.write()
    base, teacher = record.headroom.base, record.headroom.teacher
    said = f"base {base:.3f} without the prompt, teacher {teacher:.3f} with it, {record.headroom.rows} held-out rows"
    if teacher - base < config.least_headroom:
        raise ValueError(
            f"no headroom: {said}: {teacher - base:+.3f}, less than least_headroom={config.least_headroom}; nothing "
            "would be learned: take another prompt, teacher or task, or least_headroom=-1"
        )
    session.say(f"headroom: {said}: {teacher - base:+.3f} can be gained")
    return record.headroom


def train_arms(session: Session, headroom: Headroom) -> None:
    """The arms that are not trained yet: SFT first, then those that a teacher server scores."""
    record = session.record
    left = [record.arms[run] for run in record.asked if not record.is_trained(run)]
    left.sort(key=lambda arm: arm.kind != SFT)
    unlabelled = label(session, left)
    alone, scored = ([arm for arm in left if (arm.kind == SFT) == wanted] for wanted in (True, False))
    train_each(session, headroom, alone, left, [], unlabelled)
    if scored:
        with shared_teacher(served(session.config.task), session.out / "teacher.log") as words:
            train_each(session, headroom, scored, left, words, unlabelled)


def served(task: TaskConfig) -> TeacherConfig:
    """The settings of the server that scores for all arms. Raises ValueError naming a bad one."""
    given = OmegaConf.from_dotlist([f"teacher.model_path={task.teacher}", *task.serve])
    return settings_of(OmegaConf.merge(schema_of(TeacherConfig), given.teacher), TeacherConfig)


def label(session: Session, arms: list[Arm]) -> str:
    """Make the teacher's labels, where an arm is trained on them; why they could not be made, or empty."""
    if plan.needs_labels(arms):
        try:
            session.run(plan.labels(session.config))
        except ValueError as error:
            session.say(f"no labels: {error}; the arms without SFT go on")
            return str(error)
    return ""


def train_each(
    session: Session, headroom: Headroom, arms: list[Arm], left: list[Arm], words: list[str], unlabelled: str
) -> None:
    """Train `arms`, one after the other, of all that are `left`; one that fails is marked."""
    record = session.record
    for arm in arms:
        number = left.index(arm)
        session.say(f"arm {number + 1} of {len(left)}: {arm.run} ({arm.kind}){expected(session, left[number:])}")
        record.set(arm.run, RUNNING)
        try:
            if unlabelled and plan.needs_labels([arm]):
                raise CommandFailed(unlabelled)
            train_arm(session, arm, headroom, words)
            record.set(arm.run, DONE)
        except KeyboardInterrupt:
            record.set(arm.run, WAITING)
            raise
        except CommandFailed as error:
            record.set(arm.run, FAILED, str(error))
            session.say(f"{arm.run} failed: {error}; the others go on")


def train_arm(session: Session, arm: Arm, headroom: Headroom, words: list[str]) -> None:
    """Run an arm's commands, and keep its curve up to date meanwhile."""
    run, begun, said = session.out / arm.run, time.monotonic(), time.monotonic()

    def look() -> None:
        nonlocal said
        points = curve_so_far(run, arm.kind, headroom)
        if points != read_curve(run):
            write_curve(run, points)
        if time.monotonic() - said > QUIET_S:
            said = time.monotonic()
            session.say(f"... {arm.run}: {place_of(points)}")

    for command in plan.training(session.config, arm, []):  # as one types it, with a teacher of its own
        session.record.add_command(as_command(command.words))
    for command in plan.training(session.config, arm, words):
        run_command(command.words, command.folder / "command.log", session.package, session.config.arm_timeout_s, look)
    (run / TRAINED).touch()
    took = time.monotonic() - begun
    session.seconds.setdefault(arm.kind, []).append(took)
    session.say(f"{arm.run} is trained after {took:.0f} s: {place_of(curve_so_far(run, arm.kind, headroom))}")


def curve_so_far(run: Path, kind: str, headroom: Headroom) -> list[Point]:
    """The validations of an arm in training; of SFT, whose checkpoints are evaluated later, those that are there."""
    if kind == SFT:
        return read_curve(run)
    return [Point(0, 0, 0, headroom.base, headroom.rows), *on_policy_points(run, headroom.rows)]


def place_of(points: list[Point]) -> str:
    if len(points) < 2:
        return "no validation yet"
    return f"step {points[-1].step}, held-out accuracy {points[-1].accuracy:.3f}"


def expected(session: Session, left: list[Arm]) -> str:
    """About how long the arms that are left take, by those of the same kind before; empty where that is not known."""
    known = session.seconds
    if any(arm.kind not in known for arm in left):
        return ""
    seconds = sum(sum(known[arm.kind]) / len(known[arm.kind]) for arm in left)
    return f", about {timedelta(seconds=round(seconds))} left"


def compare(config: CompareConfig, package: str) -> list[str]:
    """Do what is left of the comparison; returns a line for each arm that failed.

    `package`: where the verbs are.

    Raises:
        ValueError: if nothing can be compared: the task cannot be made, or has no headroom.
    """
    session = Session(config, Record(config), package)
    record = session.record
    record.write()
    left = sum(not record.is_trained(run) for run in record.asked)
    session.say(f"{config.task.name}: {left} of {len(record.asked)} runs to train, in {config.out}")
    headroom = measure_headroom(session)
    train_arms(session, headroom)
    evaluate_trained(session, headroom)
    Terminal().print(table(session.out, [*record.arms.values()], headroom, config.target_share))
    return failures([record.arms[run] for run in record.asked])


def evaluate_trained(session: Session, headroom: Headroom) -> None:
    """Evaluate what was trained and not evaluated yet."""
    record = session.record
    if not (left := record.unevaluated):
        return
    from verl_ext.comparison.students import evaluate_students  # torch, which nothing before it needs

    session.say(f"{len(left)} students to evaluate; vLLM starts")

    def tell(arm: Arm) -> None:
        session.say(f"evaluating {arm.run}, {left.index(arm) + 1} of {len(left)}")

    for run, error in evaluate_students(session.config, headroom, left, tell).items():
        record.set(run, FAILED, error)


def table(out: Path, arms: list[Arm], headroom: Headroom, share: float) -> Table:
    """One line a run. Samples are those of the first validation that reaches the target."""
    target = share * headroom.teacher
    title = f"base {headroom.base:.3f}, teacher {headroom.teacher:.3f}; target {share:g} x teacher = {target:.3f}"
    found = Table(title=title)
    for column in ("run", "kind", "status", "held-out accuracy", "samples", "samples to target"):
        found.add_column(column, justify="left" if column in ("run", "kind", "status") else "right")
    for arm in arms:
        points = read_curve(out / arm.run)
        reached = samples_to(points, target)
        last = points[-1] if points else None
        found.add_row(
            arm.run,
            arm.kind,
            arm.status,
            f"{last.accuracy:.3f}" if last else "-",
            str(last.samples) if last else "-",
            "-" if not last else "not reached" if reached is None else str(reached),
        )
    return found
