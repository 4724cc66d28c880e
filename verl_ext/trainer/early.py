"""Processes that verl starts one after the other, each for seconds of imports, started while it waits for another.

Ray gives every actor a process of its own, which imports before it does anything; processes that ran a task are not
used again for an actor. So the actor itself is started early, empty, and built when verl asks for it.
"""

from typing import Any

import ray


class EarlyActor:
    """An actor class as verl uses one, `actor_class.options(...).remote(...)`, whose process is under way already.

    Asked for with other options, or a second time, it is an actor like any other.
    """

    def __init__(self, actor_class: type, *, indifferent: tuple[str, ...], **options: Any) -> None:
        """`options`: those that verl will ask for, beside the `indifferent`, which may be any."""
        self._class, self._options, self._indifferent = actor_class, options, indifferent
        self._handle: Any = as_shell(actor_class).options(**options).remote()

    def options(self, **asked: Any) -> Any:
        if self._handle is not None and self._options == {
            key: value for key, value in asked.items() if key not in self._indifferent
        }:
            return self
        if self._handle is not None:
            ray.kill(self._handle)
            self._handle = None
        return ray.remote(self._class).options(**asked)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """The actor's handle, when it is built; an error of its `__init__` is raised here."""
        handle, self._handle = self._handle, None
        ray.get(handle.build.remote(*args, **kwargs))
        return handle


def as_shell(actor_class: type) -> Any:
    """A Ray actor that imports what `actor_class` needs, and becomes one by `build`."""

    class Shell(actor_class):
        def __init__(self) -> None: ...

        def build(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    Shell.__name__ = Shell.__qualname__ = actor_class.__name__  # the name of its process
    return ray.remote(Shell)
