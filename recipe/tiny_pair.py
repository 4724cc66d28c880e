"""Train the tiny pair: one small Qwen3 that answers right with the prompt, and at random without it.

    python -m recipe.tiny_pair data_dir=outputs/data out_dir=outputs/models/base

Reads train.parquet and heldout.parquet of `recipe.create_data`, trains a tokenizer and the model from scratch on
the CPU, and writes a Hugging Face folder that transformers, vLLM and SGLang load, plus pair.json with the settings
and the accuracies. A second run with the same settings finds it and does nothing.
"""

import os
import sys

import hydra
from omegaconf import DictConfig

from verl_ext.demo.train_pair import TinyPairConfig, create_pair
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of

# Threads that wait must not spin: where two cores are shared with anything else, spinning made this 4x slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


register_verb("tiny_pair", TinyPairConfig)


@hydra.main(version_base=None, config_path=None, config_name="tiny_pair")
def main(config: DictConfig) -> None:
    try:
        create_pair(settings_of(config, TinyPairConfig))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
