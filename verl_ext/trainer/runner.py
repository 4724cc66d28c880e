"""The Ray actor that holds the run. Importing this module imports no verl: the driver starts in a second."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from omegaconf import OmegaConf

from verl_ext.teacher.refresh import make_room
from verl_ext.teacher.teachers import teachers_of
from verl_ext.trainer.config import MethodConfig, check_method
from verl_ext.trainer.pipeline_config import SEPARATE, SYNC

FP32_BYTES = 4  # what a tensor takes at most on its way


@ray.remote(num_cpus=0)
class Runner:
    """verl's task runner in a process of its own, with our trainer registered."""

    def run(self, config: Any, before: list[Any]) -> str | None:
        """Train to the end; returns when the last checkpoint is written, with what was saved where it was stopped.

        `before`: references that are ready when those have their memory who share the trainer's device; only then do
        trainer and vLLM measure what is free.

        Raises:
            RuntimeError: if verl did not load the platform that `config.platform` names.
        """
        show_gpus(config)
        with ThreadPoolExecutor(1) as beside:
            queue = beside.submit(start_queue, config)
            from verl.trainer.main_ppo import TaskRunnerV1
            from verl.trainer.ppo.utils import need_critic, need_reference_policy
            from verl.utils.config import validate_config
            from verl.workers.rollout.replica import RolloutReplicaRegistry

            from verl_ext.platform import assert_platform
            from verl_ext.run.metrics import reach_stage
            from verl_ext.trainer.buffer import StopAsked
            from verl_ext.trainer.shared_calls import balance_one_server_here
            from verl_ext.trainer.trainer import PIPELINED, SEPARATED, register

            reach_stage(config.run_dir, "trainer process imported verl")
            assert_platform(config.trainer.device)
            register()
            if config.pipeline.mode != SYNC:
                config.trainer.v1.trainer_mode = SEPARATED if config.pipeline.placement == SEPARATE else PIPELINED
            ask_for_reference(config, check_method(config))
            make_room_for_weights(config)
            make_room(config, teachers_of(config).values())
            balance_one_server_here()
            validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
            queue.result()
            RolloutReplicaRegistry.register("vllm", beside.submit(start_engines, config).result)
            ray.get(before)
            try:
                plain_class(TaskRunnerV1)().run(config)
            except StopAsked as stopped:
                return str(stopped)
            return None


def start_queue(config: Any) -> None:
    """TransferQueue's processes, which take seconds to start, while this one imports verl; verl finds them there."""
    import transfer_queue as tq

    settings: Any = OmegaConf.create(OmegaConf.to_container(config.transfer_queue, resolve=True))
    tq.init(settings)


def start_engines(config: Any) -> type:
    """vLLM's server and the first agent loop import what they need while the actor loads the student.

    Returns:
        verl's vLLM replica, ours, which takes this process seconds to import too.
    """
    from verl_ext.trainer import sampler
    from verl_ext.trainer.agent_loop import DistillationAgentLoopManager

    if config.trainer.nnodes == 1:
        sampler.start_early(config)
        DistillationAgentLoopManager.start_early()
    return sampler.FinishReasonReplica


def show_gpus(config: Any) -> None:
    """Ray hides the GPUs from a process that reserves none, and this one may keep the replay buffer's tokens on one.

    Before anything looks for a GPU here.
    """
    if config.replay.share and config.replay.device == "cuda" and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]


def ask_for_reference(config: Any, method: MethodConfig) -> None:
    """Let verl keep the frozen first student where `guards.reference_kl_coef` needs it.

    verl's own use for it, a penalty on the task reward, gets no weight: the term is in our advantage.
    """
    if method.guards.reference_kl_coef:
        config.algorithm.use_kl_in_reward = True
        config.algorithm.kl_ctrl.kl_coef = 0.0
        actor = config.actor_rollout_ref
        if actor.ref.log_prob_micro_batch_size_per_gpu is None:
            actor.ref.log_prob_micro_batch_size_per_gpu = actor.rollout.log_prob_micro_batch_size_per_gpu


def make_room_for_weights(config: Any) -> None:
    """Let every tensor of the student fit the bucket in which verl hands weights to vLLM.

    With CUDA verl sends a larger tensor by itself; through shared memory it stops at the first weight sync.
    """
    from verl.utils.device import is_support_ipc

    if is_support_ipc():
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.student.path))
    largest = max(tensor.numel() * FP32_BYTES for tensor in model.state_dict().values())
    transfer = config.actor_rollout_ref.rollout.checkpoint_engine
    transfer.update_weights_bucket_megabytes = max(transfer.update_weights_bucket_megabytes, math.ceil(largest / 2**20))


def plain_class(actor_class: Any) -> Any:
    """The class that `@ray.remote` wrapped, to subclass or to use in this process."""
    return actor_class.__ray_metadata__.modified_class
