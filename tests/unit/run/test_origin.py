"""A run goes on only with what it was begun with, and begins anew beside what an earlier one left."""

import copy
import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from verl_ext.run.origin import begin, check_origin, latest_step


@pytest.fixture
def config(compose_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "rows").write_text("rows")
    composed = compose_run("platform=cpu", f"run_dir={tmp_path}/run", f"data.train_files={tmp_path}/rows")
    OmegaConf.resolve(composed)
    return composed


def save(config: DictConfig, step: int) -> None:
    checkpoints = Path(config.trainer.default_local_dir)
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))


def test_a_run_goes_on_with_its_own_settings_for_longer(config):
    assert begin(config) is None
    save(config, 3)
    config.trainer.total_training_steps, config.trainer.total_epochs, config.teacher.port = 30, 7, 4000
    assert check_origin(config) == "goes on after step 3"
    assert begin(config) is None
    assert latest_step(Path(config.trainer.default_local_dir)) == 3


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("student.path", "other", "student.path MODEL there, other here"),
        ("data.train_batch_size", 7, "data.train_batch_size 32 there, 7 here"),
        ("actor_rollout_ref.rollout.n", 9, "actor_rollout_ref.rollout.n 4 there, 9 here"),
        ("actor_rollout_ref.actor.optim.lr", 3e-3, "actor_rollout_ref.actor.optim.lr 0.0001 there, 0.003 here"),
        ("actor_rollout_ref.model.lora_rank", 8, "actor_rollout_ref.model.lora_rank 0 there, 8 here"),
        ("method.guards.truncated_mask", True, "method.guards.truncated_mask False there, True here"),
        ("teacher.model_path", "other", "teacher.model_path MODEL there, other here"),
        ("teacher.quantization", "fp8", "teacher.quantization None there, fp8 here"),
    ],
)
def test_other_settings_are_refused_by_name(config, key, value, said):
    begin(config)
    save(config, 3)
    OmegaConf.update(config, key, value)
    with pytest.raises(ValueError, match="begun with other settings: ") as refused:
        check_origin(config)
    assert said in str(refused.value)
    assert f"student.path={config.run_dir}/student" in str(refused.value)


def test_the_same_rows_may_lie_elsewhere_and_other_rows_may_not_lie_there(config, tmp_path):
    begin(config)
    save(config, 3)
    moved = copy.deepcopy(config)
    moved.data.train_files = [str((tmp_path / "rows").rename(tmp_path / "moved"))]
    assert check_origin(moved) == "goes on after step 3"
    (tmp_path / "rows").write_text("others")
    with pytest.raises(ValueError, match=r"data\.train_files has other rows; go on with those"):
        check_origin(config)
    (tmp_path / "rows").unlink()
    with pytest.raises(ValueError, match=r"data\.train_files: no file .*rows"):
        check_origin(config)


@pytest.mark.parametrize("resume_mode", ["auto", "disable"])
def test_a_new_run_counts_nothing_of_an_abandoned_one(config, resume_mode):
    """One that saved nothing, or that the user will not resume."""
    run_dir = Path(config.run_dir)
    begin(config)
    (run_dir / "metrics.jsonl").write_text("{}\n")
    (run_dir / "logs").mkdir()
    if resume_mode == "disable":
        save(config, 3)
        (run_dir / "student").symlink_to("checkpoints")
    config.trainer.resume_mode, config.method.coef = resume_mode, 0.5
    assert check_origin(config) == "from the start"
    said = begin(config)
    assert said is not None
    (earlier,) = run_dir.glob("earlier-*")
    assert said.endswith(f"of an earlier attempt moved to {earlier}")
    assert (earlier / "metrics.jsonl").read_text() == "{}\n"
    assert json.loads((run_dir / "origin.json").read_text())["method"]["coef"] == 0.5
    assert {path.name for path in run_dir.iterdir()} == {"logs", "origin.json", earlier.name}
    if resume_mode == "disable":
        assert (earlier / "student").resolve() == (earlier / "checkpoints").resolve()
