"""A teacher in the foreground, started by hand, that other commands train or score with."""

import contextlib
import json
import time
from pathlib import Path

from verl_ext.run.visible import print
from verl_ext.teacher.client.protocol import Span
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.server.prometheus import MetricsServer
from verl_ext.teacher.server.supervisor import Supervisor

READY = """teacher ready after {seconds:.0f} s: {url}
log: {log_path}
try it:
  curl {url}{path} -H 'Content-Type: application/json'{key} -d '{body}'
train with it: teacher.engine={engine} teacher.mode=external 'teacher.urls=[{url}]'
Ctrl-C stops it."""
EXAMPLE = Span(first=0, last=1, ids=[1, 2, 3], start=0)


def serve(config: TeacherConfig, log_path: Path) -> None:
    """Run the server until it stays down or we are interrupted."""
    started = time.monotonic()
    engine = engine_of(config.engine)
    print(f"starting {engine.title} ({config.model_path} on {config.device}), log: {log_path}", flush=True)
    if config.trust_remote_code:
        print("warning: teacher.trust_remote_code=true: Python code that comes with the model runs as you", flush=True)
    with contextlib.ExitStack() as stack:
        supervisor = Supervisor(ManagedServer(config, log_path))
        if config.metrics_port >= 0:
            metrics = stack.enter_context(contextlib.closing(MetricsServer(supervisor)))
            print(f"metrics: {metrics.url}", flush=True)
        stack.callback(supervisor.stop)
        supervisor.start()
        url = supervisor.wait_ready()
        key = f' -H "Authorization: Bearer ${config.api_key_env}"' if supervisor.server.has_api_key else ""
        seconds = time.monotonic() - started
        body, path = json.dumps(engine.body([EXAMPLE], [None])), engine.path
        ready = READY.format(
            seconds=seconds, url=url, path=path, log_path=log_path, key=key, body=body, engine=config.engine
        )
        print(ready, flush=True)
        report_until_down(supervisor)
        raise RuntimeError(f"the teacher {supervisor.status().last_error}; {supervisor.server.log_tail()}")


def report_until_down(supervisor: Supervisor) -> None:
    """Print each change of the teacher's state; return when it stays down."""
    known = supervisor.status()
    while known.state != "down":
        time.sleep(0.5)
        status = supervisor.status()
        if (status.state, status.restarts) != (known.state, known.restarts):
            reason = f": {status.last_error}" if status.state != "up" else ""
            print(f"teacher {status.state} (restarts: {status.restarts}){reason}", flush=True)
        known = status
