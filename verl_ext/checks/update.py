"""What the trainer keeps, and where: a base in 4 bits below adapters (`update=qlora`), activations in main memory."""

from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.context import Context

OFFLOAD = "actor_rollout_ref.model.enable_activation_offload"
BASE = "actor_rollout_ref.model.lora.base"
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
VENDOR_VARIABLE = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_ENGINE_VENDOR"


def check_base(config: DictConfig) -> str:
    """That adapters alone leave the trainer, where their base is in 4 bits.

    Raises:
        ValueError: naming the key and the fix.
    """
    model = config.actor_rollout_ref.model
    if (base := OmegaConf.select(config, BASE)) is None:
        return "as it was loaded"
    if base != "nf4":
        raise ValueError(f"{BASE}={base}: nf4 is what there is; set update=qlora, or leave it out")
    wanted = {  # what the trainer cannot give, for it has no whole base any more
        f"{ROLLOUT}.load_format": ("safetensors", "auto"),
        f"{ACTOR}.checkpoint.save_lora_only": (True,),
        "actor_rollout_ref.model.lora.merge": (False, None),
        VENDOR_VARIABLE: ("verl_ext",),
    }
    if not model.lora_rank:
        raise ValueError(
            f"actor_rollout_ref.model.lora_rank=0 with {BASE}=nf4: adapters are what is trained; set update=qlora"
        )
    for key, values in wanted.items():
        if (value := OmegaConf.select(config, key)) not in values:
            raise ValueError(f"{key}={value} with {BASE}=nf4: set it to {values[0]}, as update=qlora does")
    if "lm_head" in model.target_modules:
        raise ValueError(
            f"actor_rollout_ref.model.target_modules={model.target_modules} with {BASE}=nf4: the head stays as it is; "
            "leave lm_head out, or set update=lora"
        )
    return "in 4 bits (NF4)"


def update(context: Context) -> str:
    """What `update=qlora` is combined with, and where activations are kept.

    Raises:
        ValueError: naming the key and the fix.
    """
    config = context.config
    if config.actor_rollout_ref.model.enable_activation_offload and config.trainer.device == "cpu":
        raise ValueError(f"{OFFLOAD}=true: verl pins memory for it, which takes a GPU; set it to false on a CPU")
    return check_base(config)
