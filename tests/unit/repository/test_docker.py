"""The images can be built from this tree: what they copy exists, what they start from is pinned, nobody is root."""

import json
import re
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path

import pytest

from verl_ext.teacher.config import TeacherConfig

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(keyword, arguments) of each instruction, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in joined.splitlines()]


def arguments_of(path: Path, keyword: str) -> list[str]:
    return [arguments for word, arguments in instructions(path) if word == keyword]


def in_context(source: str) -> bool:
    """Whether .dockerignore, which names what is let in, lets `source` in."""
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    return any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in let_in)


def test_there_is_an_image_for_each_environment():
    assert [path.name for path in FILES] == ["teacher.Dockerfile", "trainer.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_base_is_pinned_and_has_the_locks_cuda(path):
    (base,) = arguments_of(path, "FROM")
    found = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-ubuntu24\.04@sha256:[0-9a-f]{64}", base)
    assert found, base
    lock = (ROOT / f"requirements/{path.stem}-cuda.txt").read_text()
    assert f"\ncuda-toolkit=={found[1]}." in lock


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_and_installed_exists(path):
    copied = [source for arguments in arguments_of(path, "COPY") for source in arguments.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert in_context(source), f".dockerignore keeps {source} out"
    installed = re.findall(r"-r (\S+)", " ".join(arguments_of(path, "RUN")))
    assert installed == [f"requirements/{path.stem}-cuda.txt"]
    assert set(installed) <= set(copied)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_comes_from_elsewhere_and_no_secret_is_kept(path):
    text = " ".join(f"{word} {arguments}" for word, arguments in instructions(path))
    for forbidden in (":latest", "curl", "wget", "git clone", "ADD ", "https://", "index-url"):
        assert forbidden not in text, forbidden
    for apt in re.findall(r"apt-get install[^&]*", text):
        assert "--no-install-recommends" in apt
    settings = " ".join(arguments_of(path, "ENV") + arguments_of(path, "ARG"))
    assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", settings)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_user_is_not_root(path):
    user = arguments_of(path, "USER")[-1]
    assert user.isdigit()
    assert user != "0"
    assert f"--uid {user}" in " ".join(arguments_of(path, "RUN"))
    words = [word for word, _ in instructions(path)]
    assert words.index("USER") < words.index("CMD")


def test_the_teacher_listens_on_loopback_and_is_asked_for_its_health():
    path = ROOT / "docker/teacher.Dockerfile"
    (check,) = arguments_of(path, "HEALTHCHECK")
    assert "/health" in check
    assert "127.0.0.1" in check
    (entry,) = arguments_of(path, "ENTRYPOINT")
    python, flag, module, *overrides = json.loads(entry)
    assert (python, flag, module) == ("python", "-m", "recipe.serve_teacher")
    known = {field.name: field.default for field in fields(TeacherConfig)}
    keys = [
        override.split("=")[0].removeprefix("teacher.") for override in overrides if override.startswith("teacher.")
    ]
    assert set(keys) <= set(known)
    assert "host" not in keys
    assert known["host"] == "127.0.0.1"
    assert f"RUN python3.12 -m venv {Path(str(known['python'])).parents[1]} " in path.read_text()  # its default python
