"""The main job on this machine's CPU: data, tiny pair, training, evaluation.

    # on a CPU; a GPU is of no use to it. `make demo` is the same and sets everything up first.
    python -m recipe.demo steps=16

Every stage is a verb of its own, printed as it is run; each keeps what it finished, so that the
command can be interrupted and repeated. It needs the teacher's environment, .venv-teacher, here.
"""

import os
from pathlib import Path
from typing import Any

from verl_ext.demo.config import DemoConfig
from verl_ext.demo.stages import draw_demo, run_stages, summarise, summary_table
from verl_ext.run.files import check_writable, write_json
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of
from verl_ext.run.terminal import Terminal
from verl_ext.run.verb import Verb, as_typed, run_verb
from verl_ext.run.visible import print

from .report import write_report

register_verb("demo", DemoConfig)
VERB = Verb("demo", doc=str(__doc__), settings={"": DemoConfig}, more="More: docs/results/cpu-demo.md.")


def demo(config: Any) -> None:
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    settings = settings_of(config, DemoConfig)
    check_writable("out", settings.out, folder=True)
    summary = summarise(settings, run_stages(settings, str(__package__)))
    file = Path(settings.out) / "summary.json"
    write_json(file, summary)
    Terminal().print(summary_table(summary))
    picture, page = draw_demo(settings), write_report(Path(settings.out) / "run")
    print(f"{file} and {picture} written; curves: tensorboard --logdir {settings.out}/run/tensorboard")
    print(
        "next, the same by SFT on the teacher's labels, as Tinker does it: bash examples/sft_prompt_distillation_cpu.sh"
    )
    print(as_typed("your own sentences and prompt: python -m recipe.create_data --help"))
    print(f"the run on one page, with curves, answers and tokens: {page}")


def main() -> None:
    run_verb(VERB, demo)


if __name__ == "__main__":
    main()
