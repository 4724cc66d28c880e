"""The hash of a model's files: what must change it, and what must not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_teacher import edit_byte, with_noise
from transformers import Qwen3ForCausalLM

from verl_ext.run import file_hashes
from verl_ext.run.file_hashes import CHAT_FILES, default_cache, hash_files, hash_of_model

CHANGES: dict[str, Callable[[Path], Any]] = {
    "one bit of the weights": lambda folder: edit_byte(folder / "model.safetensors"),
    "config": lambda folder: (folder / "config.json").write_text("{}"),
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{ }"),
    "code": lambda folder: (folder / "modeling.py").write_text(""),
    "a file's name": lambda folder: (folder / "model.safetensors").rename(folder / "a.safetensors"),
    "one more shard": lambda folder: (folder / "x.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_makes_another_model(folder: Path, cache: Path, change: Callable[[Path], Any]) -> None:
    before = hash_of_model(folder, cache)
    assert hash_of_model(folder, cache) == before
    change(folder)
    assert hash_of_model(folder, cache) != before


def test_what_leaves_the_model_the_same(folder: Path, cache: Path, tmp_path: Path) -> None:
    before = hash_of_model(folder, cache)
    (folder / "README.md").write_text("words")
    (folder / "chat_template.jinja").write_text("{{ messages }}")  # ids are scored, not chats
    os.utime(folder / "model.safetensors")
    assert hash_of_model(folder, cache) == before
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert hash_of_model(tmp_path / "elsewhere", cache) == before


def test_a_model_that_answers_chats_is_another_with_another_template(folder: Path, cache: Path) -> None:
    before = hash_of_model(folder, cache, also=CHAT_FILES)
    (folder / "README.md").write_text("words")
    assert hash_of_model(folder, cache, also=CHAT_FILES) == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert hash_of_model(folder, cache, also=CHAT_FILES) != before


def test_noise_of_a_thousandth_is_another_file(
    folder: Path, cache: Path, tmp_path: Path, model: Qwen3ForCausalLM
) -> None:
    with_noise(model, 1e-3).save_pretrained(tmp_path / "noisy")
    shutil.copy(folder / "tokenizer.json", tmp_path / "noisy")
    assert hash_of_model(tmp_path / "noisy", cache) != hash_of_model(folder, cache)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model(folder: Path, cache: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match="give the folder of a whole model"):
        hash_of_model(folder, cache)


def test_a_file_is_read_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = file_hashes._hash
    monkeypatch.setattr(file_hashes, "_hash", lambda path, advance: read.append(path.name) or real(path, advance))
    paths = [folder / "config.json", folder / "model.safetensors"]
    first = hash_files(paths, cache)
    assert hash_files(paths, cache) == first
    assert sorted(read) == ["config.json", "model.safetensors"]
    # Same size, and the old mtime put back, as `cp -p` and rsync do: still read again.
    stat = paths[1].stat()
    edit_byte(paths[1])
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_files(paths, cache)[1] != first[1]
    assert read[2:] == ["model.safetensors"]
    for damage in ("{", "[]"):
        cache.write_text(damage)
        assert hash_files(paths, cache)[0] == first[0]


def test_a_file_that_changes_while_it_is_read(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a download is still running."""
    real = file_hashes._hash

    def read_and_change(path: Path, advance: Callable[[int], None]) -> str:
        digest = real(path, advance)
        path.write_bytes(path.read_bytes() + b"\n")
        return digest

    monkeypatch.setattr(file_hashes, "_hash", read_and_change)
    with pytest.raises(ValueError, match="changed while it was read"):
        hash_files([folder / "config.json"], cache)
    assert not cache.exists()


def test_hashes_are_kept_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_cache() == tmp_path / "caches" / "verl-opd" / "file-hashes.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "verl-opd" / "file-hashes.json"
