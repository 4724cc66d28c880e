"""Every command of every example is one that its verb understands; nothing is run."""

import importlib
import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from verl_ext.checks.memory import check_plan

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.sh"))
UNUSED = {"reward.reward_model.rollout.name"}  # verl's own gap: there is no reward model


# What stands for a program that is not run: python takes notes, Slurm runs what it is given here, Ray starts nothing.
STANDINS = {
    "python": 'printf "%s\\n" "$*" >> "$LOG"',
    "scontrol": "echo node1; echo node2; echo node3",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "ray": "exit 0",
}
SLURM = {
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_JOB_NUM_NODES": "3",
    "RAY_HEAD_SECONDS": "0",
    "RAY_WORKER_SECONDS": "0",
}


def commands(script: Path, folder: Path) -> list[list[str]]:
    """The words after `python` of each command that the script would run."""
    for name, text in STANDINS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    env = (
        os.environ
        | SLURM
        | {"LOG": f"{folder}/log", "OUT": f"{folder}/out", "PYTHON": f"{folder}/python", "RAY": f"{folder}/ray"}
    )
    env["PATH"] = f"{folder}{os.pathsep}{env['PATH']}"
    subprocess.run(["bash", str(script)], env=env, cwd=ROOT, check=True)
    return [line.split() for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_every_command_resolves(script, tmp_path):
    found = commands(script, tmp_path)
    assert found[-1][1] in ("recipe.evaluate", "recipe.compare", "verl_ext.demo.tools")  # each ends in a table
    for words in found:
        last = len(words) - words[::-1].index("-m")
        module, overrides = words[last], words[last + 1 :]
        verb = importlib.import_module(module)
        if module == "verl_ext.demo.tools":
            assert verb.parser().parse_args(overrides).verb in ("rows", "base", "table")
            continue
        if module == "recipe.compare" and overrides[0] == "run":  # what it would run: tests/command/test_comparison.py
            with verb.RUN.composing():
                assert compose(verb.RUN.name, overrides[1:]).arms
            continue
        if module == "recipe.compare":  # not Hydra's: what is not its own is an override of recipe.sft
            assert overrides[0] == "parity"
            _, overrides = verb.parse(overrides[1:])
            module = "recipe.sft"
            verb = importlib.import_module(module)
            overrides += ["student.path=MODEL", "data.train_files=FILE"]
        with verb.VERB.composing():
            config = compose(verb.VERB.name, [*verb.VERB.added, *overrides])
        assert OmegaConf.missing_keys(config) <= UNUSED
        if "hardware" in config and config.trainer.device == "cuda":
            assert check_plan(config).startswith("fits ")


def test_the_table_names_every_script():
    listed = (ROOT / "examples" / "README.md").read_text()
    assert [script.name for script in EXAMPLES if f"`{script.name}`" not in listed] == []
