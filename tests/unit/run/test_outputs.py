"""When an output is done, when it is made, and when a user must decide."""

import json

import pytest

from verl_ext.run.files import sha256, write_json
from verl_ext.run.outputs import differing, is_complete, is_made

SETTINGS = {"seed": 0, "sampling": {"temperature": 1.0, "top_p": 1.0}, "model": "m"}
FILES = ("a.txt", "b.txt")


def test_nested_settings_are_named_by_their_path():
    changed = {"seed": 1, "sampling": {"temperature": 0.5, "top_p": 1.0}, "limit": 3}
    assert differing(SETTINGS, changed) == ["limit", "model", "sampling.temperature", "seed"]
    assert differing(SETTINGS, SETTINGS) == []
    assert differing({"a": {"b": 1}}, {"a": None}) == ["a"]


def test_settings_decide_and_overwrite_allows():
    assert is_made("out", SETTINGS, dict(SETTINGS), overwrite=False)
    assert is_made("out", SETTINGS, dict(SETTINGS), overwrite=True)
    assert not is_made("out", SETTINGS, {**SETTINGS, "seed": 1}, overwrite=True)
    expected = r"^out=x: made with other settings \(model, seed\); write somewhere else, or set overwrite=true$"
    with pytest.raises(ValueError, match=expected):
        is_made("out=x", SETTINGS, {**SETTINGS, "seed": 1, "model": "n"}, overwrite=False)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text(name)
    files = {name: sha256(tmp_path / name) for name in FILES}
    write_json(tmp_path / "manifest.json", {"settings": SETTINGS, "files": files})
    return tmp_path


def complete(folder, overwrite: bool = False, **changes) -> bool:
    return is_complete(folder, "manifest.json", FILES, SETTINGS | changes, overwrite)


def test_what_is_complete_and_what_an_interruption_left(folder, tmp_path):
    assert complete(folder)
    assert complete(folder, overwrite=True)
    (folder / "b.txt").unlink()
    assert not complete(folder)
    (folder / "a.txt").unlink()
    assert not complete(folder)
    assert not complete(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a.txt").write_text("x"), r"holds a\.txt, b\.txt: a\.txt changed since"),
        (lambda folder: (folder / "manifest.json").unlink(), r"no manifest\.json says how they were made"),
        (
            lambda folder: write_json(folder / "manifest.json", {"settings": {**SETTINGS, "seed": 2}, "files": {}}),
            r"made with other settings \(seed\)",
        ),
    ],
)
def test_anything_else_is_replaced_only_when_asked(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message + ".*; write somewhere else, or set overwrite=true"):
        complete(folder)
    assert not complete(folder, overwrite=True)


def test_other_settings_with_no_file_written_yet(folder):
    """The manifest alone, as an interruption leaves it, says what the folder is for."""
    for name in FILES:
        (folder / name).unlink()
    assert not complete(folder)
    with pytest.raises(ValueError, match=r"holds manifest\.json: made with other settings \(seed\)"):
        complete(folder, seed=1)
    assert json.loads((folder / "manifest.json").read_text())["settings"] == SETTINGS
