"""Nothing half-written is ever seen, and nothing is left beside."""

import json
import os
from pathlib import Path

import pytest

from verl_ext.run import files
from verl_ext.run.files import replacing, save_resolved_config, write_atomically, write_json


class Stopped(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_texts_and_json_are_utf_8_in_a_folder_that_is_made(tmp_path):
    write_atomically(tmp_path / "new" / "a.txt", "ä\n")
    write_json(tmp_path / "new" / "b.json", {"key": "ä"})
    assert (tmp_path / "new" / "a.txt").read_bytes() == "ä\n".encode()
    assert json.loads((tmp_path / "new" / "b.json").read_bytes()) == {"key": "ä"}
    assert save_resolved_config("a: 1\n", str(tmp_path / "run")).read_text() == "a: 1\n"
    assert names(tmp_path / "new") == ["a.txt", "b.json"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "f"
    write_atomically(file, b"old")
    with replacing(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_a_folder_and_a_link_are_replaced_by_a_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("link", "folder", "folder"):
        with replacing(tmp_path / name) as part:
            part.mkdir()
            (part / "inside").touch()
        assert names(tmp_path / name) == ["inside"]
    assert not (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["elsewhere", "folder", "link"]
    assert names(tmp_path / "elsewhere") == ["kept"]


def test_a_link_is_replaced_by_a_link(tmp_path):
    for target in ("one", "two"):
        (tmp_path / target).mkdir()
        with replacing(tmp_path / "newest") as part:
            part.symlink_to(target)
        assert os.readlink(tmp_path / "newest") == target


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_one_and_nothing_beside_it(tmp_path, kind):
    def write_half() -> None:
        with replacing(tmp_path / "f") as part:
            if kind == "folder":
                part.mkdir()
            (part / "inside" if kind == "folder" else part).write_text("half")
            raise Stopped

    write_atomically(tmp_path / "f", "old")
    with pytest.raises(Stopped):
        write_half()
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_a_full_disk_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch):
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "f", "old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "f", "new")
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut leaves the name with nothing behind it. The names of the flushed, and what `out` held then."""
    flushed = []
    real = os.fsync

    def note(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        flushed.append((name.split(".")[1] if name.startswith(".") else name, (tmp_path / "out").exists()))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", note)
    with replacing(tmp_path / "out") as part:
        part.mkdir()
        (part / "weights").touch()
    assert flushed == [("weights", False), ("out", False), (tmp_path.name, True)]
