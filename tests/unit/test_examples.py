"""Every command of every example is one that its verb understands; nothing is run."""

import importlib
import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.sh"))
UNUSED = {"reward.reward_model.rollout.name"}  # verl's own gap: there is no reward model
WITH_YAML = {"recipe.on_policy_distillation": "on_policy_distillation", "recipe.sft": "sft"}


def commands(script: Path, folder: Path) -> list[list[str]]:
    """The words after `python` of each command that the script would run."""
    log, python = folder / "log", folder / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\n')
    python.chmod(0o755)
    subprocess.run(["bash", str(script)], env=os.environ | {"PYTHON": str(python)}, cwd=ROOT, check=True)
    return [line.split() for line in log.read_text().splitlines()]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_every_command_resolves(script, tmp_path):
    from verl_ext.verbs import find_verl_configs

    find_verl_configs()
    found = commands(script, tmp_path)
    assert found[-1][:2] == ["-m", "recipe.evaluate"]  # each ends in a table
    for words in found:
        last = len(words) - words[::-1].index("-m")
        module, overrides = words[last], words[last + 1 :]
        importlib.import_module(module)
        if module in WITH_YAML:
            with initialize_config_dir(str(ROOT / "configs"), version_base=None):
                config = compose(WITH_YAML[module], overrides)
        else:
            with initialize(config_path=None, version_base=None):
                config = compose(module.removeprefix("recipe."), overrides)
        assert OmegaConf.missing_keys(config) <= UNUSED


def test_the_table_names_every_script():
    listed = (ROOT / "examples" / "README.md").read_text()
    assert [script.name for script in EXAMPLES if f"`{script.name}`" not in listed] == []
