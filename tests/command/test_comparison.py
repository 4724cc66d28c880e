"""Every command that a shipped comparison would run is one that its verb takes; nothing is run."""

import importlib
from dataclasses import replace

import pytest
from hydra import compose

from recipe import CONFIGS
from verl_ext.comparison import plan
from verl_ext.comparison.command import verbs
from verl_ext.comparison.config import CompareConfig
from verl_ext.comparison.record import arms_of
from verl_ext.comparison.run import served
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import check_words

SERVER = ["teacher.mode=external", "teacher.urls=[http://127.0.0.1:1]"]
TASKS = sorted(path.stem for path in (CONFIGS / "comparison" / "task").glob("*.yaml"))


def composed(*words: str) -> CompareConfig:
    run, _ = verbs(CONFIGS / "comparison")
    with run.composing():
        return settings_of(compose(run.name, list(words)), CompareConfig)


def refused(commands: list[plan.Command]) -> None:
    """Raises ValueError on a word that its verb does not take."""
    for words in (command.words for command in commands if command.words[0].startswith("recipe.")):
        check_words(importlib.import_module(words[0]).VERB, words[1:])


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task):
    config = composed(f"task={task}", "only=[on_policy,constant_negative]")
    refused([*plan.preparation(config), plan.headroom(config)])
    if config.task.labels:
        config = composed(f"task={task}")
        refused([plan.labels(config)])
    assert served(config.task).model_path == config.task.teacher
    first = {arm.kind: arm for arm in reversed(arms_of(config))}
    for arm in first.values():
        refused(plan.training(config, arm, SERVER))


def test_every_arm():
    config = composed("arms=all")
    for arm in arms_of(config):
        if arm.seed == 0:
            refused(plan.training(config, arm, SERVER))


def test_a_word_that_no_verb_takes_is_found():
    config = composed()
    task = replace(config.task, on_policy=[*config.task.on_policy, "trainer.test_fraq=1"])
    arm = next(arm for arm in arms_of(config) if arm.kind == "on_policy")
    with pytest.raises(ValueError, match=r"test_fraq.*trainer\.test_freq"):
        refused(plan.training(replace(config, task=task), arm, SERVER))
