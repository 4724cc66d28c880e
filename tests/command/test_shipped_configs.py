"""Every shipped training configuration composes, and what it says is what is in force."""

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from verl_ext.plan.advice import single_changes
from verl_ext.plan.hardware import HardwareConfig, hardware_of
from verl_ext.plan.layout import PHASES, overflows, pools, problems
from verl_ext.plan.run import Run, read_run
from verl_ext.run.settings import settings_of
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.config import MethodConfig

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


GPU_TEACHERS, CPU_TEACHERS = ("fp8", "bf16"), ("cpu_fp32", "cpu_bf16")
KEYS_READ = """pipeline student teacher data trainer ray_kwargs actor_rollout_ref ray_init runtime_env env_vars path
    model lora_rank lora base target_modules enable_gradient_checkpointing enable_activation_offload use_fused_kernels
    use_remove_padding
    actor use_dynamic_bsz ppo_mini_batch_size ppo_micro_batch_size_per_gpu ppo_max_token_len_per_gpu calculate_entropy
    fsdp_config fsdp_size model_dtype use_torch_compile ulysses_sequence_parallel_size param_offload optimizer_offload
    rollout n tensor_model_parallel_size dtype gpu_memory_utilization max_num_seqs max_num_batched_tokens max_model_len
    free_cache_engine checkpoint_engine update_weights_bucket_megabytes nnodes n_gpus_per_node
    train_batch_size max_prompt_length max_response_length mode urls model_path engine device tp dp quantization
    placement
    replay share capacity_tokens capacity_bytes method top_k
    mem_fraction_static max_total_tokens share_device"""
READ = frozenset(KEYS_READ.split())


@functools.cache
def departures(group: str, name: str) -> dict[str, Any]:
    """What a group's file states, the files it builds on included, as Hydra merges it."""
    text = (CONFIGS / group / f"{name}.yaml").read_text()
    content = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(content, dict)
    if text.startswith("# @package teacher"):
        return {"teacher": content}
    below: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            ((key, value),) = entry.items()
            below = merged(below, departures(key.split("/")[-1], value))
        elif entry != "_self_":
            below = merged(below, departures(group, entry))
    return merged(below, content)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(above[key], dict)}
    return below | above | both


def read_part(node: dict[str, Any]) -> dict[str, Any]:
    """Only what a plan reads: verl's whole configuration takes too long to compose for every combination."""
    part = {key: value for key, value in node.items() if key in READ}
    return {key: read_part(value) if isinstance(value, dict) else value for key, value in part.items()}


@pytest.fixture(scope="module")
def plain_base(compose_run):
    return read_part(OmegaConf.to_container(compose_run()))


def plan_of(base: dict[str, Any], **groups: str) -> tuple[Run, HardwareConfig, Any]:
    for group in ("update", "model", "teacher", "hardware", "task"):
        base = merged(base, departures(group, groups[group]))
    config = OmegaConf.create(base)
    return read_run(config), hardware_of(config.hardware), config


def combinations() -> list[dict[str, str]]:
    every = [
        {"model": model, "hardware": hardware, "update": update, "task": "prompt_distillation", "teacher": teacher}
        for model, hardware, update in itertools.product(names("model"), names("hardware"), names("update"))
        for teacher in (CPU_TEACHERS if hardware.startswith("cpu") else GPU_TEACHERS)
    ]
    first = [groups for groups in every if groups["model"] == names("model")[0]]
    return every + [groups | {"task": task} for groups in first for task in names("task")]


def test_merging_by_hand_is_what_hydra_does(compose_run, plain_base):
    groups = {"update": "lora", "model": "qwen3_4b_from_30b_fp8", "teacher": "bf16", "task": "math_reasoning"}
    run, hardware, config = plan_of(plain_base, **groups, hardware="a100_8x")
    words = [f"{key}={value}" for key, value in groups.items()]
    composed = compose_run(*words, "hardware=a100_8x", f"student.path={config.student.path}")
    assert read_run(composed) == run
    assert hardware_of(composed.hardware) == hardware
    assert settings_of(composed.teacher, TeacherConfig) == TeacherConfig(**config.teacher)
    assert (run.teacher.quantized, hardware.fp8) == (True, False)


def test_hardware_cpu_chooses_its_platform(compose_run):
    config = compose_run("hardware=cpu")
    assert config.trainer.device == config.teacher.device == "cpu"
    assert hardware_of(config.hardware).unified_memory


def test_every_combination_plans_and_is_refused_only_for_a_known_reason(plain_base):
    known = {
        "FP8": lambda run, hardware: run.teacher.quantized and not hardware.fp8,
        "tensor_model_parallel_size=2 does not divide 1": lambda run, _: run.rollout.tp > run.trainer.ranks,
        "mem_fraction_static": lambda *_: True,  # a teacher too large for its share
        "gpu_memory_utilization": lambda *_: True,
    }
    for groups in combinations():
        run, hardware, config = plan_of(plain_base, **groups)
        TeacherConfig(**config.teacher)
        found = problems(run, hardware)
        for line in found:
            assert any(text in line and when(run, hardware) for text, when in known.items()), (groups, line)
        assert any("FP8" in line for line in found) == (run.teacher.quantized and not hardware.fp8), groups
        teachers_own = run.teacher.tp * run.teacher.dp if hardware.teacher == "own" else 0
        assert run.trainer.ranks + teachers_own <= hardware.devices
        assert run.sequences % run.trainer.ranks == 0
        assert all(pool.total(phase) > 0 for pool in pools(run, hardware) for phase in PHASES)


SMALL = ("a100_1x", "consumer_24gb", "l40s_1x", "rtx4090_1x")  # too small for the 30B teacher, or without FP8
LARGE = ("b200_1x", "gb10_128gb", "h100_1x", "h200_1x", "rtx_pro_6000_1x")
NODES = ("a100_8x", "h100_8x", "ray_cluster")


def test_every_machine_with_gpus_is_tried_below():
    assert {*SMALL, *LARGE, *NODES} == {name for name in names("hardware") if not name.startswith("cpu")}


@pytest.mark.parametrize(
    ("model", "update", "teacher", "fitting"),
    [
        ("qwen3_0p6b_from_1p7b", "full", "bf16", {*SMALL, *LARGE, *NODES}),
        ("qwen3_4b_from_30b", "lora", "fp8", {*LARGE, "h100_8x", "ray_cluster"}),
        ("qwen3_4b_from_30b", "lora", "bf16", {*NODES}),  # 57 GiB of teacher fit no share of 24 GB, nor 0.3 of GB10
        ("qwen3_30b_a3b_self", "lora", "bf16", {*NODES}),
        ("qwen3_30b_a3b_self", "full", "bf16", {"ray_cluster"}),
        ("qwen3_8b_base_from_32b", "lora", "fp8", {"b200_1x", "h200_1x", "h100_8x", "ray_cluster"}),
    ],
)
def test_which_machines_a_model_fits(plain_base, model, update, teacher, fitting):
    fits = set()
    for name in (*SMALL, *LARGE, *NODES):
        groups = {"model": model, "update": update, "teacher": teacher, "task": "prompt_distillation"}
        run, hardware, _ = plan_of(plain_base, **groups, hardware=name)
        if not problems(run, hardware) and not overflows(run, hardware):
            fits.add(name)
    assert fits == fitting


def test_a_shipped_run_that_does_not_fit_gets_a_change_that_does(plain_base):
    groups = {"model": "qwen3_4b_from_30b", "hardware": "h200_1x", "update": "lora", "task": "prompt_distillation"}
    run, hardware, _ = plan_of(plain_base, **groups, teacher="bf16")
    assert "teacher=fp8" in [change.overrides for change in single_changes(run, hardware)]
