"""An earlier student as the teacher: when its adapter changes, to what, and what a checkpoint brings back."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from verl_ext.teacher.refresh import Refresh
from verl_ext.trainer import refreshing
from verl_ext.trainer.earlier import FILE, TeachingWorker
from verl_ext.trainer.guarded import GuardedTrainer
from verl_ext.trainer.refreshing import Orders, RefreshingTrainer

PEFT = {"r": 1}


class Worker:
    """vLLM's worker with verl's part in it, as far as adapters go: what was sent to it, and what it serves."""

    rank = 0

    def __init__(self) -> None:
        self.served: dict[int, dict[str, torch.Tensor]] = {}

    def _update_weights(self, weights: Any, peft_config: Any, base_sync_done: bool) -> None:
        del weights, peft_config, base_sync_done

    def remove_lora(self, number: int) -> None:
        self.served.pop(number, None)

    def add_lora(self, request: Any) -> None:
        assert request.lora_int_id not in self.served
        self.served[request.lora_int_id] = request.lora_tensors


class Teaching(TeachingWorker, Worker):
    pass


class Server:
    """A server's actor, before one worker."""

    def __init__(self) -> None:
        self.worker = Teaching()
        self.collective_rpc = SimpleNamespace(remote=lambda name, args: getattr(self.worker, name)(*args))

    def sync(self, value: float, *, base: bool = False) -> float | None:
        """Send a student whose every number is `value`; what the teacher's adapter is then."""
        tensor = torch.full((2,), value, dtype=torch.bfloat16)
        self.worker._update_weights([("lora_A", tensor)], None if base else PEFT, base_sync_done=not base)
        tensor.zero_()  # verl's buffer is used again
        found = list(self.worker.served.values())
        assert len(found) < 2
        return found[0]["lora_A"][0].item() if found else None


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    monkeypatch.setattr(refreshing.ray, "get", list)


def teachers(orders: Orders, servers: list[Server], steps: range) -> list[float | None]:
    """The teacher after the weight sync of each step, whose student is its number."""
    found = []
    for step in steps:
        orders.before_sync(servers, step)
        (every,) = {server.sync(step) for server in servers}
        found.append(every)
    return found


@pytest.mark.parametrize(
    ("refresh", "expected"),
    [
        (Refresh(3, 0.0), [0, 0, 0, 3, 3, 3, 6]),
        (Refresh(1, 0.5), [0, 0.5, 1.25, 2.125, 3.0625, 4.03125, 5.0]),  # in bfloat16 as the student comes
        (Refresh(2, 0.75), [0, 0, 0.5, 0.5, 1.375, 1.375, 2.53125]),
    ],
)
def test_the_teacher_moves_at_every_nth_step(refresh, expected):
    found = teachers(Orders(refresh), [Server(), Server()], range(7))
    assert found == pytest.approx(expected, rel=2**-7)


def test_a_checkpoint_of_before_or_after_the_sync_goes_on_as_if_nothing_was(tmp_path):
    refresh = Refresh(2, 0.5)
    whole = teachers(Orders(refresh), [Server()], range(6))
    for synced in (False, True):  # a step is saved before its sync, and when a run is stopped in the next one
        servers, orders, folder = [Server(), Server()], Orders(refresh), tmp_path / str(synced)
        folder.mkdir()
        teachers(orders, servers, range(5 if synced else 4))
        orders.save(servers, folder)
        again, others = Orders(refresh), [Server(), Server()]
        again.load(others, folder)
        assert teachers(again, others, range(4, 6)) == whole[4:]


def test_a_mean_is_kept_in_fp32_and_by_one_worker(tmp_path):
    servers, orders = [Server(), Server()], Orders(Refresh(1, 0.999))
    teachers(orders, servers, range(2))
    servers[0].worker.rank = 1
    orders.save(servers, tmp_path)
    assert not list(tmp_path.iterdir())
    servers[0].worker.rank = 0
    orders.save(servers, tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == f"1-{FILE}"
    mean = load_file(file)["lora_A"]
    assert mean.dtype == torch.float32
    assert mean[0].item() == pytest.approx(0.001, rel=1e-4)


def test_a_base_that_arrives_is_no_adapter():
    server, orders = Server(), Orders(Refresh(1, 0.5))
    orders.before_sync([server], 0)
    assert server.sync(7, base=True) is None
    assert server.sync(1) == 1


def test_a_checkpoint_without_a_teacher_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no earlier student; set teacher\.refresh_every and ema as it"):
        Orders(Refresh(2, 0.0)).load([Server()], tmp_path)


@pytest.fixture
def wired(monkeypatch, tmp_path) -> tuple[Any, list[Any]]:
    """A trainer of which only its part in this is real; what it says to servers, and what the rest of it does."""
    done: list[Any] = []
    for name in ("on_init_end", "_load_checkpoint", "_add_to_checkpoint"):
        monkeypatch.setattr(GuardedTrainer, name, lambda _, *__, name=name: done.append(name))
    monkeypatch.setattr(GuardedTrainer, "sync_weights", lambda _, sync: sync())
    monkeypatch.setattr(refreshing, "tell", lambda servers, *order: done.append((servers, *order)))
    made = object.__new__(RefreshingTrainer)
    made._orders, made.global_steps = Orders(Refresh(2, 0.5)), 0
    made.llm_server_manager = SimpleNamespace(get_replicas=lambda: [SimpleNamespace(servers=["one"])] * 2)
    made.config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto"}})
    return made, done


def test_the_trainer_orders_a_refresh_before_the_weights_go_out(wired):
    trainer, done = wired
    trainer.on_init_end()
    for trainer.global_steps in (1, 2):
        trainer.sync_weights(lambda: done.append("synced"))
    order = (["one", "one"], "refresh_teacher", 0.5)
    assert done == [order, "on_init_end", "synced", order, "synced"]


def test_the_teacher_lies_in_the_checkpoint_of_its_step_and_comes_out_of_it(wired, tmp_path):
    trainer, done = wired
    trainer._load_checkpoint()  # a run that begins
    trainer.global_steps = 3
    trainer._add_to_checkpoint(tmp_path / "staged")
    file = tmp_path / "global_step_3" / f"2-{FILE}"
    file.parent.mkdir()
    file.touch()
    trainer._load_checkpoint()
    assert done == [
        *("_load_checkpoint", "_add_to_checkpoint", (["one"], "save_teacher", str(tmp_path / f"staged/-1-{FILE}"))),
        *("_load_checkpoint", (["one", "one"], "load_teacher", str(file))),
    ]


def test_without_an_earlier_student_nobody_is_told_anything(wired, tmp_path):
    trainer, done = wired
    trainer._orders, trainer.global_steps = None, 4
    trainer.on_init_end()
    trainer._load_checkpoint()
    trainer._add_to_checkpoint(tmp_path)
    trainer.sync_weights(lambda: done.append("synced"))
    assert done == ["on_init_end", "_load_checkpoint", "_add_to_checkpoint", "synced"]
