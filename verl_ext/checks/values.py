"""Settings alone: is each in its range, do they fit each other, and is what they ask for here? No file is read.

Each function is a check of `verl_ext.checks.registry`. It raises ValueError naming the configuration key and the fix;
else it returns what it has seen.
"""

import importlib.util
import netrc
import os
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_ext.checks.context import Context
from verl_ext.checks.verl_values import FIXED, SFT, TRAIN, check_ranges
from verl_ext.run import machine
from verl_ext.run.ray_token import check_token, is_own
from verl_ext.teacher.config import TeacherConfig

LOGGERS = ("console", "tensorboard", "wandb", "mlflow", "swanlab", "vemlp_wandb", "clearml", "trackio", "file")
DERIVED = {
    "actor_rollout_ref.actor.policy_loss.loss_mode": "method.policy_loss.kind",
    "actor_rollout_ref.rollout.prompt_length": "data.max_prompt_length",
    "actor_rollout_ref.rollout.response_length": "data.max_response_length",
    "actor_rollout_ref.model.path": "student.path",
}
"""Keys that follow another one."""
WITHOUT_PACKAGE = ("console", "file")
PACKAGE_OF = {"vemlp_wandb": "volcengine_ml_platform"}
WANDB_HOST = "api.wandb.ai"
OFFLINE = ("offline", "disabled", "dryrun")


def training(context: Context) -> str:
    """verl's keys are in their ranges."""
    check_ranges(context.config, TRAIN)
    return f"{len(TRAIN)} keys in their ranges"


def supervised(context: Context) -> str:
    """verl's keys are in their ranges."""
    check_ranges(context.config, SFT)
    return f"{len(SFT)} keys in their ranges"


def ray_token(context: Context) -> str:
    """A Ray cluster asks for a token, which is not in a file that others may read."""
    return check_token(context.config.ray_kwargs.ray_init.get("address"))


def kept(context: Context) -> str:
    """Keys without which the method would be another one stand as this plugin sets them."""
    config = context.config
    check_ranges(config, FIXED)
    for key, source in DERIVED.items():
        value, wanted = (OmegaConf.select(config, name) for name in (key, source))
        if value != wanted:
            raise ValueError(f"{key}={value} is not {source}={wanted}: leave it out, and set {source}")
    return f"{len(FIXED)} keys as the method needs them"


def sizes(context: Context) -> str:
    """Batches divide over ranks; a prompt and its answer fit where they must."""
    config = context.config
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    longest = data.max_prompt_length + data.max_response_length
    asked = f"data.max_prompt_length={data.max_prompt_length} + data.max_response_length={data.max_response_length}"
    limits = {"rollout.max_model_len": rollout.max_model_len}
    if actor.use_dynamic_bsz:
        parts = actor.ulysses_sequence_parallel_size
        limits["actor.ppo_max_token_len_per_gpu"] = actor.ppo_max_token_len_per_gpu * parts
    for key, limit in limits.items():
        if limit is not None and limit < longest:
            raise ValueError(
                f"actor_rollout_ref.{key}={limit} is less than {asked}; raise it to {longest}, or lower one"
            )
    if rollout.max_num_batched_tokens < rollout.max_num_seqs:
        raise ValueError(
            f"actor_rollout_ref.rollout.max_num_batched_tokens={rollout.max_num_batched_tokens} is less than "
            f"actor_rollout_ref.rollout.max_num_seqs={rollout.max_num_seqs}; raise it, or lower the other"
        )
    if not actor.use_dynamic_bsz:
        for key in ("actor.ppo_micro_batch_size_per_gpu", "rollout.log_prob_micro_batch_size_per_gpu"):
            part, name = key.split(".")
            if config.actor_rollout_ref[part][name] is None:
                raise ValueError(
                    f"actor_rollout_ref.{key} is null and actor_rollout_ref.actor.use_dynamic_bsz=false; set one"
                )
    return _parallel(config)


def _parallel(config: DictConfig) -> str:
    """Ranks divide evenly into replicas of vLLM and shares of a batch."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    ranks, nodes = config.trainer.nnodes * config.trainer.n_gpus_per_node, config.trainer.nnodes
    where = f"trainer.nnodes={nodes} x trainer.n_gpus_per_node={config.trainer.n_gpus_per_node}"
    engine = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    for key, size in (
        ("rollout.tensor_model_parallel_size (with data and pipeline)", engine),
        ("actor.ulysses_sequence_parallel_size", actor.ulysses_sequence_parallel_size),
    ):
        if ranks % size:
            raise ValueError(f"actor_rollout_ref.{key}={size} does not divide {where} ranks; change one")
    batch, mini, n = config.data.train_batch_size, actor.ppo_mini_batch_size, rollout.n
    if mini > batch:
        raise ValueError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} is more than data.train_batch_size={batch}; lower it"
        )
    shares = ranks // actor.ulysses_sequence_parallel_size
    if mini * n % shares:
        raise ValueError(
            f"data.train_batch_size={batch}: a mini-batch of {mini} prompts x actor_rollout_ref.rollout.n={n} samples "
            f"does not divide among the {shares} ranks; change one"
        )
    return f"{mini * n // shares} samples of a mini-batch a rank"


def devices(context: Context) -> str:
    """As many devices as the run takes, where they are this machine's own."""
    config = context.config
    trainer, ray = config.trainer, config.ray_kwargs.ray_init
    if not is_own(ray.get("address")):
        return f"those of the cluster {ray.address}"
    if trainer.nnodes > 1:
        raise ValueError(
            f"trainer.nnodes={trainer.nnodes}: this run starts a Ray of its own, on this machine alone; join a cluster "
            "with ray_kwargs.ray_init.address=auto, or set it to 1"
        )
    wanted = trainer.n_gpus_per_node
    if trainer.device == "cpu":
        if ray.num_gpus is not None and wanted > ray.num_gpus:
            raise ValueError(
                f"trainer.n_gpus_per_node={wanted} is more than the {ray.num_gpus} slots of this CPU "
                "(ray_kwargs.ray_init.num_gpus); lower it, or raise the slots"
            )
        return f"{wanted} slots of the CPU"
    own = sum(
        teacher.tp * teacher.dp
        for teacher in context.teachers.values()
        if teacher.mode == "managed"
        and teacher.device == "cuda"
        and not teacher.share_device
        and teacher.store_mode != "replay"
    )
    check_gpus(f"trainer.n_gpus_per_node={wanted}" + (f" and the teacher's {own}" if own else ""), wanted + own)
    return f"{wanted + own} GPUs"


def check_gpus(asked: str, wanted: int, fix: str = "set platform=cpu, or run where there is one") -> None:
    """As many GPUs as that are here. Raises ValueError with what was asked."""
    found = machine.gpus()
    if found == 0:
        raise ValueError(f"{asked}: torch sees no GPU on this machine; {fix}")
    if wanted > found:
        raise ValueError(
            f"{asked}: {wanted} GPUs are asked for and this machine has {found}; lower it, or take a larger machine"
        )


def teacher_device(context: Context, name: str) -> str:
    """A teacher that is started here finds the device that it asks for."""
    config = context.config
    if config is not None and not is_own(config.ray_kwargs.ray_init.get("address")):
        return "of the cluster"
    return check_teacher_device(context.teachers[name])


def check_teacher_device(teacher: TeacherConfig) -> str:
    """The device that a teacher will run on. Raises ValueError where it is not here."""
    if teacher.mode == "managed" and teacher.store_mode != "replay" and teacher.device == "cuda":
        check_gpus(
            f"teacher.device=cuda, teacher.tp x teacher.dp = {teacher.tp * teacher.dp}",
            teacher.tp * teacher.dp,
            "set teacher.device=cpu, or run where there is one",
        )
    return teacher.device


def sampler(context: Context) -> str:
    """vLLM in this process is divided among GPUs that are here."""
    for key, ranks in context.ranks_of_vllm.items():
        check_vllm(key, ranks)
    return "enough"


def check_vllm(key: str, ranks: int) -> None:
    """A GPU for each of vLLM's ranks; one rank may be the CPU's. Raises ValueError naming `key`."""
    if ranks > 1:
        check_gpus(f"{key}={ranks}", ranks, f"set {key}=1, or run where there are as many")


def loggers(context: Context) -> str:
    """Each place that metrics go to is known, installed and, for W&B, logged in."""
    listed = context.config.trainer.logger
    names = list(listed) if isinstance(listed, list | ListConfig) else [listed]
    for name in names:
        if name not in LOGGERS:
            raise ValueError(
                f"trainer.logger={name}: expected some of {', '.join(LOGGERS)}, as in [console,tensorboard]"
            )
        if name not in WITHOUT_PACKAGE and importlib.util.find_spec(PACKAGE_OF.get(name, name)) is None:
            raise ValueError(
                f"trainer.logger={name}: the package is not installed; pip install it, or leave {name} out"
            )
    if "wandb" in names and os.environ.get("WANDB_MODE") not in OFFLINE and not _is_logged_in():
        raise ValueError(
            "trainer.logger=wandb: nobody is logged in to W&B; run `wandb login`, export WANDB_API_KEY, or export "
            "WANDB_MODE=offline"
        )
    return ", ".join(names) or "none"


def _is_logged_in() -> bool:
    """A key in the environment, or one that `wandb login` kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = os.environ.get("WANDB_BASE_URL", f"https://{WANDB_HOST}").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
