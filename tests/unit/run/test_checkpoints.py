"""A checkpoint is whole or not there, whenever a save is killed; one that was altered is known by its manifest."""

import json
import os
from pathlib import Path

import pytest
from saved_checkpoints import SHARD, save

from verl_ext.run import checkpoints as module
from verl_ext.run.checkpoints import (
    MANIFEST,
    TRACKER,
    UNFINISHED,
    flaw_of,
    latest_step,
    prune,
    publish,
    saved_in,
    stage,
    tracked,
)


def steps(folder: Path) -> list[int]:
    """Of what is there, newest first."""
    return [saved.step for saved in saved_in(folder)]


def test_a_manifest_describes_every_file_and_what_wrote_them(tmp_path):
    folder = save(tmp_path, 3)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["schema"], manifest["step"], manifest["number"]) == (1, 3, 1)
    assert sorted(manifest["files"]) == ["actor/fsdp_config.json", SHARD, "fsdp_config.json"]
    assert manifest["files"][SHARD]["bytes"] == (folder / SHARD).stat().st_size
    assert any(version.startswith("torch ") for version in manifest["versions"])
    assert (tracked(tmp_path), flaw_of(folder, content=True)) == ("3", None)
    assert not list((tmp_path / UNFINISHED).iterdir())


def test_a_save_that_is_killed_at_any_moment_leaves_the_earlier_one(tmp_path, monkeypatch):
    """Every call that changes the disk is the last one, in turn."""
    save(tmp_path, 1)
    moments = 0
    for name in ("write_json", "flush", "flush_one", "write_atomically"):
        with monkeypatch.context() as patch:

            def killed(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(module, name, killed)
            part = stage(tmp_path) / "global_step_2"
            part.mkdir()
            (part / "shard").write_text("x")
            with pytest.raises(KeyboardInterrupt):
                publish(tmp_path, 2)
        moments += 1
        newest = saved_in(tmp_path)[0]
        assert flaw_of(newest.folder, content=True) is None
        assert latest_step(tmp_path) == newest.step == (1 if name in ("write_json", "flush") else 2)
        if newest.step == 2:  # published, and verl's note of it missing
            assert tracked(tmp_path) == "1"
            module.remove(newest.folder)
    assert moments == 4


@pytest.mark.parametrize(
    ("harm", "said", "content"),
    [
        (lambda file: os.truncate(file, 100), rf"{SHARD} has 100 bytes, 1,700 by {MANIFEST}", False),
        (lambda file: file.unlink(), f"{SHARD} is missing", False),
        (lambda file: file.write_bytes(os.urandom(1_700)), f"{SHARD} is not what was written", True),
        (lambda file: (file.parents[1] / MANIFEST).unlink(), f"it has no {MANIFEST}", False),
        (lambda file: (file.parents[1] / MANIFEST).write_text("{"), f"{MANIFEST} cannot be read", False),
        (lambda file: (file.parents[1] / MANIFEST).write_text("[1]"), f"{MANIFEST} cannot be read", False),
        (lambda file: (file.parents[1] / MANIFEST).write_text('{"files": {"a": 1}}'), "cannot be read", False),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_named(tmp_path, harm, said, content):
    folder = save(tmp_path, 3)
    harm(folder / SHARD)
    flaw = flaw_of(folder, content=content)
    assert flaw is not None
    assert said in flaw


def test_the_last_one_saved_is_the_newest_whatever_its_step(tmp_path):
    """A run that was taken back to an earlier step."""
    for step in (8, 16, 12):
        save(tmp_path, step)
    assert steps(tmp_path) == [12, 16, 8]
    (tmp_path / "global_step_24").mkdir()  # by whose step alone it can be told
    (tmp_path / "global_step_4").mkdir()
    assert steps(tmp_path) == [24, 12, 16, 8, 4]
    assert latest_step(tmp_path) == 12


def test_a_step_that_is_saved_again_takes_the_place_of_the_earlier_one(tmp_path):
    save(tmp_path, 3)
    old = (tmp_path / "global_step_3" / MANIFEST).read_text()
    folder = save(tmp_path, 3)
    assert steps(tmp_path) == [3]
    assert json.loads((folder / MANIFEST).read_text())["number"] == json.loads(old)["number"] + 1


def test_the_newest_are_kept_those_of_earlier_starts_among_them(tmp_path):
    for step in range(1, 5):
        save(tmp_path, step)
        prune(tmp_path, 2)
    assert steps(tmp_path) == [4, 3]
    prune(tmp_path, None)
    assert steps(tmp_path) == [4, 3]
    (tmp_path / "global_step_9").mkdir()  # what is no checkpoint of ours is nobody's to delete, and counts for none
    prune(tmp_path, 1)
    assert steps(tmp_path) == [9, 4]


def test_what_an_unfinished_save_left_is_no_checkpoint_and_is_cleared_by_the_next(tmp_path):
    (tmp_path / UNFINISHED / "global_step_7" / "actor").mkdir(parents=True)
    (tmp_path / TRACKER).write_text("")
    assert (steps(tmp_path), latest_step(tmp_path)) == ([], None)
    save(tmp_path, 8)
    assert not (tmp_path / UNFINISHED / "global_step_7").exists()
