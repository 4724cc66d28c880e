"""A student that teaches itself, and a folder for spoilt copies."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fake_sglang import FakeSGLang


class Pair(NamedTuple):
    """A tiny student, its rows, and a folder to spoil copies in."""

    student: Path
    rows: Path
    scratch: Path
    serve: Callable[[FakeSGLang], FakeSGLang]
    """Starts an external teacher that ends with the test."""

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.student, self.scratch / name))

    def write_rows(self, first: dict[str, Any], others: dict[str, Any]) -> Path:
        """A file of 32 rows."""
        pq.write_table(pa.Table.from_pylist([first, *[others] * 31]), self.scratch / "written.parquet")
        return self.scratch / "written.parquet"
