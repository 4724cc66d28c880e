"""The nouns `run` and `headroom` of the verb `compare`: their settings, and what they do."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from verl_ext.comparison.config import CompareConfig
from verl_ext.run.command import as_typed
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_schema
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import Verb
from verl_ext.run.visible import print

DOC = """Train several ways on one task, evaluated alike, and say what each costs and reaches.

    # on a CPU: the demo's pair, one of 13 labels; answers of 48 tokens; more arms
    python -m recipe.compare run
    python -m recipe.compare run task=sequential out=outputs/sequential
    python -m recipe.compare run arms=all only=[on_policy,forward_kl] arms.on_policy.seeds=[0]
    # what can be gained at most, before anything is trained
    python -m recipe.compare headroom task=sequential
    # on a GPU: a task of your own, with a YAML of its keys
    python -m recipe.compare run mine.yaml out=outputs/mine

Each arm is an ordinary run of `recipe.sft` or `recipe.on_policy_distillation` in a folder of its own.
The same command goes on: done arms are kept, interrupted ones resume. An arm that fails does not end
the others; the exit status is then 1. Writes comparison.json, and accuracy.jsonl and eval.json in
every run's folder.
"""


def verbs(configs: Path) -> tuple[Verb, Verb]:
    """`compare run` and `compare headroom`; `configs` holds their YAML files."""
    run = Verb(
        "comparison",
        doc=DOC,
        settings={"": CompareConfig},
        config_dir=configs,
        noun="run",
        keys=dict.fromkeys(("out", "only", "target_share", "least_headroom", "arm_timeout_s", "arms", "task"), ""),
        prepare=lambda: register_schema("comparison_schema", CompareConfig),
        more="More: docs/comparison.md; a task and an arm key by key in verl_ext/comparison/config.py.",
        interrupted="interrupted; the same command goes on with what is left",
        errors=(ValueError, RuntimeError, TimeoutError),
    )
    return run, replace(run, noun="headroom")


def job(noun: str, package: str) -> Callable[[DictConfig], None]:
    """What a noun does. `package`: where the verbs are."""

    def work(config: DictConfig) -> None:
        from verl_ext.comparison.record import Record
        from verl_ext.comparison.run import Session, compare, measure_headroom

        settings = settings_of(config, CompareConfig)
        check_writable("out", settings.out, folder=True)
        if noun == "headroom":
            measure_headroom(Session(settings, Record(settings), package))
            return
        failed = compare(settings, package)
        print(as_typed(f"next: python -m recipe.compare report {settings.out}"))
        if failed:
            sys.exit(f"error: {len(failed)} of the arms failed; {failed[0]}")

    return work
