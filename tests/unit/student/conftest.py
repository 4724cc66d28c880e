from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, whose output head is tied to the embedding."""
    from local_run import write_student

    return write_student(tmp_path_factory.mktemp("base") / "model")
