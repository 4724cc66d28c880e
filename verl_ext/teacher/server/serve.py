"""A teacher in the foreground, started by hand, that other commands train or score with."""

import contextlib
import time
from pathlib import Path

from verl_ext.run.visible import print
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import SGLangServer
from verl_ext.teacher.server.prometheus import MetricsServer
from verl_ext.teacher.server.supervisor import Supervisor

READY = """teacher ready after {seconds:.0f} s: {url}
log: {log_path}
try it:
  curl {url}/generate -H 'Content-Type: application/json'{key} -d '{body}'
train with it: teacher.mode=external 'teacher.urls=[{url}]'
Ctrl-C stops it."""
EXAMPLE_BODY = (
    '{"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 0}, "return_logprob": true, "logprob_start_len": 0}'
)


def serve(config: TeacherConfig, log_path: Path) -> None:
    """Run the server until it stays down or we are interrupted."""
    started = time.monotonic()
    print(f"starting SGLang ({config.model_path} on {config.device}), log: {log_path}", flush=True)
    if config.trust_remote_code:
        print("warning: teacher.trust_remote_code=true: Python code that comes with the model runs as you", flush=True)
    with contextlib.ExitStack() as stack:
        supervisor = Supervisor(SGLangServer(config, log_path))
        if config.metrics_port >= 0:
            metrics = stack.enter_context(contextlib.closing(MetricsServer(supervisor)))
            print(f"metrics: {metrics.url}", flush=True)
        stack.callback(supervisor.stop)
        supervisor.start()
        url = supervisor.wait_ready()
        key = f' -H "Authorization: Bearer ${config.api_key_env}"' if supervisor.server.has_api_key else ""
        seconds = time.monotonic() - started
        print(READY.format(seconds=seconds, url=url, log_path=log_path, key=key, body=EXAMPLE_BODY), flush=True)
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
