"""How well each arm does its task: against the right answers and the teacher's.

    # on a CPU: the tiny pair
    python -m recipe.evaluate data=heldout.parquet base=BASE teacher=BASE student=RUN/student \\
        dtype=float32 max_tokens=8
    # on a GPU
    python -m recipe.evaluate data=heldout.parquet teacher=TEACHER student=RUN/student

The base answers without the prompt (and, as `base_prompted`, with it), the teacher with it, the
student without it, all with vLLM. Writes eval.json and, beside it, answers.jsonl: every answer,
what was read in it, and whether it is right; and eval.png: a confusion matrix for each arm.

Rows with data_source=math are problems. The training's reward scores the last \\boxed{} of an
answer; `max_tokens` is the training's longest response. `extract`, `labels`, `edge` and the picture
are about labels and have no part in it.
"""

import time
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from verl_ext.checks.check import EVALUATE
from verl_ext.checks.context import Context
from verl_ext.checks.run import refuse, warnings
from verl_ext.evaluation.arms import EvaluateConfig, evaluate, read_rows, show
from verl_ext.run.files import check_writable, write_json
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import Verb, run_verb
from verl_ext.run.visible import print
from verl_ext.student.model_card import keep_evaluation

register_verb("evaluate", EvaluateConfig)
VERB = Verb(
    "evaluate",
    doc=str(__doc__),
    settings={"": EvaluateConfig},
    more="More: docs/configuration.md (data and evaluation).",
)


def evaluate_arms(config: Any) -> None:
    started = time.perf_counter()
    settings = settings_of(config, EvaluateConfig)
    check_writable("out", settings.out)
    context = Context(
        models=settings.models, rows=lambda: list(chain(*read_rows(settings))), ranks_of_vllm={"tp": settings.tp}
    )
    for line in warnings(refuse(EVALUATE, context)):
        print(line)
    found = evaluate(settings)
    seconds = time.perf_counter() - started
    report = {"config": asdict(settings), "seconds": seconds} | found.as_dict()
    write_json(Path(settings.out), report)
    files = show(found, Path(settings.out))
    print(f"{settings.out}{files} written after {seconds:.0f} s")
    if settings.student and keep_evaluation(Path(settings.student), report):
        print(f"the model card has it too: {settings.student}/README.md")


def main() -> None:
    run_verb(VERB, evaluate_arms)


if __name__ == "__main__":
    main()
