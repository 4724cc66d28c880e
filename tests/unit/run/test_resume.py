"""A run goes on from the newest whole checkpoint, with what decides its student, or begins anew beside another run."""

import copy
import json
import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from saved_checkpoints import SHARD
from saved_checkpoints import save as save_checkpoint

from verl_ext.run.checkpoints import MANIFEST, TRACKER, latest_step, saved_in, tracked
from verl_ext.run.files import save_resolved_config
from verl_ext.run.metrics import MetricsFile, read_place, write_place
from verl_ext.run.resume import begin, check_ranks, check_resume, resume_of, resumed_step


@pytest.fixture
def config(compose_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "rows").write_text("rows")
    composed = compose_run("platform=cpu", f"run_dir={tmp_path}/run", f"data.train_files={tmp_path}/rows")
    OmegaConf.resolve(composed)
    return composed


def checkpoints_of(config: DictConfig) -> Path:
    return Path(config.trainer.default_local_dir)


def start(config: DictConfig) -> list[str]:
    """As a verb does; what is said."""
    check_resume(config)
    said = begin(config)
    save_resolved_config(OmegaConf.to_yaml(config, resolve=True), config.run_dir)
    return said


def save(config: DictConfig, step: int) -> Path:
    return save_checkpoint(checkpoints_of(config), step, Path(config.run_dir))


def test_a_run_goes_on_for_longer_and_says_what_changed(config):
    assert start(config) == []
    save(config, 3)
    config.trainer.total_training_steps, config.teacher.port = 30, 4000
    config.actor_rollout_ref.actor.optim.lr = 5e-5
    assert check_resume(config) == "goes on after step 3"
    (said,) = start(config)
    assert said.startswith("changed since step 3, and taken: actor_rollout_ref.actor.optim.lr 0.0001 -> 5e-05, ")
    assert "teacher.port 0 -> 4000" in said or "teacher.port None -> 4000" in said
    assert "trainer.total_training_steps None -> 30" in said
    assert "lr: 5.0e-05" in (Path(config.run_dir) / "config.yaml").read_text()
    (note,) = map(json.loads, (Path(config.run_dir) / "resumed.jsonl").read_text().splitlines())
    assert note["after_step"] == 3
    changed = {each["setting"]: (each["from"], each["to"]) for each in note["changes"]}
    assert changed["actor_rollout_ref.actor.optim.lr"] == (1e-4, 5e-5)


def test_a_step_that_was_saved_and_has_no_row_is_said(config):
    start(config)
    run_dir = Path(config.run_dir)
    metrics = MetricsFile(run_dir / "metrics.jsonl")
    save(config, 3)
    assert start(config) == []  # a run without rows, as of a folder that holds a checkpoint alone
    for step in (1, 2):
        metrics.append(step, {})
    (said,) = start(config)
    assert said.startswith("step 3 is saved and has no row in metrics.jsonl: ")
    metrics.append(3, {})
    assert start(config) == []


def test_where_an_earlier_start_was_is_forgotten(config):
    """A start would show it, and a signal then wait for a step to be saved."""
    start(config)
    save(config, 3)
    write_place(config.run_dir, "step 4: update")
    start(config)
    assert read_place(Path(config.run_dir)) == ""


def test_what_changed_is_told_by_the_checkpoint_not_by_a_start_that_saved_nothing(config):
    start(config)
    save(config, 3)
    config.actor_rollout_ref.actor.optim.lr = 5e-5
    start(config)
    config.actor_rollout_ref.actor.optim.lr = 1e-4
    assert start(config) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("student.path", "other", "student.path MODEL there, other here"),
        ("data.train_batch_size", 7, "data.train_batch_size 32 there, 7 here"),
        ("actor_rollout_ref.rollout.n", 9, "actor_rollout_ref.rollout.n 4 there, 9 here"),
        ("actor_rollout_ref.actor.optim.optimizer", "SGD", "optim.optimizer AdamW there, SGD here"),
        ("algorithm.rollout_correction.bypass_mode", False, "rollout_correction.bypass_mode True there, False here"),
        ("actor_rollout_ref.model.lora_rank", 8, "actor_rollout_ref.model.lora_rank 0 there, 8 here"),
        ("actor_rollout_ref.model.lora_alpha", 8, "actor_rollout_ref.model.lora_alpha 16 there, 8 here"),
        ("method.loss", "forward_kl", "method.loss policy_gradient there, forward_kl here"),
        ("method.guards.truncated_mask", True, "method.guards.truncated_mask False there, True here"),
        ("teacher.model_path", "other", "teacher.model_path MODEL there, other here"),
        ("teacher.quantization", "fp8", "teacher.quantization None there, fp8 here"),
    ],
)
def test_what_decides_the_student_is_refused_by_name_unless_the_user_insists(config, key, value, said):
    start(config)
    save(config, 3)
    OmegaConf.update(config, key, value)
    with pytest.raises(ValueError, match="begun with other settings: ") as refused:
        check_resume(config)
    assert said in str(refused.value)
    assert f"student.path={config.run_dir}/student" in str(refused.value)
    assert str(refused.value).endswith("or insist with resume_anyway=true")
    config.resume_anyway = True
    line = start(config)[0]
    assert line.startswith("warning: resume_anyway=true goes on with other settings: ")
    assert said in line
    save(config, 4)
    config.resume_anyway = False
    assert start(config) == []  # the later checkpoint was made with them


def test_another_base_or_tokenizer_in_the_same_folder_is_refused(config, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (base / name).write_text(name)
    config.student.path = str(base)
    start(config)
    save(config, 3)
    (base / "README.md").write_text("nothing that counts")
    assert check_resume(config) == "goes on after step 3"
    (base / "tokenizer.json").write_text("another")
    with pytest.raises(ValueError, match=r"other settings: student\.path has another tokenizer\.json; go on with"):
        check_resume(config)


def test_the_same_rows_may_lie_elsewhere_and_other_rows_may_not_lie_there(config, tmp_path):
    start(config)
    save(config, 3)
    moved = copy.deepcopy(config)
    moved.data.train_files = [str((tmp_path / "rows").rename(tmp_path / "moved"))]
    assert check_resume(moved) == "goes on after step 3"
    (tmp_path / "rows").write_text("others")
    with pytest.raises(ValueError, match=r"data\.train_files has other rows; go on with those"):
        check_resume(config)
    (tmp_path / "rows").unlink()
    with pytest.raises(ValueError, match=r"data\.train_files: no file .*rows"):
        check_resume(config)


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
    assert check_resume(config) == "from the start"
    (said,) = begin(config)
    (earlier,) = run_dir.glob("earlier-*")
    assert said.endswith(f"of an earlier attempt moved to {earlier}")
    assert (earlier / "metrics.jsonl").read_text() == "{}\n"
    assert json.loads((run_dir / "origin.json").read_text())["method"]["coef"] == 0.5
    assert {path.name for path in run_dir.iterdir()} == {"logs", "origin.json", "environment.json", earlier.name}
    if resume_mode == "disable":
        assert (earlier / "student").resolve() == (earlier / "checkpoints").resolve()


HARMS = [
    (lambda folder: os.truncate(folder / SHARD, 10), f"{SHARD} has 10 bytes"),
    (lambda folder: (folder / SHARD).write_bytes(os.urandom(1_700)), f"{SHARD} is not what was written"),
    (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
    (lambda folder: (folder / MANIFEST).write_text(""), f"{MANIFEST} cannot be read"),
]


@pytest.mark.parametrize(("harm", "flaw"), HARMS)
def test_the_last_whole_checkpoint_is_taken_where_the_newest_is_torn_and_that_is_said(config, harm, flaw):
    start(config)
    for step in (2, 4):
        folder = save(config, step)
    student = Path(config.run_dir) / "student"
    student.symlink_to("checkpoints/global_step_4/actor")
    harm(folder)
    assert check_resume(config) == "goes on after step 2"
    (said,) = start(config)
    assert said.startswith(f"{folder} is torn ({flaw}")
    assert [saved.step for saved in saved_in(checkpoints_of(config))] == [2]
    assert (checkpoints_of(config) / "global_step_4.torn").is_dir()
    assert tracked(checkpoints_of(config)) == "2"  # from which verl loads
    assert not student.is_symlink()
    save(config, 4)
    assert start(config) == []


@pytest.mark.parametrize("says", ["", "7", "x\ny", None])
def test_verls_note_of_the_newest_step_is_mended_where_it_says_something_else(config, says):
    """Empty, naming a folder that is gone, or gone itself."""
    start(config)
    save(config, 2)
    tracker = checkpoints_of(config) / TRACKER
    tracker.unlink() if says is None else tracker.write_text(says)
    (said,) = start(config)
    assert said.endswith(f"says '{says}': global_step_2 is the newest whole checkpoint")
    assert (tracker.read_text(), resumed_step(config.trainer)) == ("2", 2)


def test_without_a_whole_checkpoint_a_run_does_not_begin_anew_in_silence(config):
    start(config)
    save(config, 2)
    HARMS[0][0](save(config, 4))
    (checkpoints_of(config) / "global_step_2" / SHARD).unlink()
    with pytest.raises(ValueError, match=r"holds no whole checkpoint \(global_step_4: .* 10 bytes.*; global_step_2:"):
        check_resume(config)
    for folder in checkpoints_of(config).glob("global_step_*"):
        folder.rename(folder.with_name("elsewhere" + folder.name))
    with pytest.raises(ValueError, match=rf"\({TRACKER} says '4', no more\).*trainer\.resume_mode=disable$"):
        check_resume(config)
    config.trainer.resume_mode = "disable"
    assert check_resume(config) == "from the start"


def test_a_checkpoint_that_is_named_is_taken_or_refused(config, tmp_path):
    start(config)
    older, newest = save(config, 2), save(config, 4)
    config.trainer.resume_from_path = str(older)
    with pytest.raises(ValueError, match=r"resume_from_path=.*global_step_2 is read with trainer\.resume_mode=res"):
        check_resume(config)
    config.trainer.resume_mode = "resume_path"
    assert (check_resume(config), start(config)) == ("goes on after step 2", [])
    assert tracked(checkpoints_of(config)) == "4"
    config.trainer.resume_from_path = str(newest)
    HARMS[0][0](newest)
    with pytest.raises(ValueError, match=r"global_step_4: .* has 10 bytes.*give another one, or trainer\.resume_mod"):
        check_resume(config)
    (newest / MANIFEST).unlink()  # as an earlier version of ours, or verl, leaves one
    (said,) = start(config)
    assert said == f"warning: {newest} has no {MANIFEST}: nothing says whether it is whole"
    config.trainer.resume_from_path = str(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint folder \(\.\.\./global_step_N\)"):
        check_resume(config)


def test_settings_are_compared_with_those_of_a_checkpoint_that_lies_elsewhere(config, tmp_path):
    start(config)
    elsewhere = save(config, 2)
    config.run_dir, config.trainer.default_local_dir = f"{tmp_path}/new", f"{tmp_path}/new/checkpoints"
    config.trainer.resume_mode, config.trainer.resume_from_path = "resume_path", str(elsewhere)
    assert check_resume(config) == "goes on after step 2"
    config.method.coef = 0.5
    with pytest.raises(ValueError, match=r"method\.coef 1\.0 there, 0\.5 here"):
        check_resume(config)


def test_a_checkpoint_is_read_by_as_many_ranks_as_wrote_it(tmp_path):
    folder = save_checkpoint(tmp_path, 2, ranks=4)
    check_ranks(folder, 4, "--nproc")
    with pytest.raises(ValueError, match=r"--nproc = 2: the checkpoint .*global_step_2 was written by 4 ranks; take"):
        check_ranks(folder, 2, "--nproc")


def test_a_line_that_a_killed_run_left_half_is_removed_and_that_is_said(config):
    start(config)
    save(config, 2)
    run_dir = Path(config.run_dir)
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "teac')
    (run_dir / "timeline.jsonl").write_text('{"step": 1}\n')
    (run_dir / "stages.jsonl").write_text('{"stage"')
    assert start(config) == [
        f"{run_dir}/metrics.jsonl: its last line was cut in the middle; its 17 bytes are removed",
        f"{run_dir}/stages.jsonl: its last line was cut in the middle; its 8 bytes are removed",
        "step 2 is saved and has no row in metrics.jsonl: the run was killed before it was written",
    ]
    assert (run_dir / "metrics.jsonl").read_text() == (run_dir / "timeline.jsonl").read_text() == '{"step": 1}\n'
    assert (run_dir / "stages.jsonl").read_text() == ""


def test_an_empty_folder_of_checkpoints_is_a_start(config):
    checkpoints_of(config).mkdir(parents=True)
    assert resume_of(config.trainer) is None
    assert latest_step(checkpoints_of(config)) is None
