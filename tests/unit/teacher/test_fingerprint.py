"""Which teacher made a score: every field of the fingerprint counts."""

import dataclasses
import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_teacher import FINGERPRINT

from verl_ext.run.file_hashes import hash_of_model
from verl_ext.teacher.config import ENGINES, TeacherConfig
from verl_ext.teacher.store.fingerprint import (
    TeacherFingerprint,
    fingerprint_of_files,
    version_of_engine,
)
from verl_ext.teacher.store.identity import model_folder


def test_the_id_changes_with_every_field() -> None:
    changes = {
        "model": "n",
        "quantization": "fp8",
        "dtype": "bfloat16",
        "kv_cache_dtype": "fp8_e5m2",
        "engine": "vllm",
        "engine_version": "0.5.22",
        "served_as": "path default",
        "extra_args": ("--x",),
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(TeacherFingerprint)}
    ids = {dataclasses.replace(FINGERPRINT, **{name: value}).id for name, value in changes.items()}
    assert len(ids | {FINGERPRINT.id}) == len(changes) + 1
    assert {len(found) for found in ids} == {16}
    assert TeacherFingerprint.from_dict(json.loads(json.dumps(FINGERPRINT.to_dict()))).id == FINGERPRINT.id


def test_the_fingerprint_of_a_managed_teacher(folder: Path, cache: Path, python: str) -> None:
    config = TeacherConfig(model_path=str(folder), python=python, dtype="bfloat16", extra_args=["--page-size", "1"])
    assert fingerprint_of_files(config, folder, cache) == TeacherFingerprint(
        hash_of_model(folder, cache), None, "bfloat16", "auto", "sglang", "9.9.9", extra_args=("--page-size", "1")
    )


@pytest.mark.parametrize("python", ["/no/such/python", sys.executable])
def test_an_interpreter_without_sglang(python: str) -> None:
    with pytest.raises(ValueError, match=r"teacher\.python: .* cannot tell its SGLang's version"):
        version_of_engine(python, "sglang")


def test_engines_of_the_same_files_are_two_teachers(folder: Path, cache: Path, python: str) -> None:
    configs = [TeacherConfig(model_path=str(folder), python=python, engine=engine) for engine in ENGINES]
    assert len({fingerprint_of_files(config, folder, cache).id for config in configs}) == 2


def test_the_first_distribution_that_is_there_counts() -> None:
    assert version_of_engine(sys.executable, "vllm") == version("vllm")


def test_a_script_that_stands_for_python_may_bring_its_own_path(tmp_path: Path, monkeypatch) -> None:
    """As tests/gpu/teacher_python.sh; and the trainer's own path says nothing of the teacher's."""
    for owner, number in (("teachers", "7.8"), ("trainers", "1.2")):
        (tmp_path / owner / f"sglang-{number}.dist-info").mkdir(parents=True)
        (tmp_path / owner / f"sglang-{number}.dist-info/METADATA").write_text(f"Name: sglang\nVersion: {number}\n")
    script = tmp_path / "python.sh"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/teachers exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "trainers"))
    assert version_of_engine(str(script), "sglang") == "7.8"
    with pytest.raises(ValueError, match=r"cannot tell its SGLang's version"):
        version_of_engine(sys.executable, "sglang")


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.model_path: nobody/nothing is neither a folder nor"):
        model_folder(TeacherConfig(model_path="nobody/nothing"))
    with pytest.raises(ValueError, match=r"teacher\.model_path"):
        model_folder(TeacherConfig(model_path=str(tmp_path / "missing")))
