"""Work that is done in chunks: a bar on a terminal, one line a chunk in a log file."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from verl_ext.run.terminal import Terminal
from verl_ext.run.visible import print


class ChunkProgress:
    """Counts rows and tokens. Use it as a context manager."""

    def __init__(self, title: str, total: int, shown: bool = True) -> None:
        """`total`: rows to come. Only counts where it is not `shown`."""
        self._title, self._total, self._shown = title, total, shown
        self._started = time.perf_counter()
        self._rows = self._tokens = 0
        name, rate = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[rate]}")
        self._bar = Progress(name, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=Terminal())
        self._bar.disable = not (shown and self._bar.console.is_terminal)
        self._task = self._bar.add_task(title, total=total, rate="")

    def advance(self, rows: int, tokens: int) -> None:
        """A chunk is done."""
        self._rows, self._tokens = self._rows + rows, self._tokens + tokens
        rate = f"{self._tokens:,} tokens, {self._tokens / (time.perf_counter() - self._started):,.0f} tokens/s"
        self._bar.update(self._task, completed=self._rows, rate=rate)
        if self._shown and self._bar.disable:
            print(f"{self._title}: {self._rows:,}/{self._total:,} rows, {rate}", flush=True)

    def took(self) -> dict[str, float]:
        """The cost so far: `rows`, `tokens`, `seconds`, `tokens_per_second`."""
        seconds = time.perf_counter() - self._started
        rate = self._tokens / seconds
        return {"rows": self._rows, "tokens": self._tokens, "seconds": seconds, "tokens_per_second": rate}

    def __enter__(self) -> "ChunkProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
