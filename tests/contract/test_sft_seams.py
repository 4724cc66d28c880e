"""verl 0.9.1's SFT trainer, as far as `verl_ext/sft` stands on it; and our presets on the objects that verl makes.

A red test here means that verl changed under us; the adapter it names is what to mend.
"""

import importlib.util
import inspect
import types

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from seams import parameters
from torch.distributed.fsdp._fully_shard import _fully_shard
from verl.trainer.sft_trainer import SFTTrainer, create_sft_dataset
from verl.utils import fsdp_utils
from verl.utils import tensordict_utils as tu
from verl.utils.checkpoint import checkpoint_handler
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import FSDPOptimizerConfig
from verl.workers.config.optimizer import build_optimizer
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.utils.losses import sft_loss

from verl_ext.data.rows import LABELS
from verl_ext.demo.tiny_pair import build_model, train_tokenizer
from verl_ext.platform import adapted_head
from verl_ext.sft import engine, trainer
from verl_ext.sft.dataset import ConversationDataset
from verl_ext.student.export import TARGET_MODULES

OVERRIDES = [
    (trainer.SftTrainer, SFTTrainer, "_build_dataloader"),
    (trainer.SftTrainer, SFTTrainer, "_build_ckpt_handler"),
    (engine.SftEngine, FSDPEngineWithLMHead, "_build_lr_scheduler"),
    (engine.SftEngine, FSDPEngineWithLMHead, "lr_scheduler_step"),
    (engine.SftEngine, FSDPEngineWithLMHead, "_build_lora_module"),
]


@pytest.mark.parametrize(("ours", "theirs", "name"), OVERRIDES, ids=lambda value: getattr(value, "__name__", value))
def test_an_override_has_the_signature_of_what_it_overrides(ours, theirs, name):
    assert name in vars(ours)
    assert parameters(vars(ours)[name]) == parameters(getattr(theirs, name))


def test_our_overrides_are_all_listed():
    listed = {(ours, name) for ours, _, name in OVERRIDES}
    for ours, theirs in ((trainer.SftTrainer, SFTTrainer), (engine.SftEngine, FSDPEngineWithLMHead)):
        for name, value in vars(ours).items():
            if callable(value) and hasattr(theirs, name) and not name.startswith("__"):
                assert (ours, name) in listed


def test_verl_takes_our_engine_by_vendor(monkeypatch):
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    monkeypatch.setenv("VERL_ENGINE_VENDOR", engine.VENDOR)
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is engine.SftEngine
    monkeypatch.setenv("VERL_ENGINE_VENDOR", "nvidia")
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is FSDPEngineWithLMHead


def test_fit_uses_the_loader_and_the_sampler_as_we_give_them():
    source = inspect.getsource(SFTTrainer.fit)
    for use in (
        "self.train_sampler.set_epoch(epoch=epoch)",
        "global_step // self.steps_per_epoch",
        "self.training_client.train_batch(data=data)",
        "global_token_num=batch_seqlens_ntd",
        "is_last_step or (self.save_freq > 0 and is_save_step)",
    ):
        assert use in source
    source = inspect.getsource(checkpoint_handler.CheckpointHandler)
    assert "self.train_dataloader.state_dict()" in source
    assert "self.train_dataloader.load_state_dict(" in source


def test_the_trainer_makes_its_parts_in_the_order_we_rely_on():
    """The loader before the engine counts its steps; both before the checkpoint is read."""
    source = inspect.getsource(SFTTrainer.__init__)
    order = ["_build_dataset()", "_build_engine()", "_build_dataloader()", "_init_engine()", "_build_ckpt_handler()"]
    places = [source.index(part) for part in [*order, "load_checkpoint()"]]
    assert places == sorted(places)


def test_a_custom_dataset_is_built_with_verls_arguments():
    source = inspect.getsource(create_sft_dataset)
    for argument in ("parquet_files=", "tokenizer=", "config=data_config", "processor=", "max_samples="):
        assert argument in source
    assert parameters(ConversationDataset.__init__)[1:] == [
        "parquet_files", "tokenizer", "config", "processor", "max_samples",
    ]  # fmt: skip


def test_verls_token_mean_of_our_mask_is_the_mean_over_examples():
    """Two rows of 1 and 3 trained tokens: 2.667 as Tinker's, where a mask of ones gives 3.25."""
    log_probs = [torch.tensor([0.0, -2.0, 0.0]), torch.tensor([-3.0, -3.0, -4.0, 0.0, 0.0])]
    masks = [torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])]

    def loss(masks: list[torch.Tensor]) -> float:
        nested = torch.nested.as_nested_tensor(masks, layout=torch.jagged)
        meta = {"dp_size": 1, "batch_num_tokens": nested.sum().item(), "pad_mode": "no_padding"}
        batch = tu.get_tensordict({"loss_mask": nested}, non_tensor_dict=meta)
        outputs = {"log_probs": torch.nested.as_nested_tensor(log_probs, layout=torch.jagged)}
        values, _ = sft_loss(None, outputs, batch)
        return values.item()

    assert loss([mask / mask.sum() for mask in masks]) == pytest.approx((2 + 10 / 3) / 2, abs=1e-6)
    assert loss(masks) == pytest.approx((2 + 10) / 4, abs=1e-6)


def test_verl_counts_the_masks_sum_over_all_ranks():
    source = inspect.getsource(FSDPEngine.forward_backward_batch)
    assert 'data["loss_mask"].sum()' in source
    assert "batch_num_tokens=batch_num_tokens.item()" in source


def test_clip_grad_zero_zeroes_and_inf_leaves(monkeypatch):
    monkeypatch.setattr(fsdp_utils, "get_device_id", lambda: "cpu")

    for limit, wanted in ((0.0, 0.0), (float("inf"), 3.0)):
        weight = torch.nn.Parameter(torch.zeros(1))
        weight.grad = torch.tensor([3.0])
        fsdp_utils.fsdp2_clip_grad_norm_([weight], max_norm=limit)
        assert weight.grad.item() == wanted


def test_verl_itself_has_no_linear_schedule():
    with pytest.raises(AssertionError):
        FSDPOptimizerConfig(lr_scheduler_type="linear")


@pytest.fixture(scope="module")
def compose_sft(pytestconfig):
    from verl_ext.checks.schemas import prepare_training_configs

    prepare_training_configs()

    def run(*overrides: str):
        with initialize_config_dir(str(pytestconfig.rootpath / "configs" / "sft"), version_base=None):
            return compose("sft", ["student.path=MODEL", "data.train_files=rows.jsonl", *overrides])

    return run


def optimizer_and_rates(config, total_steps: int):
    """The optimizer and the logged LR of each step, made by verl's functions and our engine's."""
    made = object.__new__(engine.SftEngine)
    made.rank = 1
    made.optimizer_config = omega_conf_to_dataclass(config.optim)
    made.optimizer_config.total_training_steps = total_steps
    made.optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], made.optimizer_config)
    made.lr_scheduler = made._build_lr_scheduler(made.optimizer)
    used, logged = [], []
    for _ in range(total_steps):
        used.append(made.optimizer.param_groups[0]["lr"])
        made.optimizer.step()
        logged.append(made.lr_scheduler_step())
    assert logged == used
    return made.optimizer_config, made.optimizer, logged


def test_the_tinker_preset_in_force(compose_sft):
    config = compose_sft()
    settings, optimizer, rates = optimizer_and_rates(config, 64)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (list(group["betas"]), group["weight_decay"]) == ([0.9, 0.95], 0.0)
    assert group["eps"] == 1e-8 / 128 == 7.8125e-11
    assert settings.clip_grad == float("inf")
    assert rates == [1e-4 * (1 - step / 64) for step in range(64)]
    assert (config.model.lora_rank, config.model.lora_alpha) == (32, 32)
    assert tuple(config.model.target_modules) == TARGET_MODULES
    assert (config.data.train_batch_size, config.data.max_length, config.data.truncation) == (128, 32768, "right")
    assert (config.trainer.total_epochs, config.trainer.save_freq, config.sft.seed) == (4, 20, 0)


def test_the_seed_preset_in_force(compose_sft):
    config = compose_sft("preset=seed")
    settings, optimizer, rates = optimizer_and_rates(config, 64)
    (group,) = optimizer.param_groups
    assert (list(group["betas"]), group["weight_decay"], group["eps"]) == ([0.9, 0.95], 0.01, 1e-8)
    assert settings.clip_grad == 1.0
    assert rates[:7] == pytest.approx([1e-4 * step / 6 for step in range(7)])  # 10 % of 64, rounded down
    assert rates[-1] == pytest.approx(1e-4 / 58)
    assert (config.model.lora_rank, config.model.lora_alpha) == (32, 16)


def test_the_epsilon_follows_the_batch(compose_sft):
    _, optimizer, _ = optimizer_and_rates(compose_sft("data.train_batch_size=32"), 4)
    assert optimizer.param_groups[0]["eps"] == 1e-8 / 32


@pytest.mark.parametrize("preset", ["tinker", "seed"])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("task", ["demo", "prompt_distillation"])
def test_every_shipped_configuration_resolves(compose_sft, preset, platform, task):
    config = compose_sft(f"preset={preset}", f"platform={platform}", f"task={task}")
    assert "???" not in OmegaConf.to_yaml(config, resolve=True)
    assert config.optim._target_ == f"{engine.__name__}.LinearOptimizerConfig"
    assert config.environment.VERL_ENGINE_VENDOR == engine.VENDOR


def test_constant_and_cosine_stay_verls(compose_sft):
    for kind, last in (("constant", 1e-4), ("cosine", 0.0)):
        _, _, rates = optimizer_and_rates(compose_sft(f"optim.lr_scheduler_type={kind}"), 4)
        assert rates[0] == 1e-4
        assert rates[-1] >= last
        assert (len(set(rates)) == 1) == (kind == "constant")


def test_adapters_stay_in_fp32_on_a_bf16_base_when_asked():
    tokenizer = train_tokenizer(["x"], LABELS, 300)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for asked, wanted in (("base", torch.bfloat16), ("fp32", torch.float32)):
        model = build_model(tokenizer, shape | {"num_key_value_heads": 1, "head_dim": 16}).bfloat16()
        settings = types.SimpleNamespace(
            lora_rank=4,
            lora_alpha=4,
            target_modules=list(TARGET_MODULES),
            target_parameters=None,
            exclude_modules=None,
            lora={"dtype": asked},
        )
        made = object.__new__(engine.SftEngine)
        made.model_config = settings
        adapted = made._build_lora_module(model)
        trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
        assert trained == {wanted}
        assert sum("lm_head" in name for name, p in adapted.named_parameters() if p.requires_grad) == 2


@pytest.mark.parametrize(("patch", "works"), [("theirs", False), ("ours", True)])
def test_a_layer_that_has_an_adapter_can_be_given_fsdps_class(patch, works):
    """verl's own way cannot; where this turns red, ours (verl_ext/platform/adapted_head.py) is no longer needed."""
    assert fsdp_utils.maybe_patch_fsdp_module is adapted_head.abstract_where_needed
    spec = importlib.util.find_spec("verl.utils.fsdp_utils")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    make_abstract = fresh.maybe_patch_fsdp_module if patch == "theirs" else adapted_head.abstract_where_needed
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
    layer = model.base_model.model[0]
    with make_abstract(layer):
        sharded = type("FSDPLinear", (_fully_shard.FSDPModule, type(layer)), {})
    if works:
        layer.__class__ = sharded
    else:
        with pytest.raises(TypeError, match="object layout differs"):
            layer.__class__ = sharded
