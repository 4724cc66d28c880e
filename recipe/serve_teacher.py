"""Serve a teacher in the foreground until Ctrl-C.

python -m recipe.serve_teacher teacher=bf16 teacher.model_path=Qwen/Qwen3-0.6B
python -m recipe.serve_teacher teacher=fp8 teacher.model_path=Qwen/Qwen3-30B-A3B-Instruct-2507
python -m recipe.serve_teacher --cfg job          # every setting with its default
"""

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import SGLangServer
from verl_ext.teacher.server.prometheus import MetricsServer
from verl_ext.teacher.server.supervisor import Supervisor

HELP = """Serve a teacher in the foreground until Ctrl-C.

Change any setting with key=value; verl_ext/teacher/config.py says what each means.
teacher=NAME takes one of the sets in configs/teacher.

$CONFIG
Example: python -m recipe.serve_teacher teacher.model_path=Qwen/Qwen3-0.6B teacher.port=30000
"""

READY = """teacher ready after {seconds:.0f} s: {url}
log: {log_path}
try it:
  curl {url}/generate -H 'Content-Type: application/json'{key} -d '{body}'
train with it: teacher.mode=external 'teacher.urls=[{url}]'
Ctrl-C stops it."""
EXAMPLE_BODY = (
    '{"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 0}, "return_logprob": true, "logprob_start_len": 0}'
)


def settings_node() -> dict[str, Any]:
    """The verb's settings with their defaults, and Hydra told to leave the folder and the log alone."""
    teacher = OmegaConf.structured(TeacherConfig)
    OmegaConf.set_readonly(teacher, None)  # OmegaConf makes a frozen dataclass read-only, overrides included
    quiet = [{"override hydra/job_logging": "disabled"}, {"override hydra/hydra_logging": "disabled"}]
    return {
        "defaults": ["_self_", {"teacher": None}, *quiet],
        "teacher": teacher,
        "log_path": "teacher.log",
        "hydra": {"run": {"dir": "."}, "output_subdir": None, "help": {"template": HELP}},
    }


ConfigStore.instance().store(name="serve_teacher", node=settings_node())


def serve(config: TeacherConfig, log_path: Path) -> None:
    """Run the server until it stays down or we are interrupted."""
    started = time.monotonic()
    print(f"starting SGLang ({config.model_path} on {config.device}), log: {log_path}", flush=True)
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


@hydra.main(version_base=None, config_path="../configs", config_name="serve_teacher")
def main(settings: DictConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops the server as Ctrl-C does
    try:
        config = OmegaConf.to_object(settings.teacher)
        assert isinstance(config, TeacherConfig)
        serve(config, Path(settings.log_path))
    except (ValueError, RuntimeError, TimeoutError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("teacher stopped")


if __name__ == "__main__":
    main()
