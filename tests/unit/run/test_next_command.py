"""What a run's user is told to type next is a command of this program, with what the run had."""

import shlex
from pathlib import Path

from omegaconf import OmegaConf

from recipe.evaluate import VERB
from verl_ext.evaluation.arms import EvaluateConfig
from verl_ext.run.next_command import evaluation_of


def settings_in(command: str | None) -> EvaluateConfig:
    assert command is not None
    python, flag, module, *words = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", f"recipe.{VERB.name}")
    schema = OmegaConf.structured(EvaluateConfig)
    OmegaConf.set_readonly(schema, None)
    return OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.from_dotlist(words)))  # pyright: ignore[reportReturnType]


def test_an_on_policy_run_is_evaluated_with_its_own_settings(composed_config):
    config = OmegaConf.merge(composed_config, {"run_dir": "a b", "method": {"labels": {"extract": "final_answer"}}})
    found = settings_in(evaluation_of(config))
    assert (found.data, found.base, found.teacher, found.student) == ("val.parquet", "MODEL", "MODEL", "a b/student")
    assert (found.extract, found.extract_prompted, found.max_tokens) == ("final_answer", "final_answer", 4)
    config.teacher.mode, config.teacher.urls = "external", ["http://a:1"]
    config.data.val_files = ["one.parquet", "two.parquet"]
    found = settings_in(evaluation_of(config))
    assert (found.data, found.teacher) == ("one.parquet", "")


def test_answers_of_several_turns_are_judged_by_no_other_command(composed_config):
    agent = {"actor_rollout_ref": {"rollout": {"agent": {"default_agent_loop": "tool_agent"}}}}
    assert evaluation_of(OmegaConf.merge(composed_config, agent)) is None


def test_an_sft_run_is_evaluated_on_the_rows_kept_back_for_it(tmp_path: Path):
    run = {
        "run_dir": "RUN",
        "student": {"path": "BASE"},
        "data": {"train_files": str(tmp_path / "conversations.jsonl")},
    }
    assert settings_in(evaluation_of(OmegaConf.create(run))).data == "HELDOUT.parquet"
    (tmp_path / "heldout.parquet").touch()
    found = settings_in(evaluation_of(OmegaConf.create(run)))
    assert (found.data, found.base, found.student) == (str(tmp_path / "heldout.parquet"), "BASE", "RUN/student")
