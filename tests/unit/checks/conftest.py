"""`compose_pair("teacher.tp=0", ...)`: the configuration of a run on a tiny student that teaches itself."""

import contextlib
import functools
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_sglang import serving
from model_pair import Pair
from omegaconf import DictConfig, OmegaConf
from tiny_student import ROW, write_student

from verl_ext.checks import memory
from verl_ext.checks.config import DoctorConfig
from verl_ext.run import machine
from verl_ext.run.hydra import schema_of


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    pq.write_table(pa.Table.from_pylist([ROW] * 32), folder / "rows.parquet")
    return write_student(folder / "base"), folder / "rows.parquet"


@pytest.fixture
def pair(built, tmp_path, monkeypatch) -> Iterator[Pair]:
    monkeypatch.setattr(memory, "CPU_BASE_GIB", 0.0)  # what else runs on this machine is not under test
    monkeypatch.setattr(machine, "gpus", lambda: 0)  # whatever machine this is
    for variable in (
        "TEACHER_API_KEY",
        "WANDB_API_KEY",
        "WANDB_MODE",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with contextlib.ExitStack() as stack:
        yield Pair(*built, tmp_path, lambda fake: stack.enter_context(serving(fake)))


@pytest.fixture(scope="session")
def composed(compose_run) -> Callable[[str], bytes]:
    """Pickled: a deep copy takes 6 times as long."""
    return functools.cache(
        lambda group: pickle.dumps(compose_run("platform=cpu", "task=demo", *([group] if group else [])))
    )


@pytest.fixture
def compose_pair(composed, pair) -> Callable[..., DictConfig]:
    """`compose_pair("hardware=cpu", "teacher.tp=0", ...)`: composed once a group: verl has many keys."""

    def run(*overrides: str) -> DictConfig:
        groups = [word for word in overrides if word.startswith("hardware=")]
        config = pickle.loads(composed("".join(groups)))
        OmegaConf.set_struct(config, False)
        own = [f"student.path={pair.student}", f"teacher.python={sys.executable}", f"run_dir={pair.scratch}/run"]
        own += [f"data.train_files={pair.rows}", f"data.val_files={pair.rows}"]
        config.merge_with_dotlist([*own, *(word for word in overrides if word not in groups)])
        config.doctor = schema_of(DoctorConfig)
        return config

    return run
