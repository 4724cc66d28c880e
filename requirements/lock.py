"""Make the locks of the GPU environments: `python requirements/lock.py`, with uv 0.13 on the PATH (`pip install uv`).

Each is resolved for x86_64 and aarch64 (GB10, GH200); a pin that only one of them has carries a marker. Wheels only,
but for one package. Versions that a lock has stay; without it they start from the CPU's lock, which the tests run on.

`python requirements/lock.py --hashes [LOCK.txt ...]` writes the hashes of these locks' pins, or of all, without uv.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

HERE = Path(__file__).resolve().parent
PYTHON = "3.12"  # Ubuntu 24.04's and DGX OS 7's
MACHINES = ("x86_64", "aarch64")
GLIBC = "manylinux_2_35"  # Ubuntu 22.04 and later; llguidance's wheels need 2.31
SOURCE_ONLY = "antlr4-python3-runtime"  # pure Python, Hydra's; publishes no wheel
INPUTS = {
    "trainer": ["../pyproject.toml", "trainer-cuda.in", "--extra", "gpu", "--constraint", "dev.txt"],
    "teacher": ["teacher-cuda.in", "--override", "teacher-cuda.override"],
}
HEADER = """\
# Made by requirements/lock.py from {sources}: edit those.
# Python {python}, Linux, CUDA 13.0. Installed with --no-deps.
"""
HASH = " --hash=sha256:"
JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691
TIMEOUT_S = 60


def resolve(inputs: list[str], machine: str, seed: list[str]) -> list[str]:
    """Pins for one machine, `name==version`, sorted by name.

    Raises:
        subprocess.CalledProcessError: if there is no solution; uv has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        out.write_text("\n".join(seed) + "\n")  # uv keeps the versions that its output file already has
        command = ["uv", "pip", "compile", *inputs, "--config-file", "uv.toml", "--output-file", str(out)]
        command += ["--python-version", PYTHON, "--python-platform", f"{machine}-{GLIBC}", "--only-binary", ":all:"]
        command += ["--no-binary", SOURCE_ONLY, "--no-header", "--no-annotate"]
        command += ["--quiet", "--no-python-downloads"]
        subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
        return out.read_text().split()


def logical_lines(text: str) -> list[str]:
    """The lines of a lock, continued ones joined and without their hashes: comments, empty lines, pins with markers."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [line if line.startswith("#") else line.split(HASH)[0].rstrip() for line in joined.splitlines()]


def read_pins(path: Path) -> list[str]:
    """The pins of a lock, without comments, markers and hashes."""
    lines = logical_lines(path.read_text())
    return [line.split(";")[0].strip() for line in lines if line and not line.startswith("#")]


def lock(name: str) -> Path:
    """Write one environment's lock, without hashes so far."""
    path = HERE / f"{name}-cuda.txt"
    seed = read_pins(path if path.is_file() else HERE / f"{name}-cpu.txt")
    sets = {machine: resolve(INPUTS[name], machine, seed) for machine in MACHINES}
    lines = []
    for pin in sorted({pin for pins in sets.values() for pin in pins}):
        machines = [machine for machine in MACHINES if pin in sets[machine]]
        marker = "" if len(machines) == len(MACHINES) else f' ; platform_machine == "{machines[0]}"'
        lines.append(pin + marker)
    sources = ", ".join(Path(word).name for word in INPUTS[name] if not word.startswith("--") and "." in word)
    path.write_text(HEADER.format(sources=sources, python=PYTHON) + "\n".join(lines) + "\n")
    return path


def pythons(path: Path) -> list[str]:
    """The versions of Python that a lock is installed with: one on GPUs, else all that pyproject.toml allows."""
    if path.stem.endswith("-cuda"):
        return [PYTHON]
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    return [f"3.{minor}" for minor in range(30) if f"3.{minor}.0" in allowed]


@cache
def tags(python: str, machine: str) -> frozenset[Tag]:
    """The tags of the wheels that CPython takes on Linux with glibc, old or yet to come."""
    version = tuple(int(number) for number in python.split("."))
    interpreter = "cp" + python.replace(".", "")
    names = ["linux", "manylinux1", "manylinux2010", "manylinux2014"]
    names += [f"manylinux_2_{minor}" for minor in range(5, 100)]
    platforms = [f"{name}_{machine}" for name in names]
    found = frozenset(cpython_tags(version, abis=[interpreter], platforms=platforms))
    return found.union(compatible_tags(version, interpreter=interpreter, platforms=platforms))


def fitting(pin: Requirement, files: dict[str, str], python: str, machine: str) -> set[str]:
    """The hashes of a pin's files (name to hash) that pip can take there: of wheels, or of the source if there is none.

    Several, where pip's choice depends on the glibc.
    """
    wheels, sources = set(), set()
    for name, digest in files.items():
        try:
            if name.endswith(".whl"):
                _, version, _, of_file = parse_wheel_filename(name)
                found = wheels if of_file & tags(python, machine) else None
            else:
                _, version = parse_sdist_filename(name)
                found = sources
        except (InvalidWheelFilename, InvalidSdistFilename):
            continue  # an .egg, an .exe: pip passes over them too
        if found is not None and pin.specifier.contains(version, prereleases=True):
            found.add(digest)
    return wheels or sources


def hashes(pin: Requirement, files: dict[str, str], versions: list[str]) -> tuple[list[str], list[str]]:
    """The hashes of a pin, sorted, and the machines that its marker allows and that have no file.

    Raises:
        ValueError: if no machine has one.
    """
    found, without = set(), []
    for python in versions:
        for machine in MACHINES:
            here = {"platform_machine": machine, "python_version": python, "python_full_version": f"{python}.0"}
            here |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
            if pin.marker is None or pin.marker.evaluate(here):
                fits = fitting(pin, files, python, machine)
                found |= fits
                without += [] if fits else [f"Python {python} on {machine}"]
    if not found:
        raise ValueError(f"the index has no file of {pin} for Linux and Python {', '.join(versions)}")
    return sorted(found), without


def index_url() -> str:
    """The index that pip is configured for, else pip's own."""
    from pip._internal.models.index import PyPI  # pip has no public name for it

    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return (os.environ.get("PIP_INDEX_URL") or configured or PyPI.simple_url).rstrip("/")


@cache
def files_of(name: str, index: str) -> dict[str, str]:
    """Every file that the index has of a package: name to sha256.

    Raises:
        urllib.error.URLError: if the index cannot be reached, or does not have the package.
        ValueError: if it does not answer in JSON.
    """
    request = urllib.request.Request(f"{index}/{canonicalize_name(name)}/", headers={"Accept": JSON})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        kind = answer.headers.get_content_type()
        if kind != JSON:
            raise ValueError(f"pip's index answers {kind} for {name}, not {JSON} (PEP 691)")
        files = json.load(answer)["files"]
    return {file["filename"]: file["hashes"]["sha256"] for file in files if "sha256" in file["hashes"]}


def write_hashes(path: Path, index: str) -> None:
    """Put the hashes of the index under every pin of a lock, in place of those that it has; say what a machine lacks.

    Raises:
        urllib.error.URLError: if the index cannot be reached, or does not have a package.
        ValueError: if it has no file of a pin, or does not answer in JSON. The lock is as it was.
    """
    lines = logical_lines(path.read_text())
    pins = {line: Requirement(line) for line in lines if line and not line.startswith("#")}
    with ThreadPoolExecutor(4) as pool:
        names = [pin.name for pin in pins.values()]
        files = dict(zip(pins, pool.map(lambda name: files_of(name, index), names), strict=True))
    written = []
    for line in lines:
        if line in pins:
            found, without = hashes(pins[line], files[line], pythons(path))
            for where in without:
                print(f"{path.name}: no file of {line} for {where}")
            line = " \\\n   ".join([line, *(HASH + digest for digest in found)])
        written.append(line)
    path.write_text("\n".join(written) + "\n")


def main(words: list[str]) -> None:
    if words[:1] == ["--hashes"]:
        paths = [Path(word) for word in words[1:]] or sorted(HERE.glob("*.txt"))
    else:
        paths = [lock(name) for name in words or INPUTS]
    for path in paths:
        write_hashes(path, index_url())
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
