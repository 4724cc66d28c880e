"""verl 0.9.1's checkpoints, as far as ours stand on them: what is loaded as data, and what is taken anew.

A red test here means that verl changed under us; `verl_ext/platform/loading.py`, `trainer/checkpoint.py` or
`sft/checkpoint.py` is what to mend.
"""

import inspect
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from seams import parameters
from torch.optim.lr_scheduler import LambdaLR
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.utils.checkpoint.checkpoint_handler import CheckpointHandler
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

from verl_ext.platform import loading
from verl_ext.run.checkpoints import STEP, TRACKER
from verl_ext.sft.checkpoint import WholeCheckpoints


class Hook:
    """What a foreign checkpoint may hold: it calls something when it is unpickled."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.out,)


class Manager(FSDPCheckpointManager):
    """verl's, less the process group and the sharding."""

    def __init__(self, lr: float, schedule: Any, **group: Any) -> None:
        self.model = torch.nn.Linear(2, 2, bias=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, **group)
        self.lr_scheduler = LambdaLR(self.optimizer, schedule)
        self.rank, self.world_size = 0, 1
        self.checkpoint_load_contents = ["model", "optimizer", "extra"]

    def train(self, steps: int) -> list[float]:
        """The learning rates that the steps were taken with."""
        used = []
        for _ in range(steps):
            self.model(torch.ones(1, 2)).sum().backward()
            used.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.lr_scheduler.step()
        return used

    def save(self, folder: Path) -> Path:
        name = "{}_world_size_1_rank_0.pt"
        torch.save(self.model.state_dict(), folder / name.format("model"))
        torch.save(self.optimizer.state_dict(), folder / name.format("optim"))
        extra = {"lr_scheduler": self.lr_scheduler.state_dict(), "rng": BaseCheckpointManager.get_rng_state()}
        torch.save(extra, folder / name.format("extra_state"))
        return folder


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    from verl.utils.checkpoint import fsdp_checkpoint_manager as theirs

    monkeypatch.setattr(theirs, "get_fsdp_state_ctx", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(theirs.torch.distributed, "barrier", lambda: None)


def half_life(step: int) -> float:
    return 0.5**step


def test_verls_loader_is_ours():
    assert FSDPCheckpointManager.load_checkpoint is loading.load
    assert parameters(loading.load) == ["self", "local_path", "hdfs_path", "del_local_after_load"]
    source = inspect.getsource(loading._theirs)
    assert source.count("torch.load(") == source.count("weights_only=False") == 3


def test_the_state_of_random_generators_is_loaded_as_data(tmp_path):
    manager = Manager(0.1, half_life)
    manager.save(tmp_path)
    wanted = np.random.rand(3), torch.rand(3)
    manager.load_checkpoint(str(tmp_path))
    assert np.random.rand(3).tolist() == wanted[0].tolist()
    assert torch.equal(torch.rand(3), wanted[1])


@pytest.mark.parametrize("part", ["model", "optim", "extra_state"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path, part):
    manager = Manager(0.1, half_life)
    manager.save(tmp_path)
    proof = tmp_path / "proof"
    torch.save({"rng": Hook(proof)}, tmp_path / f"{part}_world_size_1_rank_0.pt")
    with pytest.raises(ValueError, match=r"no data: it would call posix\.mkdir; take a checkpoint that a run of yours"):
        manager.load_checkpoint(str(tmp_path))
    assert not proof.exists()


def test_outside_of_it_torch_loads_as_it_did(tmp_path):
    torch.save({"rng": Hook(tmp_path / "proof")}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="no data"), loading.as_data():
        torch.load(tmp_path / "file.pt", weights_only=False)
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "proof").exists()


def test_a_resumed_optimizer_goes_on_bit_for_bit_where_nothing_changed(tmp_path):
    torch.manual_seed(0)
    whole = Manager(0.1, half_life, betas=(0.8, 0.9))
    rates = whole.train(3)
    whole.save(tmp_path)
    rates += whole.train(3)
    resumed = Manager(0.1, half_life, betas=(0.8, 0.9))
    resumed.load_checkpoint(str(tmp_path))
    assert resumed.train(3) == rates[3:] == [0.1 * 0.5**step for step in (3, 4, 5)]
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_a_changed_learning_rate_schedule_and_adam_are_taken_at_the_step_that_was_reached(tmp_path):
    saved = Manager(0.1, half_life)
    saved.train(3)
    saved.save(tmp_path)
    resumed = Manager(0.02, lambda step: 1 / (1 + step), betas=(0.5, 0.6), weight_decay=0.3)
    resumed.load_checkpoint(str(tmp_path))
    (group,) = resumed.optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["initial_lr"]) == ((0.5, 0.6), 0.3, 0.02)
    assert resumed.lr_scheduler.get_last_lr() == [0.02 / 4]
    state = resumed.optimizer.state[resumed.model.weight]
    assert state["step"] == 3
    assert torch.equal(state["exp_avg"], saved.optimizer.state[saved.model.weight]["exp_avg"])
    assert resumed.train(2) == [0.02 / 4, 0.02 / 5]


def test_verl_writes_a_checkpoint_where_its_settings_say_and_names_it_last():
    source = inspect.getsource(PPOTrainerSync._save_checkpoint)
    for words in ("default_local_dir", 'f"global_step_{self.global_steps}"', '"max_actor_ckpt_to_keep"'):
        assert words in source
    assert source.index(TRACKER) < source.rindex("self.checkpoint_callback.on_save(")
    assert STEP in inspect.getsource(CheckpointHandler.save_checkpoint)


def test_an_sft_checkpoint_is_whole_and_those_beyond_the_newest_are_removed(tmp_path, monkeypatch):
    """verl's own handler, around an engine that writes a file."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    loaded = []

    def save(local_path: str, **_: Any) -> None:
        Path(local_path).mkdir(parents=True)
        (Path(local_path) / "shard").write_text("x")

    engine = SimpleNamespace(
        save_checkpoint=save,
        load_checkpoint=loaded.append,
        is_mp_src_rank_with_outputs=lambda: True,
        get_data_parallel_rank=lambda: 0,
    )
    loader = SimpleNamespace(state_dict=lambda: {"delivered": 3}, load_state_dict=loaded.append)
    checkpoints = tmp_path / "checkpoints"

    def handler() -> WholeCheckpoints:
        theirs = CheckpointHandler(engine, loader, default_local_dir=str(checkpoints), max_ckpt_to_keep=2)  # pyright: ignore[reportArgumentType]
        return WholeCheckpoints(theirs, tmp_path)

    for step in (1, 2, 3):
        handler().save_checkpoint(step)  # as three starts of a run
    assert sorted(path.name for path in checkpoints.glob("global*")) == ["global_step_2", "global_step_3"]
    assert {"data_0.pt", "manifest.json", "shard"} == {path.name for path in (checkpoints / "global_step_3").iterdir()}
    assert handler().load_checkpoint() == 3
    assert loaded == [str(checkpoints / "global_step_3"), {"delivered": 3}]
