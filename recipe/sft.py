"""Train a student on a prompted teacher's labels, without the prompt (SFT baseline).

    # on a CPU: the tiny pair
    python -m recipe.sft platform=cpu task=demo student.path=outputs/demo/models/base \\
        data.train_files=conversations.jsonl
    # on 8 GPUs
    python -m recipe.sft --nproc 8 student.path=Qwen/Qwen3-4B-Instruct-2507 \\
        data.train_files=conversations.jsonl

`--nproc N` starts torchrun for N processes of this machine, one a GPU; without it there is one.
torchrun on several nodes: docs/sft.md.
"""

import contextlib
import sys
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.run import check_sft, check_sft_settings
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.console import SftConsole
from verl_ext.run.files import check_writable, save_resolved_config
from verl_ext.run.hydra import chosen_groups
from verl_ext.run.lock import locked
from verl_ext.run.resume import begin
from verl_ext.run.settings import mapping_of
from verl_ext.run.stop import exit_resumable
from verl_ext.run.verb import Verb, how_to_go_on, run_verb
from verl_ext.sft.config import SftConfig
from verl_ext.sft.environment import SILENCE_S, output_into, prepare_environment
from verl_ext.sft.keys import KEYS
from verl_ext.sft.torchrun import processes, start_torchrun
from verl_ext.student.model_card import write_cards

from . import CONFIGS

VERB = Verb(
    "sft",
    doc=str(__doc__),
    settings={"sft": SftConfig},
    config_dir=CONFIGS / "sft",
    keys=KEYS,
    required=("data.train_files",),
    prepare=prepare_training_configs,
    more="More: docs/sft.md; verl's own keys in verl/trainer/config (the file sft_trainer_engine.yaml).",
)


def sft(config: DictConfig) -> None:
    config.run_dir = str(check_writable("run_dir", config.run_dir, folder=True).resolve())
    rank, ranks = prepare_environment(mapping_of(config.environment))
    progress = SftConsole()
    try:
        report, warnings = check_sft(config, ranks)
    except ValueError:
        if rank:
            time.sleep(SILENCE_S)
        raise
    run_dir = Path(config.run_dir)
    with locked(run_dir) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            for line in begin(config):
                progress.line(line)
            save_resolved_config(OmegaConf.to_yaml(config, resolve=True), str(run_dir), chosen_groups(CONFIGS / "sft"))
            for line in (report.as_line(), *warnings):
                progress.line(line)
        try:
            with output_into(run_dir / "logs" / f"rank-{rank}.log"):
                from verl_ext.sft.trainer import train

                trained = train(config, progress.ready, progress.step)
        except KeyboardInterrupt as error:
            exit_resumable(error, how_to_go_on(config.trainer), says=rank == 0)
        if rank == 0:
            write_cards(run_dir)
            progress.finish(config, trained)


def main() -> None:
    number, words = processes(sys.argv[1:])

    def many(config: DictConfig) -> None:
        check_sft_settings(config, number)
        start_torchrun(number, f"{__package__}.sft", words)

    run_verb(VERB, sft if number == 1 else many, words)


if __name__ == "__main__":
    main()
