"""A teacher for the length of a `with`, without Ray: what `recipe.doctor` and `recipe.score` stand on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server import SGLangServer
from verl_ext.teacher.supervisor import Supervisor


@contextmanager
def serving_teacher(config: TeacherConfig, log_path: Path) -> Iterator[list[str]]:
    """URLs of a teacher that answers: an external one as it is; a managed one is started, kept alive, and stopped.

    Raises:
        ValueError, RuntimeError, TimeoutError: if it does not start.
    """
    if config.mode == "external":
        yield list(config.urls)
        return
    supervisor = Supervisor(SGLangServer(config, log_path))
    try:
        supervisor.start()
        yield [supervisor.wait_ready()]
    finally:
        supervisor.stop()
