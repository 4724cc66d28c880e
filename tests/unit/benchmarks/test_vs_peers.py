"""What the benchmark passes on is what Hydra reads."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks import vs_peers
from benchmarks.arms.runs import DEMO
from benchmarks.vs_trl import Pair


@pytest.mark.parametrize("system", vs_peers.SYSTEMS)
def test_the_folder_of_a_run_is_a_value_of_hydras(system: str) -> None:
    folder = vs_peers.folder_of(Path("/tmp/benchmark"), system, 0)
    (override,) = OverridesParser.create().parse_overrides([f"run_dir={folder}"])
    assert override.value() == str(folder)


def test_the_real_task_is_that_of_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real/headroom").mkdir(parents=True)
    (tmp_path / "real/headroom/eval.json").write_text('{"teacher": {"accuracy": 0.8}}')
    ran: list[list[str]] = []
    monkeypatch.setattr(vs_peers.subprocess, "run", lambda command, **_: ran.append(command))
    task = vs_peers.real(tmp_path)
    assert ran[0][1:] == ["-m", "recipe.compare", "headroom", "task=real", f"out={tmp_path}/real"]
    assert task.target == pytest.approx(0.72)
    names = [word.partition("=")[0] for word in task.pair.overrides]
    assert len(set(names)) == len(names)
    assert not {"platform", "trainer.total_training_steps"} & set(names)
    batch = next(word for word in task.pair.overrides if word.startswith("data.train_batch_size="))
    assert (task.a_step, batch) == (32, f"data.train_batch_size={task.pair.prompts}")


def test_the_demos_task_is_that_of_vs_trl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vs_peers, "teacher_accuracy", lambda _: 0.9)
    task = vs_peers.classification(tmp_path)
    assert isinstance(task.pair, Pair)
    assert (task.pair.model, task.a_step) == (DEMO / "models/base", 128)
