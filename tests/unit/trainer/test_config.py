import pytest
from omegaconf import OmegaConf

from verl_ext.method import divergence, reverse_kl
from verl_ext.run.settings import check_given, settings_of
from verl_ext.trainer.config import (
    BASELINES,
    CONTROLS,
    DIRECT_LOSSES,
    DISCOUNT_MODES,
    NORMALIZATIONS,
    POLICY_LOSSES,
    GuardsConfig,
    MethodConfig,
    PolicyLossConfig,
    TaskRewardConfig,
    check_method,
)

DIRECT = {"loss": "forward_kl", "top_k": 64}
EXPECTED = {"baseline": "expected_reverse_kl", "top_k": 64}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coef": -0.1}, "method.coef=-0.1 must be >= 0"),
        ({"discount": 1.1}, r"method.discount=1.1 must be in \[0.0, 1.0\]"),
        ({"discount_mode": "tinker"}, "method.discount_mode"),
        ({"control": "reversed"}, "method.control"),
        ({"loss": "k3"}, "method.loss"),
        ({"baseline": "critic"}, "method.baseline"),
        ({"normalization": "batch"}, "method.normalization"),
        ({"student_logprobs": "trainer"}, "method.student_logprobs"),
        ({"clip": 0.0}, "method.clip=0.0 must be > 0"),
        ({"top_k": -2}, "method.top_k=-2 must be >= -1"),
        ({"chunk_tokens": 0}, "method.chunk_tokens"),
        ({"control": "constant_negative", "coef": 0.0}, "method.coef: set it above 0"),
        # What would act in silence, or not at all.
        ({"top_k": 64}, "its expected gradient is zero"),
        ({"loss": "forward_kl"}, "set method.top_k"),
        ({"baseline": "expected_reverse_kl"}, "set method.top_k"),
        (DIRECT | {"discount": 0.5}, "method.discount shapes an advantage"),
        (DIRECT | {"clip": 5.0}, "method.clip shapes an advantage"),
        (DIRECT | {"baseline": "group"}, "method.baseline shapes an advantage"),
        (DIRECT | {"normalization": "sequence"}, "method.normalization shapes an advantage"),
        (DIRECT | {"policy_loss": PolicyLossConfig(kind="ppo_clip")}, "method.policy_loss shapes an advantage"),
        (DIRECT | {"task_reward": TaskRewardConfig(coef=1.0)}, "method.task_reward shapes an advantage"),
        (DIRECT | {"guards": GuardsConfig(reference_kl_coef=0.1)}, "method.guards.reference_kl_coef shapes"),
        (DIRECT | {"control": "flipped_sign"}, "take method.loss=policy_gradient"),
        (EXPECTED | {"control": "shuffled_teacher"}, "take method.baseline=none"),
        ({"loss": "jensen_shannon", "top_k": 64, "mix": 1.0}, r"method.mix=1.0 must be in \(0, 1\)"),
        ({"loss": "skewed_reverse_kl", "top_k": 64, "mix": 1.0}, r"method.mix=1.0 must be in \[0, 1\)"),
    ],
)
def test_an_error_names_the_key_and_the_fix(settings, message):
    with pytest.raises(ValueError, match=message):
        MethodConfig(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [
        (MethodConfig, {"loss": "forward_kll", "top_k": 8}, "method.loss"),
        (PolicyLossConfig, {"kind": "vanilla"}, "method.policy_loss.kind"),
        (PolicyLossConfig, {"low": 1.1}, "method.policy_loss.low"),
        (PolicyLossConfig, {"high": 0.9}, "method.policy_loss.high"),
        (TaskRewardConfig, {"coef": -1.0}, "method.task_reward.coef"),
        (GuardsConfig, {"special_token_mask": [1, -1]}, "method.guards.special_token_mask"),
        (GuardsConfig, {"repetition_ngram": -1}, "method.guards.repetition_ngram"),
        (GuardsConfig, {"repetition_limit": 1.5}, "method.guards.repetition_limit"),
        (GuardsConfig, {"reference_kl_coef": -0.1}, "method.guards.reference_kl_coef"),
        (GuardsConfig, {"prefix_start": 0.0}, "method.guards.prefix_start"),
        (GuardsConfig, {"prefix_steps": -1}, "method.guards.prefix_steps"),
    ],
)
def test_an_error_in_a_group_names_the_whole_key(kind, settings, key):
    with pytest.raises(ValueError, match=key):
        kind(**settings)


def test_what_may_be_combined():
    for loss in DIRECT_LOSSES:
        assert MethodConfig(loss=loss, top_k=-1).needs_student_logits
    assert MethodConfig(**EXPECTED, discount=0.9, control="no_weight_sync").needs_student_logits
    assert not MethodConfig(baseline="group").needs_student_logits
    for control in CONTROLS:
        MethodConfig(control=control)


def test_the_names_are_those_of_the_method():
    """`verl_ext.trainer.config` imports no torch, so it lists them itself."""
    assert DIRECT_LOSSES == divergence.KINDS
    assert NORMALIZATIONS == reverse_kl.NORMALIZATIONS
    assert MethodConfig().discount_mode in DISCOUNT_MODES
    assert MethodConfig().baseline in BASELINES
    assert MethodConfig().policy_loss.kind in POLICY_LOSSES


@pytest.fixture
def with_overrides(composed_config):
    """The composed configuration with some keys changed."""

    def change(*overrides: str):
        return OmegaConf.merge(composed_config, OmegaConf.from_dotlist(list(overrides)))

    return change


def test_groups_come_back_from_a_configuration(with_overrides):
    config = with_overrides("method.policy_loss.kind=ppo_clip", "method.guards.special_token_mask=[1,2]")
    method = settings_of(config.method, MethodConfig)
    assert method.policy_loss == PolicyLossConfig(kind="ppo_clip")
    assert method.guards.special_token_mask == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.student_logprobs=old"], "algorithm.rollout_correction.bypass_mode=true"),
        (["method.guards.reference_kl_coef=0.1"], "method.guards.reference_kl_coef=0.1 needs verl's reference model"),
        (
            ["method.loss=forward_kl", "method.top_k=8", "actor_rollout_ref.model.use_fused_kernels=true"],
            "actor_rollout_ref.model.use_fused_kernels=true",
        ),
        (
            ["method.loss=forward_kl", "method.top_k=8", "actor_rollout_ref.actor.use_kl_loss=true"],
            "actor_rollout_ref.actor.use_kl_loss=true",
        ),
    ],
)
def test_verls_settings_that_the_method_cannot_stand_are_refused(with_overrides, overrides, message):
    with pytest.raises(ValueError, match=message):
        check_method(with_overrides(*overrides))


def test_the_shipped_method_passes(with_overrides):
    assert check_method(with_overrides()) == MethodConfig()
    decoupled = ["method.student_logprobs=old", "algorithm.rollout_correction.bypass_mode=false"]
    assert check_method(with_overrides(*decoupled)).student_logprobs == "old"


def test_a_bad_combination_is_refused_from_a_configuration():
    node = OmegaConf.merge(OmegaConf.structured(MethodConfig), {"top_k": 4})
    with pytest.raises(ValueError, match="its expected gradient is zero"):
        settings_of(node, MethodConfig)


@pytest.mark.parametrize("missing", ["student.path", "data.val_files"])
def test_what_must_be_given_is_named_where_it_is_not(compose_run, missing):
    config = compose_run()
    check_given(config, "student.path", "data.val_files")
    OmegaConf.update(config, missing, "???")
    with pytest.raises(ValueError, match=rf"^{missing} is not set: give {missing}=\.\.\.$"):
        check_given(config, "student.path", "data.val_files")
