"""Train a student on a teacher's labels, without the prompt that the teacher had (SFT prompt distillation).

    torchrun --nproc-per-node 8 -m recipe.sft student.path=MODEL data.train_files=conversations.jsonl
    python -m recipe.sft platform=cpu task=demo student.path=MODEL data.train_files=conversations.jsonl

The second form is one process. `--help` and `--cfg job` show every setting; any can be overridden on the command line.
"""

import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.run import check_sft
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.console import SftConsole
from verl_ext.run.files import save_resolved_config
from verl_ext.run.settings import mapping_of
from verl_ext.sft.environment import SILENCE_S, output_into, prepare_environment
from verl_ext.student.model_card import write_cards


@hydra.main(version_base=None, config_path="../configs/sft", config_name="sft")
def main(config: DictConfig) -> None:
    config.run_dir = str(Path(config.run_dir).resolve())
    rank, ranks = prepare_environment(mapping_of(config.environment))
    progress = SftConsole()
    try:
        report = check_sft(config, ranks)
    except ValueError as error:
        if rank:
            time.sleep(SILENCE_S)
        sys.exit(f"error: {error}")
    if rank == 0:
        save_resolved_config(OmegaConf.to_yaml(config, resolve=True), config.run_dir)
        progress.line(report.as_line())
    try:
        with output_into(Path(config.run_dir) / "logs" / f"rank-{rank}.log"):
            from verl_ext.sft.trainer import train

            trained = train(config, progress.ready, progress.step)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command resumes from the last checkpoint in {config.run_dir}")
    if rank == 0:
        write_cards(Path(config.run_dir))
        progress.finish(config, trained)


if __name__ == "__main__":
    prepare_training_configs()
    main()
