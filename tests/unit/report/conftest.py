"""Runs and pages that the tests of this folder read."""

from pathlib import Path

import pytest
from reported import write_comparison, write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with every file; not to be changed."""
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder; not to be changed."""
    return write_comparison(tmp_path_factory.mktemp("comparison"))
