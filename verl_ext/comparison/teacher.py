"""One teacher server for several training runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.supervisor import serving_teacher


@contextmanager
def shared_teacher(config: TeacherConfig, log: Path) -> Iterator[list[str]]:
    """The overrides of a training that name it; it is started, kept alive, and stopped at the end.

    Raises:
        ValueError, RuntimeError, TimeoutError: if it does not start.
    """
    with serving_teacher(config, log) as urls:
        yield ["teacher.mode=external", f"teacher.urls=[{','.join(urls)}]"]
