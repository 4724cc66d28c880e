"""Stock verl on the same machine, model and rows: its own task runner, trainer, buffer and GRPO, no teacher.

    python -m benchmarks.arms.stock_verl platform=cpu student.path=MODEL data.train_files=... run_dir=...

The other arm of `startup.py` and `step.py`. Only what the CPU needs is ours: the platform overlay.
"""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.schemas import prepare_training_configs

# Back to verl's own classes and settings (verl/trainer/config); the reward function is the least it accepts.
STOCK = {
    "trainer.v1.trainer_mode": "sync",
    "trainer.logger": ["file"],
    "trainer.checkpoint_callback_class": None,
    "actor_rollout_ref.model.external_lib": None,
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": None,
    "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
    "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
    "actor_rollout_ref.actor.calculate_entropy": False,
    "algorithm.adv_estimator": "grpo",
    "algorithm.rollout_correction.bypass_mode": False,
    "reward.num_workers": 1,
    "reward.custom_reward_function.path": str(Path(__file__).with_name("constant_reward.py")),
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 8,
}


@hydra.main(version_base=None, config_path="../../configs", config_name="on_policy_distillation")
def main(config: DictConfig) -> None:
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    for key, value in STOCK.items():
        OmegaConf.update(config, key, value)
    run_dir = Path(config.run_dir).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    OmegaConf.update(environment, "VERL_FILE_LOGGER_PATH", str(run_dir / "stock.jsonl"), force_add=True)
    for key, value in environment.items():
        os.environ.setdefault(key, str(value))  # the driver imports verl too
    run_ppo(config, TaskRunnerV1)


if __name__ == "__main__":
    prepare_training_configs()
    main()
