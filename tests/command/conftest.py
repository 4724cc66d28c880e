"""Commands as they are typed: words, files, help, refusals. Whole configurations, and no engine."""

import pytest

from verl_ext.teacher import config as teacher_config


@pytest.fixture(autouse=True)
def machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test does not say where its teacher runs, it is the CPU, whatever machine this is."""
    monkeypatch.setattr(teacher_config, "device_of_machine", lambda: "cpu")
