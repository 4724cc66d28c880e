"""Train the tiny pair: a small Qwen3, right with the prompt, at random without it.

    # on a CPU; a GPU is of no use to it
    python -m recipe.tiny_pair data_dir=outputs/data out_dir=outputs/models/base

Reads train.parquet and heldout.parquet of `python -m recipe.create_data`, trains a tokenizer and
the model from scratch, and writes a Hugging Face folder that transformers, vLLM and SGLang load,
plus pair.json with the settings and the accuracies. A second run with the same settings changes
nothing.
"""

import os

from omegaconf import DictConfig

from verl_ext.demo.config import TinyPairConfig
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import Verb, run_verb

register_verb("tiny_pair", TinyPairConfig)
VERB = Verb(
    "tiny_pair",
    doc=str(__doc__),
    settings={"": TinyPairConfig},
    more="More: verl_ext/demo/tiny_pair.py.",
    errors=(ValueError, FileNotFoundError),
)


def tiny_pair(config: DictConfig) -> None:
    # Threads that wait must not spin: where two cores are shared with anything else, spinning made this 4x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from verl_ext.demo.train_pair import create_pair

    settings = settings_of(config, TinyPairConfig)
    check_writable("out_dir", settings.out_dir, folder=True)
    create_pair(settings)


def main() -> None:
    run_verb(VERB, tiny_pair)


if __name__ == "__main__":
    main()
