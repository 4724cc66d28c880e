"""One arm of `benchmarks.plan_memory`: real FSDP2 steps of verl's actor in this process, and the memory they took.

`python -m benchmarks.arms.plan_memory_arm OUT.json OVERRIDE...` (of the training configuration). Worker, engine,
loss and optimizer are those of `recipe.on_policy_distillation` (verl's TrainingWorker on gloo, one rank); rows are
random tokens of full length. The parent sets MALLOC_MMAP_THRESHOLD_, so that freed tensors leave the process at once.
"""

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.settings import mapping_of
from verl_ext.sft.environment import prepare_environment

STEPS = 2
"""The first makes the optimizer's state; the second is measured with it."""


def resident(key: str) -> int:
    """`VmRSS` or `VmHWM` of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def reset_peak() -> None:
    """Make VmHWM the memory resident now (man 5 proc, clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def rows(config: Any, vocab_size: int) -> Any:
    """A mini-batch as verl's trainer sends it to the actor: nested (B, T) tokens, (B, T response) advantages."""
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu

    batch = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    lengths = [config.data.max_prompt_length, config.data.max_response_length]
    length = sum(lengths)
    tokens = torch.randint(0, vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))

    def jagged(values: Any) -> Any:
        return torch.nested.as_nested_tensor(list(values), layout=torch.jagged)

    prompts, responses = tokens.split(lengths, dim=1)
    mask = torch.ones_like(responses)
    data = TensorDict(
        {
            "input_ids": jagged(tokens),
            "position_ids": jagged(torch.arange(length).expand(batch, -1)),
            "prompts": jagged(prompts),
            "responses": jagged(responses),
            "response_mask": jagged(mask),
            "loss_mask": jagged(mask),
            "old_log_probs": jagged(mask * -1.0),
            "advantages": jagged(mask * 1.0),
        },
        batch_size=[batch],
    )
    actor = config.actor_rollout_ref.actor
    tu.assign_non_tensor(
        data,
        calculate_entropy=actor.calculate_entropy,
        global_batch_size=batch,
        mini_batch_size=batch,
        epochs=1,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        temperature=1.0,
    )
    return data


def build(config: Any) -> Any:
    """verl's actor as ActorRolloutRefWorker builds it."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import HFModelConfig, TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import ppo_loss

    actor_node = config.actor_rollout_ref.actor
    actor: Any = omega_conf_to_dataclass(actor_node)
    model: Any = omega_conf_to_dataclass(config.actor_rollout_ref.model, dataclass_type=HFModelConfig)
    actor.model_config = model
    actor.engine.use_dynamic_bsz = actor_node.use_dynamic_bsz
    actor.engine.micro_batch_size_per_gpu = actor_node.ppo_micro_batch_size_per_gpu
    actor.engine.max_token_len_per_gpu = actor_node.ppo_max_token_len_per_gpu
    actor.optim.total_training_steps = STEPS
    worker: Any = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=actor.engine,
            optimizer_config=actor.optim,
            checkpoint_config=actor.checkpoint,
        )
    )
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    return worker


def main() -> None:
    out, *overrides = sys.argv[1:]
    prepare_training_configs()
    with initialize_config_dir(str(Path("configs").resolve()), version_base=None):
        config = compose("on_policy_distillation", ["platform=cpu", *overrides])
    OmegaConf.resolve(config)
    prepare_environment(mapping_of(config.ray_kwargs.ray_init.runtime_env.env_vars))
    os.environ["LOCAL_WORLD_SIZE"] = "1"

    import torch
    from verl.utils.distributed import initialize_global_process_group

    importlib.import_module("verl.workers.engine_workers")  # its imports are no part of the measurement
    initialize_global_process_group()
    torch.set_num_threads(1)
    before = resident("VmRSS")
    worker = build(config)
    for _ in range(STEPS):
        data = rows(config, worker.model_config.hf_config.vocab_size)
        reset_peak()
        worker.train_mini_batch(data=data)
    Path(out).write_text(json.dumps({"peak": resident("VmHWM") - before}) + "\n")


if __name__ == "__main__":
    main()
