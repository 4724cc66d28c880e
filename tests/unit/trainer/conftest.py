"""Runs in this process (`local_run`): `make_run("method.discount=0.5", ...)` starts one and later closes it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from local_run import write_student

    return write_student(tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="session")
def empty_queue() -> Iterator[Callable[[], None]]:
    """TransferQueue runs as long as this fixture lives; call it to drop what is in there."""
    from local_run import empty_queue, queue_in_this_process

    with queue_in_this_process():
        yield empty_queue


@pytest.fixture(scope="session")
def run_config(compose_run, student: Path):
    """Composed once, which takes most of a second; not resolved, so that what depends on an override follows it."""
    return compose_run(
        *("platform=cpu", "task=demo", f"student.path={student}", "teacher.mode=external", "teacher.max_retries=0"),
        *("data.train_batch_size=2", "actor_rollout_ref.rollout.n=2"),
        *("trainer.total_training_steps=1", "trainer.save_freq=-1", "trainer.logger=[]"),
        "method.guards.max_failed_share=1",  # a step has four samples
    )


@pytest.fixture
def make_run(
    empty_queue, run_config, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable]:
    import datasets
    from local_run import LocalRun, write_rows
    from omegaconf import OmegaConf

    from verl_ext.teacher.client import pool
    from verl_ext.trainer.config import check_method
    from verl_ext.trainer.runner import ask_for_reference

    monkeypatch.setattr(pool, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", student.parent / "datasets")
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    runs = []

    def make(*overrides: str, rows: Path | None = None, **more) -> LocalRun:
        rows = rows or write_rows(tmp_path / "rows.parquet", 6)
        files = {"train_files": str(rows), "val_files": str(rows)}
        config = OmegaConf.merge(run_config, {"run_dir": f"{tmp_path}/run", "data": files})
        for override in overrides:
            key, _, value = override.partition("=")
            OmegaConf.update(config, key.removeprefix("+"), yaml.safe_load(value), force_add=key.startswith("+"))
        OmegaConf.resolve(config)
        if config.method.guards.reference_kl_coef:
            ask_for_reference(config, check_method(config))  # as `Runner` does
        runs.append(LocalRun(config, **more))
        return runs[-1]

    yield make
    for run in runs:
        run.close()
    empty_queue()
