"""What several unit tests of the teacher share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fake_sglang import FakeSGLang, serve
from stored_scores import GIB

from verl_ext.teacher import config as teacher_config
from verl_ext.teacher.client import pool as pool_module
from verl_ext.teacher.store.store import ScoreStore


@pytest.fixture(autouse=True)
def machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test does not say where its teacher runs, it is the CPU, whatever machine this is."""
    monkeypatch.setattr(teacher_config, "device_of_machine", lambda: "cpu")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ScoreStore]:
    opened = ScoreStore(tmp_path / "store", GIB)
    yield opened
    opened.close()


@pytest_asyncio.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeSGLang]:
    """Up, for a pool that waits little and has no key."""
    monkeypatch.setattr(pool_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    fake = FakeSGLang()
    runner = await serve(fake)
    yield fake
    await runner.cleanup()


@pytest.fixture(scope="module")
def model() -> Any:
    from tiny_teacher import make_model  # torch: only those pay that use it

    return make_model()


@pytest.fixture
def folder(tmp_path: Path, model: Any) -> Path:
    target = tmp_path / "model"
    model.save_pretrained(target)
    (target / "tokenizer.json").write_text("{}")
    return target


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hashes.json"


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter for which SGLang 9.9.9 is installed."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 9.9.9\n")
    script.chmod(0o755)
    return str(script)
