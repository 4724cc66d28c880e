"""Kill, stop and starve one process of a training run after the other, and see what its user sees.

    python -m benchmarks.chaos --json chaos.json                       # every fault in every pipeline.mode: hours
    python -m benchmarks.chaos --faults "engine core,driver" --modes sync

Real engines, the demo's model and rows. A seeded schedule: in each mode the faults come in a drawn order, each some
steps and up to two seconds after the one before, into the same run, which the same command resumes where it has ended.
Rows that fail and the clock, which asks for a C compiler, have runs of their own, at the end. `knew` is the time until
the console said something new about it, `recover` that until the next step ended; of a run that has ended, from the
same command on, start included. Not counted as lost are samples of a step that is made again. Looked at from outside,
after each run that has ended: processes, its folder for temporary files and its shared memory.
"""

import argparse
import dataclasses
import json
import random
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arms.chaos_faults import FAILING_REWARD, Fault
from benchmarks.arms.chaos_run import ChaosRun, Outcome
from benchmarks.arms.runs import DEMO, report

SET_CLOCK = "clock"
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
ENDS, GOES_ON, LOST = "ends", "goes on", "does not go on"
OWN_REWARD = (
    *("reward.num_workers=1", f"reward.custom_reward_function.path={FAILING_REWARD}"),
    "method.guards.max_failed_share=1",  # a step has eight prompts
)
FAULTS = (
    Fault("engine core", "VLLM::EngineCore", KILL, ENDS),
    Fault("vLLM's worker", "VLLM::Worker", KILL, ENDS),
    Fault("vLLM's server", "ray::FinishReasonServer", KILL, ENDS),
    Fault("agent loop", "ray::DistillationAgentLoopWorker", KILL, ENDS),
    Fault("queue's controller", "ray::TransferQueueController", KILL, ENDS),
    Fault("queue's storage", "ray::SimpleStorageUnit", KILL, ENDS),
    Fault("teacher's actor", "ray::ManagedTeacher", KILL, ENDS),
    Fault("teacher's scheduler", "sglang::scheduler", KILL, GOES_ON),
    Fault("trainer", "ray::Runner", KILL, ENDS),
    Fault("actor's rank", "ray::WorkerDict", KILL, ENDS),
    Fault("raylet", "raylet", KILL, ENDS),
    Fault("gcs_server", "gcs_server", KILL, ENDS),
    Fault("driver", "driver", KILL, ENDS),
    Fault("what workers are forked from", "warm.py", KILL, GOES_ON),
    Fault("engine core stopped", "VLLM::EngineCore", STOP, GOES_ON, undone_after_s=15),
    Fault("agent loop stopped", "ray::DistillationAgentLoopWorker", STOP, GOES_ON, undone_after_s=15),
    Fault("network lost", "driver", "network", GOES_ON, undone_after_s=10),
    Fault("stored scores overwritten", "driver", "scores", ENDS),
    Fault("no memory for a rank", "ray::WorkerDict", "memory", ENDS),
    Fault("newest checkpoint cut off", "driver", "checkpoint", ENDS),
    Fault("disk full", "ray::Runner", "disk full", ENDS),
    Fault("run folder deleted", "driver", "deleted", ENDS),
    Fault("optimizer not finite", "driver", "not finite", ENDS),
    Fault("rows that always fail", "driver", "rows", GOES_ON, 20, OWN_REWARD),
    Fault("clock jump", "driver", SET_CLOCK, GOES_ON, 15),
)
TRUNCATED = ("method.policy_loss.kind=truncated_importance_sampling", "method.student_logprobs=current")
MODES = {
    "sync": (),
    "one_step_off": ("pipeline.mode=one_step_off",),
    "stream": ("pipeline.mode=stream", "pipeline.max_staleness=2", *TRUNCATED),
}
KNEW_S = 30.0


def schedule(faults: Sequence[str], modes: Sequence[str], seed: int) -> list[tuple[str, Fault, float]]:
    """(mode, fault, seconds after a step), the same for the same seed."""
    draw, found = random.Random(seed), []
    chosen = [fault for fault in FAULTS if not faults or fault.name in faults]
    for mode in modes:
        drawn = sorted(draw.sample(chosen, len(chosen)), key=needs)
        found += [(mode, fault, round(draw.uniform(0.0, 2.0), 2)) for fault in drawn]
    return found


def needs(fault: Fault) -> tuple[tuple[str, ...], bool]:
    """What a run must be started with to meet a fault; the same for most."""
    return fault.overrides, fault.act == SET_CLOCK


def show(outcomes: Sequence[Outcome]) -> None:
    table = Table(title="faults, one after the other")
    for column in ("mode", "fault", "outcome", "knew, s", "recover, s", "lost", "left over", "last words"):
        table.add_column(column, justify="right" if column.endswith(" s") or column == "lost" else "left")
    for each in outcomes:
        table.add_row(
            *(each.mode, each.fault, each.outcome, seconds(each.knew_s), seconds(each.recover_s), str(each.lost)),
            *(", ".join(each.left_over) or "nothing", each.words),
        )
    Console(width=240).print(table)


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def bars(outcomes: Sequence[Outcome]) -> list[tuple[str, float, float]]:
    expected = {fault.name: fault.expected for fault in FAULTS}
    return [
        (
            "seconds_until_known",
            max((each.knew_s for each in outcomes if each.knew_s is not None), default=0.0),
            KNEW_S,
        ),
        ("samples_lost", float(sum(each.lost for each in outcomes)), 0.0),
        ("hangs", float(sum(each.outcome == "hangs" for each in outcomes)), 0.0),
        ("other_outcomes", float(sum(each.outcome != expected[each.fault] for each in outcomes)), 0.0),
        ("left_over", float(sum(len(each.left_over) for each in outcomes)), 0.0),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="", help=f"of {', '.join(fault.name for fault in FAULTS)}; default: all")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {', '.join(MODES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the moments")
    parser.add_argument("--out", type=Path, help="folder for the runs; default: a new temporary one")
    parser.add_argument("--demo", type=Path, default=DEMO, help="folder with data/ and models/base, as of `make demo`")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    options.faults = [name.strip() for name in options.faults.split(",") if name.strip()]
    options.modes = [name.strip() for name in options.modes.split(",")]
    for key, names, known in (
        ("--faults", options.faults, [fault.name for fault in FAULTS]),
        ("--modes", options.modes, MODES),
    ):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"{key}: no {', '.join(unknown)}; there are {', '.join(known)}")
    options.out = options.out or Path(tempfile.mkdtemp(prefix="benchmark-"))
    return options


def main() -> None:
    options = parse()
    outcomes: list[Outcome] = []
    run: ChaosRun | None = None
    has: tuple[tuple[str, ...], bool] | None = None
    try:
        for mode, fault, delay in schedule(options.faults, options.modes, options.seed):
            if run is not None and (run.mode != mode or has != needs(fault)):
                run.close()
                run = None
            if run is None:
                has = needs(fault)
                folder, overrides = options.out / f"{len(outcomes):02}-{mode}", (*MODES[mode], *fault.overrides)
                run = ChaosRun(mode, folder, overrides, options.demo, faults_clock=fault.act == SET_CLOCK)
            try:
                outcomes.append(run.suffer(fault, delay))
            except RuntimeError as error:  # no step any more: the next fault gets a run of its own
                outcomes.append(Outcome(mode, fault.name, LOST, None, None, 0, [], str(error)))
                run.close()
                run = None
            print(f"{mode}, {fault.name}: {outcomes[-1]}", flush=True)
            if options.json:
                options.json.write_text(json.dumps([dataclasses.asdict(each) for each in outcomes], indent=2))
    finally:
        if run is not None:
            run.close()
        show(outcomes)
    rows: list[dict[str, Any]] = [dataclasses.asdict(each) for each in outcomes]
    report(rows, bars(outcomes), options.json)


if __name__ == "__main__":
    main()
