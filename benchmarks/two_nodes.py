"""Student and teacher on two Ray nodes of this machine, in `pipeline.mode=stream`; the teacher's is killed under way.

    make demo && python -m benchmarks.two_nodes --json two_nodes.json

Kills every process of the teacher's node with SIGKILL after `KILLED` steps, sees how the run ends, starts the node
again, and sees whether the same command goes on to the end.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.arms.runs import DEMO, arguments, report

STEPS, KILLED = 12, 3
SECOND = "127.0.0.2"
BAR_S = 30.0
"""Within which a run whose teacher is gone ends."""
NODE = ("--object-store-memory=268435456", "--disable-usage-stats", "--block")
TIMEOUT_S = 600


@contextlib.contextmanager
def ray_node(environment: dict[str, str], log: Path, *words: str) -> Iterator[psutil.Process]:
    """A node that is up, for the length of a `with`."""
    ray = Path(sys.executable).with_name("ray")
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(ray), "start", *words, *NODE], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_for(lambda: "will now block forever" in log.read_text(), process)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(reached, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args} ended or took too long")
        time.sleep(0.1)


def kill_node(node: psutil.Process) -> None:
    """Every process of the node at once, as where its machine loses power."""
    for process in (*node.children(recursive=True), node):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def steps_of(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    text = file.read_text() if file.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def command(run: Path, address: str) -> list[str]:
    return [
        *(sys.executable, "-m", "recipe.on_policy_distillation", "platform=cpu", "task=demo", f"run_dir={run}"),
        *(f"student.path={DEMO}/models/base", f"data.train_files={DEMO}/data/train.parquet"),
        *(f"data.val_files={DEMO}/data/heldout.parquet", "data.train_batch_size=8", "trainer.save_freq=100"),
        *(f"trainer.total_training_steps={STEPS}", f"ray_kwargs.ray_init.address={address}"),
        *(f"ray_kwargs.ray_init.{key}=null" for key in ("num_cpus", "num_gpus", "object_store_memory")),
        *("pipeline.mode=stream", "pipeline.max_staleness=2", "teacher.ray_resource=teacher"),
        *("method.policy_loss.kind=truncated_importance_sampling", "teacher.sample_timeout_s=20"),
    ]


def started(run: Path, address: str, environment: dict[str, str]) -> subprocess.Popen:
    log = (run.parent / "console.log").open("a")
    return subprocess.Popen(command(run, address), env=environment, stdout=log, stderr=log)


def main() -> None:
    options = arguments("a Ray node with the teacher is killed and brought back", steps=STEPS)
    run = options.out / "run"
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | secret | {"RAY_agent_register_timeout_ms": "300000", "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    head = ("--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", "--num-cpus=16")
    # An address of its own, or the driver would take either node for its own; no CPU, so that nothing else runs there.
    second = (f"--address={address}", f"--node-ip-address={SECOND}", "--num-cpus=0", '--resources={"teacher": 1}')
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch,
        ray_node(environment, options.out / "head.log", *head, "--num-gpus=1", f"--temp-dir={scratch}"),
    ):
        with ray_node(environment, options.out / "node.log", *second) as node:
            first = started(run, address, environment)
            wait_for(lambda: len(steps_of(run)) >= KILLED, first)
            kill_node(node)
            killed = time.monotonic()
            first.wait(TIMEOUT_S)
            ended = time.monotonic() - killed
        finished = len(steps_of(run))
        said = [line for line in (options.out / "console.log").read_text().splitlines() if line.startswith("error: ")]
        print(f"after {finished} steps, {ended:.1f} s after its teacher's node: {said}")
        with ray_node(environment, options.out / "node.log", *second):
            again = started(run, address, environment)
            again.wait(TIMEOUT_S)
    rows = [row["step"] for row in steps_of(run)]
    print(f"the same command ended with status {again.returncode}; steps {rows}")
    complete = again.returncode == 0 and rows == list(range(1, STEPS + 1))
    report(
        [{"ended_s": ended, "finished": finished, "said": said, "steps": rows}],
        [("seconds_to_the_end", ended, BAR_S), ("not_resumed", float(not complete), 0.0)],
        options.json,
    )


if __name__ == "__main__":
    main()
