"""Every shipped training configuration composes, and what it says is what is in force."""

import math
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from verl_ext.config import MethodConfig, settings_of
from verl_ext.teacher.config import TeacherConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("platform", names("platform"))
@pytest.mark.parametrize("task", names("task"))
def test_every_platform_and_task_compose_to_valid_settings(compose_run, platform, task):
    config = compose_run(f"platform={platform}", f"task={task}")
    OmegaConf.resolve(config)
    assert settings_of(config.method, MethodConfig) == MethodConfig()
    assert settings_of(config.teacher, TeacherConfig).device == platform
    assert config.teacher.model_path == config.student.path == config.actor_rollout_ref.model.path == "MODEL"


def test_tinkers_update_is_in_force(compose_run):
    actor = compose_run().actor_rollout_ref.actor
    assert actor.policy_loss.loss_mode == "importance_sampling"
    assert actor.loss_agg_mode == "token-sum"
    assert math.isinf(actor.optim.clip_grad)
    assert (actor.optim.lr, actor.optim.lr_scheduler_type, actor.optim.weight_decay) == (1e-4, "constant", 0.0)
    assert list(actor.optim.betas) == [0.9, 0.95]
    assert actor.optim.override_optimizer_config.eps == 1e-8


def test_the_sampler_is_the_models_own_distribution_and_upstream_distillation_is_off(compose_run):
    config = compose_run()
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, -1)
    assert config.distillation.enabled is False
    assert config.actor_rollout_ref.model.trust_remote_code is False


@pytest.mark.parametrize("override", ["method.cof=2", "teacher.ulrs=[]", "nonsense=1", "trainer.total_step=3"])
def test_an_unknown_key_is_refused(compose_run, override):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        compose_run(override)
