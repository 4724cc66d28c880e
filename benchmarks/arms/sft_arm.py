"""One arm of `benchmarks.sft_step`, without a console: `python -m benchmarks.arms.sft_arm +arm=stock platform=cpu ...`

`ours` is recipe.sft's trainer; `stock` verl's own trainer, dataset, loader, engine and schedule (constant LR).
Writes `run_dir/speed.jsonl`: tokens and seconds of each step, from the start of one to the start of the next, so that
loading its rows counts; and in a last line the peak resident memory.
"""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

import recipe.sft
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.settings import mapping_of

STOCK = {
    "data.custom_cls.path": None,
    "data.custom_cls.name": None,
    "optim._target_": "verl.workers.config.FSDPOptimizerConfig",
    "optim.lr_scheduler_type": "constant",
    "environment.VERL_ENGINE_VENDOR": "",
}


def timed(trainer: Any, file: Path) -> None:
    """Write a line whenever a step starts, about the step before it."""
    from verl.utils import tensordict_utils as tu

    train_batch = trainer.training_client.train_batch
    before: list[float] = []  # tokens and start of the step before

    def step(data: Any) -> Any:
        now = time.perf_counter()
        if before:
            with file.open("a") as lines:
                lines.write(json.dumps({"tokens": before[0], "seconds": now - before[1]}) + "\n")
        before[:] = [sum(tu.get(data, "global_token_num")), now]
        return train_batch(data=data)

    trainer.training_client.train_batch = step


@hydra.main(version_base=None, config_path="../../configs/sft", config_name="sft")
def main(config: DictConfig) -> None:
    if config.arm == "stock":
        for key, value in STOCK.items():
            OmegaConf.update(config, key, value)
    recipe.sft.prepare_environment(mapping_of(config.environment))
    os.environ["TENSORBOARD_DIR"] = f"{config.run_dir}/tensorboard"

    import torch
    from verl.trainer.sft_trainer import SFTTrainer
    from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

    from verl_ext.sft.trainer import SftTrainer

    initialize_global_process_group()
    torch.manual_seed(0)
    trainer = (SFTTrainer if config.arm == "stock" else SftTrainer)(config)
    file = Path(config.run_dir) / "speed.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    timed(trainer, file)
    trainer.fit()
    with file.open("a") as lines:
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.write(json.dumps({"peak_gib": peak_gib, "engine": type(trainer.engine).__name__}) + "\n")
    destroy_global_process_group()


if __name__ == "__main__":
    prepare_training_configs()
    main()
