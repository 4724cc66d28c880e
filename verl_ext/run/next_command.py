"""The commands that a finished run's user types next, as they run."""

import shlex
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_ext.run.command import as_typed

SINGLE_TURN = "single_turn_agent"
"""verl's loop of one turn."""


def report_of(run_dir: object) -> str:
    """`recipe.report` on a run's folder."""
    return as_typed(f"python -m recipe.report {shlex.quote(str(run_dir))}")


def evaluation_of(config: DictConfig) -> str | None:
    """`recipe.evaluate` on a run's held-out rows: base, student, and the teacher where that is one model here.

    None where answers take several turns, which only the run's own validation judges.
    """
    on_policy = "method" in config
    loop = OmegaConf.select(config, "actor_rollout_ref.rollout.agent.default_agent_loop")
    if on_policy and loop not in (None, SINGLE_TURN):
        return None
    files = config.data.val_files if on_policy else config.data.train_files
    file = Path(files if isinstance(files, str) else files[0])
    if not on_policy:  # conversations; the rows that were kept back are beside them
        file = beside if (beside := file.with_name("heldout.parquet")).is_file() else Path("HELDOUT.parquet")
    words = [f"data={file}", f"base={config.student.path}"]
    if on_policy:
        if config.teacher.mode != "external" and not config.teachers:
            words.append(f"teacher={config.teacher.model_path}")
        if (extract := config.method.labels.extract) != "whole":
            words += [f"extract={extract}", f"extract_prompted={extract}"]
        words.append(f"max_tokens={config.data.max_response_length}")
    words.append(f"student={config.run_dir}/student")
    return as_typed(f"python -m recipe.evaluate {shlex.join(words)}")
