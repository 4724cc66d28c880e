"""Every pin has its hashes, every install of a lock asks for them, and requirements/lock.py takes the right files."""

import io
import json
import re
from contextlib import nullcontext
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from requirements import lock

ROOT = Path(__file__).parents[3]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
LINE = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!+]+( ; [^\\]+?)?(?: --hash=sha256:[0-9a-f]{64})+")
INSTALLERS = [ROOT / "Makefile", *(ROOT / "docker").glob("*.Dockerfile"), *(ROOT / "tests").rglob("*.sh")]
INSTALLERS += (ROOT / "docs").rglob("*.md")
FILES = [
    "seven-1.2.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "seven-1.2.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    "seven-1.2.0-cp311-cp311-manylinux_2_39_aarch64.whl",
    "seven-1.2.0-cp312-cp312-manylinux_2_17_x86_64.whl",
    "seven-1.2.0-cp312-cp312-musllinux_1_2_x86_64.whl",
    "seven-1.2.0-cp313-cp313-manylinux_2_17_x86_64.whl",
    "seven-1.2.0-cp313-cp313t-manylinux_2_17_aarch64.whl",
    "seven-1.2.0-cp311-cp311-macosx_11_0_arm64.whl",
    "seven-1.2.0-cp311-cp311-win_amd64.whl",
    "seven-1.2.0-py2-none-any.whl",
    "seven-1.2.0.tar.gz",
    "seven-1.2.0.win32-py3.11.exe",
    "seven-1.2.1-py3-none-any.whl",
]


def chosen(pin: str, names: list[str], *versions: str) -> tuple[list[str], list[str]]:
    """What lock.py takes, where a file's hash is its name."""
    return lock.hashes(Requirement(pin), {name: name for name in names}, list(versions))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_pin_has_its_hashes(path):
    lines = re.sub(r" \\\n +", " ", path.read_text()).splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [line for line in pins if not LINE.fullmatch(line)] == []


def test_every_install_of_a_lock_asks_for_hashes():
    commands = {}
    for file in INSTALLERS:
        joined = re.sub(r"\\\n\s*", " ", file.read_text())
        found = [line for line in joined.splitlines() if re.search(r"-r requirements/\S+\.txt", line)]
        commands |= {f"{file.name}: {line.strip()}": line for line in found}
    named = {name for line in commands.values() for name in re.findall(r"-r requirements/(\S+\.txt)", line)}
    assert named == {path.name for path in LOCKS}
    for where, line in commands.items():
        assert "--require-hashes" in line, where
        assert "--no-deps" in line, where
        assert "--editable" not in line, f"a folder has no hash: {where}"


def test_wheels_of_linux_and_of_the_locks_python_are_taken_whatever_their_glibc():
    assert chosen("seven==1.2.0", FILES, "3.11") == (sorted(FILES[:3]), [])


def test_the_source_is_taken_where_no_wheel_fits():
    assert chosen("seven==1.2.0", FILES, "3.12") == (sorted([FILES[3], "seven-1.2.0.tar.gz"]), [])
    wheels = [name for name in FILES if name.endswith(".whl")]
    assert chosen("seven==1.2.0", wheels, "3.12") == ([FILES[3]], ["Python 3.12 on aarch64"])


@pytest.mark.parametrize("tag", ["py3-none-any", "py2.py3-none-any", "cp38-abi3-manylinux2014_x86_64"])
def test_what_any_python_takes_is_taken_and_no_source(tag):
    wheel = f"seven-1.2.0-{tag}.whl"
    pin = 'seven==1.2.0 ; platform_machine == "x86_64"'
    assert chosen(pin, [*FILES[4:], wheel], "3.11", "3.12") == ([wheel], [])


def test_a_marker_leaves_a_machine_out():
    assert chosen('seven==1.2.0 ; platform_machine == "aarch64"', FILES, "3.11") == (FILES[1:3], [])


def test_an_abi3_of_a_later_python_and_another_version_do_not_fit():
    names = [
        "seven-1.2.0-cp313-abi3-manylinux_2_17_x86_64.whl",
        "seven-1.2.1-py3-none-any.whl",
        "seven-1.2.0rc1.tar.gz",
    ]
    with pytest.raises(ValueError, match=r"no file of seven==1\.2\.0 for Linux and Python 3\.11, 3\.12"):
        chosen("seven==1.2.0", names, "3.11", "3.12")


def test_the_pythons_are_the_locks_own():
    assert lock.pythons(Path("trainer-cuda.txt")) == ["3.12"]
    assert lock.pythons(Path("dev.txt")) == ["3.11", "3.12"]  # pyproject.toml's


def test_hashes_are_replaced_and_comments_and_markers_kept(tmp_path, monkeypatch):
    old, new = "a" * 64, ["1" * 64, "2" * 64]
    page = {"seven-1.2.0-cp311-cp311-manylinux_2_17_x86_64.whl": new[1], "seven-1.2.0.tar.gz": new[0]}
    monkeypatch.setattr(lock, "files_of", lambda *asked: {("Seven", "index"): page}[asked])
    path = tmp_path / "some.txt"
    head = "# Why; --hash=sha256: is no hash here.\n\n"
    path.write_text(f'{head}Seven==1.2.0 ; python_version < "3.12" --hash=sha256:{old}')
    written = f'{head}Seven==1.2.0 ; python_version < "3.12" \\\n' + " \\\n".join(f"    --hash=sha256:{x}" for x in new)
    for _ in range(2):  # it reads what it writes
        lock.write_hashes(path, "index")
        assert path.read_text() == written + "\n"
    assert lock.read_pins(path) == ["Seven==1.2.0"]


@pytest.mark.parametrize(
    ("kind", "refused"), [(lock.JSON, None), ("text/html", "answers text/html for Some.Name, not")]
)
def test_the_index_is_asked_for_json(monkeypatch, kind, refused):
    page = {"files": [{"filename": "a.whl", "hashes": {"sha256": "1"}}, {"filename": "b.whl", "hashes": {}}]}
    asked = []

    def answer(request, timeout):
        assert timeout > 0
        asked.append((request.full_url, request.headers["Accept"]))
        given = io.BytesIO(json.dumps(page).encode())
        given.headers = Message()
        given.headers["Content-Type"] = kind
        return given

    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(ValueError, match=refused) if refused else nullcontext():
        assert lock.files_of("Some.Name", f"https://index/{kind}") == {"a.whl": "1"}
    assert asked == [(f"https://index/{kind}/some-name/", lock.JSON)]


def test_the_index_is_pips(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "file:///somewhere/simple/")
    assert lock.index_url() == "file:///somewhere/simple"
