"""The locks hold what pyproject.toml and verl ask for, the two environments agree, and messages name real targets."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from requirements import lock

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "requirements"
GPU = ("trainer", "teacher")
PIN = re.compile(r'([A-Za-z0-9._-]+)==([A-Za-z0-9._!+]+)( ; platform_machine == "(?:x86_64|aarch64)")?')


def pins(name: str) -> dict[str, Version]:
    found = [pin.split("==") for pin in lock.read_pins(REQUIREMENTS / name)]
    return {canonicalize_name(package): Version(version) for package, version in found}


def inputs(name: str) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (REQUIREMENTS / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def assert_met(requirement: Requirement, locked: dict[str, Version]) -> None:
    name = canonicalize_name(requirement.name)
    assert name in locked, f"{requirement} is not in the lock"
    assert requirement.specifier.contains(locked[name], prereleases=True), f"{requirement}, locked {locked[name]}"


@pytest.mark.parametrize("name", GPU)
def test_a_lock_holds_pins_and_no_host_or_path(name):
    lines = (REQUIREMENTS / f"{name}-cuda.txt").read_text().splitlines()
    body = [line for line in lock.logical_lines("\n".join(lines)) if not line.startswith("#")]
    matches = [PIN.fullmatch(line) for line in body]
    assert all(matches), [line for line, match in zip(body, matches, strict=True) if not match]
    assert not [line for line in lines if "://" in line or "index" in line or " /" in line]
    names = [canonicalize_name(match[1]) for match in matches if match]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", GPU)
def test_a_lock_is_what_its_input_asks_for(name):
    for requirement in inputs(f"{name}-cuda.in"):
        assert_met(requirement, pins(f"{name}-cuda.txt"))


def test_the_trainers_lock_holds_what_pyproject_depends_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["gpu"]]:
        assert_met(Requirement(text), pins("trainer-cuda.txt"))


@pytest.mark.parametrize("extra", ["verl-core", "vllm"])
def test_the_trainers_lock_holds_what_verl_names(extra):
    asked = [Requirement(text) for text in metadata.requires("verl") or []]
    asked = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": extra})]
    unused = {"verl", "mbridge"}  # itself with other extras; Megatron's
    for requirement in asked:
        if requirement.name not in unused:
            assert_met(requirement, pins("trainer-cuda.txt"))


def test_the_environments_agree():
    trainer, teacher = pins("trainer-cuda.txt"), pins("teacher-cuda.txt")
    assert trainer["verl"] == pins("trainer-cpu.txt")["verl"]
    assert teacher["sglang"] == pins("teacher-cpu.txt")["sglang"]
    development = pins("dev.txt")  # installed on top
    assert {name: trainer[name] for name in trainer.keys() & development} == {
        name: development[name] for name in trainer.keys() & development
    }
    # docs/install.md: what breaks when these move.
    assert trainer["fastapi"] < Version("0.137")
    assert trainer["kernels"] < Version("0.15")
    assert teacher["kernels"] < Version("0.15")


def test_make_the_locks_and_the_images_name_one_python():
    version = "3.12"
    assert f"GPU_PYTHON ?= python{version}" in (ROOT / "Makefile").read_text()
    assert f'PYTHON = "{version}"' in (REQUIREMENTS / "lock.py").read_text()
    for name in GPU:
        assert f"python{version} -m venv" in (ROOT / f"docker/{name}.Dockerfile").read_text()
        assert f"# Python {version}, " in (REQUIREMENTS / f"{name}-cuda.txt").read_text()


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    folders = (
        "docs",
        "recipe",
        "verl_ext",
        "benchmarks",
        "examples",
        "requirements",
        "docker",
        "data",
        "tests",
        "configs",
    )
    files = [*ROOT.glob("*.md"), ROOT / ".ci/run"]
    files += [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    files = [file for file in files if file.suffix in {".md", ".py", ".txt", ".sh", ".yaml", ".Dockerfile", ""}]
    named = {}
    for file in files:
        text = file.read_text()
        found = re.findall(r"(?:`|\()make ([a-z][a-z-]*)", text)
        found += re.findall(r"^(?: {4})?make ([a-z][a-z-]*)", text, re.MULTILINE) if file.suffix in {".md", ""} else []
        named |= {f"{file.relative_to(ROOT)}: make {target}": target for target in found}
    assert {"demo", "setup", "setup-gpu", "test"} <= set(named.values())
    assert not [where for where, target in named.items() if target not in targets]


@pytest.mark.parametrize(
    ("made_for_gpus", "target", "says"),
    [
        (False, ".venv/.ready-gpu", "is the CPU's"),
        (False, ".venv-teacher/.ready-gpu", "is the CPU's"),
        (True, ".venv/.ready", "is for GPUs"),
        (True, ".venv-teacher/.ready", "is for GPUs"),
    ],
)
def test_an_environment_of_the_other_kind_is_left_alone(tmp_path, made_for_gpus, target, says):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(REQUIREMENTS, tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    folder = tmp_path / target.split("/")[0]
    folder.mkdir()
    if made_for_gpus:
        (folder / ".gpu").touch()
    command = ["make", target, "PYTHON=false", "GPU_PYTHON=false"]  # nothing may be installed
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert f"error: {folder.name} {says}" in ended.stderr
    assert f"rm -r {folder.name}" in ended.stderr
