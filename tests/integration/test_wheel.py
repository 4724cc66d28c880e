"""The wheel, installed into an empty environment and used from another folder."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

from verl_ext.run.command import VERBS

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
SOURCES = ("verl_ext", "recipe", "configs", "data", "pyproject.toml", "README.md", "LICENSE")
NEEDED = (
    *(
        "hydra-core",
        "omegaconf",
        "antlr4-python3-runtime",
        "pyyaml",
        "packaging",
        "rich",
        "pygments",
        "jinja2",
        "markupsafe",
    ),
    *("markdown-it-py", "mdurl", "numpy", "pyarrow", "orjson", "verl"),
    *("aiohttp", "aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "idna", "multidict", "propcache", "yarl"),
    *("psutil", "typing_extensions"),
)
"""What the light verbs import, and verl for its YAML. No torch, transformers, Ray, vLLM or datasets."""


def run(*command: str | Path, folder: Path, status: int = 0, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VERL"))}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=clean | environment, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder, folder / "source")
    run(sys.executable, "-m", "pip", *build, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of commands of an environment that holds the wheel and links to `NEEDED`, nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, folder=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in NEEDED:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(str(found.locate_file(top)))
    return folder / "bin"


def test_versions_and_help(installed, tmp_path):
    version = distribution("verl").version
    told = run(installed / "verl-opd", "--version", folder=tmp_path).splitlines()
    assert told[1:] == [f"verl {version}", "vllm is not installed", "torch is not installed"]
    assert told[0].startswith("verl-opd 0.")
    overview = run(installed / "verl-opd", "--help", folder=tmp_path)
    for verb in VERBS:
        assert f"\n  {verb} " in overview
        text = run(installed / "verl-opd", verb, "--help", folder=tmp_path)
        assert f"    verl-opd {verb}" in text
        assert "recipe." not in text
        assert len(text.splitlines()) <= 80
        assert max(map(len, text.splitlines())) <= 100
    assert [*tmp_path.iterdir()] == []


def test_a_plan(installed, tmp_path):
    words = ("model=qwen3_4b_from_30b", "hardware=gb10_128gb", "update=lora", "teacher=fp8")
    assert "\nfits\n" in run(installed / "verl-opd", "plan", "memory", *words, folder=tmp_path)
    wrong = run(installed / "verl-opd", "plan", "memory", "hardware=gb10", folder=tmp_path, status=1)
    assert wrong == "error: hardware=gb10: no such choice; did you mean hardware=gb10_128gb?\n"


def test_data(installed, tmp_path):
    (tmp_path / "mine.txt").write_text("".join(f"Sentence number {index}.\n" for index in range(20)))
    words = ("source=file", "sentences=mine.txt", "out_dir=out")
    run(installed / "verl-opd", "data", *words, folder=tmp_path)
    assert {"train.parquet", "heldout.parquet", "manifest.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
