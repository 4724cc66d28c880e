"""What the process that holds the run does before verl takes over."""

import json
import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.trainer import main_ppo
from verl.trainer.ppo.utils import need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils import device
from verl.workers.rollout import router

import verl_ext.platform
from verl_ext.trainer import runner
from verl_ext.trainer.config import GuardsConfig, MethodConfig
from verl_ext.trainer.runner import Runner, ask_for_reference, make_room_for_weights, plain_class
from verl_ext.trainer.shared_calls import OnlyServer
from verl_ext.trainer.trainer import NAME, OnPolicyDistillationTrainer


@pytest.fixture
def config(run_config, tmp_path):
    config = OmegaConf.merge(run_config, {"run_dir": str(tmp_path), "teacher": {"urls": ["http://127.0.0.1:1"]}})
    OmegaConf.resolve(config)
    return config


@pytest.fixture
def started(monkeypatch) -> list:
    """What verl's task runner was started with, on which platform; nothing is started."""
    seen = []
    monkeypatch.setattr(router, "get_router_handle", router.get_router_handle)

    class TaskRunner:
        def run(self, config) -> None:
            seen.append(config)

    monkeypatch.setattr(verl_ext.platform, "assert_platform", seen.append)
    for beside in ("start_queue", "start_engines"):  # Ray's processes
        monkeypatch.setattr(runner, beside, lambda _: None)
    monkeypatch.setattr(
        main_ppo, "TaskRunnerV1", SimpleNamespace(__ray_metadata__=SimpleNamespace(modified_class=TaskRunner))
    )
    return seen


@pytest.mark.parametrize(
    ("device", "hidden", "left"), [("cuda", "", None), ("cpu", "", ""), ("cuda", "3", "3")], ids=str
)
def test_a_buffer_on_a_gpu_sees_those_that_ray_hides(config, started, monkeypatch, device, hidden, left):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    config.replay = {"share": 0.5, "device": device}
    plain_class(Runner)().run(config, [])
    assert started[1] is config
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == left


def test_verl_is_started_with_our_trainer_on_the_platform_that_was_asked_for(config, started, tmp_path):
    plain_class(Runner)().run(config, [])
    assert isinstance(router.get_router_handle({"a": None}), OnlyServer)  # as verl makes its load balancer
    assert started[0] == "cpu"
    assert started[1] is config
    assert get_trainer_cls(config.trainer.v1.trainer_mode) is OnPolicyDistillationTrainer
    assert config.trainer.v1.trainer_mode == NAME
    assert "trainer process imported verl" in (tmp_path / "stages.jsonl").read_text()
    assert not need_reference_policy(config)


def test_verl_waits_for_those_who_share_its_device(config, started, monkeypatch):
    monkeypatch.setattr(runner.ray, "get", started.append)
    plain_class(Runner)().run(config, ["teacher is ready"])
    assert started == ["cpu", ["teacher is ready"], config]


def test_verls_own_checks_run_first(config, started):
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 3  # does not divide the batch of 2
    with pytest.raises((ValueError, AssertionError)):
        plain_class(Runner)().run(config, [])
    assert started == ["cpu"]


def test_a_contradicting_method_is_refused_before_verl_starts(config, started):
    config.method.student_logprobs = "old"
    with pytest.raises(ValueError, match=r"^method\.student_logprobs=old"):
        plain_class(Runner)().run(config, [])
    assert started == ["cpu"]


def test_the_reference_model_gets_what_verl_asks_of_one(config, started):
    config.trainer.device = "cuda"
    config.method.guards.reference_kl_coef = 0.5
    config.actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu = 7
    plain_class(Runner)().run(config, [])
    assert need_reference_policy(started[1])
    assert started[1].algorithm.kl_ctrl.kl_coef == 0
    assert started[1].actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu == 7


def test_a_micro_batch_of_the_reference_that_was_given_is_kept(config):
    config.actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu = 3
    ask_for_reference(config, MethodConfig(guards=GuardsConfig(reference_kl_coef=0.5)))
    assert config.actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu == 3


@pytest.mark.parametrize(
    ("vocabulary", "shared_handles", "asked", "megabytes"),
    [
        (300_000, False, 16, 37),  # 300,000 x 32 fp32 numbers
        (300_000, False, 100, 100),
        (300, False, 16, 16),
        (300_000, True, 16, 16),  # CUDA: verl sends a tensor that is larger by itself
    ],
)
def test_the_largest_tensor_fits_the_bucket_of_the_weight_sync(
    config, student, tmp_path, monkeypatch, vocabulary, shared_handles, asked, megabytes
):
    monkeypatch.setattr(device, "is_support_ipc", lambda: shared_handles)
    model = json.loads((student / "config.json").read_text()) | {"vocab_size": vocabulary}
    (tmp_path / "big").mkdir()
    (tmp_path / "big/config.json").write_text(json.dumps(model))
    transfer = config.actor_rollout_ref.rollout.checkpoint_engine
    config.student.path, transfer.update_weights_bucket_megabytes = str(tmp_path / "big"), asked
    make_room_for_weights(config)
    assert transfer.update_weights_bucket_megabytes == megabytes


@pytest.mark.parametrize(("refresh", "room"), [({}, None), ({"refresh_every": 1}, None), ({"refresh_every": 5}, 2)])
@pytest.mark.usefixtures("started")
def test_an_earlier_student_has_room_in_vllm(config, refresh, room):
    config.actor_rollout_ref.model.lora_rank = 8
    config.teacher = OmegaConf.merge(config.teacher, {"mode": "base", "urls": [], **refresh})
    plain_class(Runner)().run(config, [])
    engine = OmegaConf.to_container(config.actor_rollout_ref.rollout.engine_kwargs)
    assert (engine.get("vllm") or {}).get("max_loras") == room
