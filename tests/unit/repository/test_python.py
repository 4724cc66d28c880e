"""One range of Python versions, wherever one is named."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOWEST = 11
PLACES = ("Makefile", "docker/trainer.Dockerfile", "docker/teacher.Dockerfile", "docs/install.md", "README.md")


def test_the_lowest_version_is_the_one_that_lints_and_types_are_checked_for():
    assert PROJECT["project"]["requires-python"] == f">=3.{LOWEST},<3.13"  # the upper bound is verl 0.9.1's own
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py3{LOWEST}"
    assert PROJECT["tool"]["pyright"]["pythonVersion"] == f"3.{LOWEST}"


@pytest.mark.parametrize("place", PLACES)
def test_every_interpreter_named_is_in_the_range(place):
    found = {int(minor) for minor in re.findall(r"[Pp]ython ?3\.(\d+)", (ROOT / place).read_text())}
    assert found <= {LOWEST, 12}
    assert found or place == "README.md"
